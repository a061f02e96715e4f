"""How a streamed search grows with the gallery: time per query and row, and peak memory, N = 200,000 to 10,000,000.

python -m bench.growth [LARGEST]   writes bench/results/growth.json
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import graceful_fast as gf

from .__main__ import RESULTS, machine

QUERIES, DIM, K = 1000, 128, 10
SIZES = (200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)


def write(path: Path, rows: int) -> None:
    """Random rows as .fbin, a million at a time."""
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(np.array([rows, DIM], "<u4").tobytes())
        for first in range(0, rows, 1_000_000):
            file.write(rng.standard_normal((min(1_000_000, rows - first), DIM), np.float32).tobytes())


def measure(path: str, scan: str) -> dict[str, Any]:
    """One search in this process: seconds, and the growth of its peak resident set."""
    gallery = gf.Gallery.open(path)
    queries = np.random.default_rng(2).standard_normal((QUERIES, DIM), np.float32)
    gf.knn(queries, queries, 1, scan="float32")  # loads what the search needs
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now; getrusage's would be the parent's, too
    start = perf_counter()
    gf.knn(queries, gallery, K, scan=scan)
    seconds = perf_counter() - start
    growth = (status("VmHWM") - before) / 1024
    return {"seconds": seconds, "ns_per_query_row": seconds / QUERIES / len(gallery) * 1e9, "peak_mib": growth}


def status(name: str) -> int:
    """Kilobytes of this process, of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Each size in a process of its own."""
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    results = []
    for rows in (size for size in SIZES if size <= largest):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gallery.fbin"
            write(path, rows)
            gf.Gallery.open(path).prepare(Path(folder) / "prepared")
            for scan, source in (("float32", path), ("int8", Path(folder) / "prepared")):
                command = [sys.executable, "-m", "bench.growth", "--one", str(source), scan]
                runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(2)]
                row = min(runs, key=lambda run: run["seconds"])
                results.append({"rows": rows, "scan": scan, **row})
                print(results[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    shape = {"queries": QUERIES, "dim": DIM, "k": K, "metric": "cosine"}
    (RESULTS / "growth.json").write_text(json.dumps({"machine": machine(), **shape, "results": results}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3])))
    else:
        main()
