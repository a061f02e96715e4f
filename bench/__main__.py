"""`make bench`: ours beside its peers, as ratios of one run; JSON and Markdown go to bench/results/."""

import argparse
import json
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table

from graceful_fast import __version__, _ops

from . import bench_distill, bench_flips, bench_influence, bench_linear, bench_metrics, bench_scan
from .contest import Contest

OPS = {
    "distill": bench_distill,
    "influence": bench_influence,
    "linear": bench_linear,
    "scan": bench_scan,
    "metrics": bench_metrics,
    "flips": bench_flips,
}
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "graceful_fast": __version__,
        "isa": _ops.isa,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "huge_pages": huge_pages.read_text().strip() if huge_pages.exists() else "?",
    }


def limits() -> list[Contest]:
    """What this machine can do at most, measured in the same run: a matrix product and a pass over memory."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    memory = torch.randn(64 << 20)
    return [
        Contest("limit", "sgemm 2048", {"torch": lambda: a @ b}, lambda: None, 2 * 2048**3, "op/s"),
        Contest("limit", "read 256 MiB", {"torch": lambda: memory.sum()}, lambda: None, memory.numel() * 4, "B/s"),
    ]


def megabytes(row: dict[str, Any]) -> str:
    """What a call adds to the peak resident set, where it was measured."""
    peak = row.get("peak_bytes")
    return "" if peak is None else f"{peak / 1e6:.1f}"


def markdown(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The table as Markdown: ratio = median over the rounds of (time of the entry / time of ours)."""
    lines = ["# Ours beside its peers, ratios of one run", "", "Made by `make bench`: " + str(facts), ""]
    lines += ["| op | case | entry | median s | rate | times ours | peak MB |", "|---|---|---|---|---|---|---|"]
    for result in results:
        for name, row in result["entries"].items():
            lines.append(
                f"| {result['op']} | {result['case']} | {name} | {row['seconds']['median']:.4g} "
                f"| {row['rate'] / 1e9:.3g} G{result['unit']} | {row['ratio_to_ours']:.2f} | {megabytes(row)} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the contests asked for and write what they gave."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--op", choices=sorted(OPS), action="append", help="only this op; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=None, help="folder of the results; bench/results by default")
    options = parser.parse_args()
    facts, console = machine(), Console()
    console.print(facts)
    results: list[dict[str, Any]] = []
    contests = limits()
    for op in options.op or OPS:
        contests += OPS[op].contests(quick=options.quick)
    for contest in contests:
        result = contest.run(options.rounds)
        results.append(result)
        columns = ("entry", "median s", f"G{contest.unit}", "times ours", "peak MB")
        table = Table(*columns, title=f"{contest.op}: {contest.case}")
        for name, row in result["entries"].items():
            rate, ratio = row["rate"] / 1e9, row["ratio_to_ours"]
            table.add_row(name, f"{row['seconds']['median']:.4g}", f"{rate:.3g}", f"{ratio:.2f}", megabytes(row))
        console.print(table)
    if options.quick and options.output is None:
        return
    folder = options.output or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "side_by_side.json").write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
    (folder / "side_by_side.md").write_text(markdown(facts, results))
    console.print(f"written to {folder}")


if __name__ == "__main__":
    main()
