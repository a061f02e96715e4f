"""One command for a machine with a GPU: runs every CUDA test, times every op beside its peers, writes one JSON.

python -m bench.gpu                       on the first GPU; writes bench/results/gpu.json
python -m bench.gpu --engine simt --toy   on the emulator, to see that it runs to its end: its times say nothing
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engines
import pytest
import torch

from graceful_fast import _C

from .__main__ import RESULTS, machine
from .contest import Contest
from .gpu_contests import Held, absences, contests

TESTS = Path(engines.__file__).parent


def gpu_facts(device: str) -> dict[str, Any]:
    """What the numbers depend on besides the code and the CPU."""
    facts: dict[str, Any] = {
        **machine(),
        "cuda_of_torch": torch.version.cuda,
        "kernels": _C.cuda or f"none: {_C.no_cuda}",
    }
    if device == "cpu":
        return facts | {"device": "emulator: times say nothing"}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv"]
    try:
        smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[:2]
    except (OSError, subprocess.CalledProcessError) as error:
        smi = [str(error)]
    memory, multiprocessors = properties.total_memory, properties.multi_processor_count
    return facts | {"device": properties.name, "memory": memory, "multiprocessors": multiprocessors, "nvidia-smi": smi}


def run_tests(engine: str, toy: bool) -> dict[str, Any]:
    """All tests of the engine, in a process of their own; at toy size those of one file."""
    files = [TESTS / "test_shards.py"] if toy else [TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--engine", engine, *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    counts = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout[-300:])
    }
    print(done.stdout[-2000:] if done.returncode else f"tests: {counts}", flush=True)
    output = done.stdout[-20_000:] + done.stderr[-2000:] if done.returncode else ""
    return {"command": command[1:], "exit": done.returncode, **counts, "output": output}


def limits(device: str, toy: bool) -> dict[str, Contest]:
    """What the device can do at most, measured: a copy within its memory, and matrix products by dtype."""
    size, side = (1 << 12, 64) if toy else (1 << 28, 8192)
    source, copy = torch.ones(size, device=device), torch.empty(size, device=device)
    measured = {
        "copy": Contest("limit", "copy", {"torch": lambda: copy.copy_(source)}, lambda: None, 8.0 * size, "B/s")
    }
    factors = {
        name: torch.ones(side, side, device=device, dtype=getattr(torch, name))
        for name in ("float32", "float16", "bfloat16", "int8")
    }
    for name, a in factors.items():
        product = torch._int_mm if name == "int8" else torch.mm
        entry = {"torch": lambda a=a, product=product: product(a, a.T)}
        measured[name] = Contest("limit", f"{name} product of {side}", entry, lambda: None, 2.0 * side**3, "op/s")
    return measured


def timed(contest: Contest, device: str, rounds: int) -> dict[str, Any]:
    """The contest's result; peers that fail are named, and so is a failure of ours."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    failed, entries = {}, {}
    for place, (name, entry) in enumerate(contest.entries.items()):
        if place > 0:
            try:
                entry()
                wait()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                continue
        entries[name] = _waiting(entry, wait)
    alone = Contest(contest.op, contest.case, entries, contest.check, contest.work, contest.unit)
    return alone.run(rounds) | ({"failed": failed} if failed else {})


def _waiting(entry: Callable[[], Any], wait: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> None:
        entry()
        wait()

    return call


def safely(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or its error: one failure does not take the rest along."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def measure(device: str, toy: bool, rounds: int, report: dict[str, Any], save: Callable[[], None]) -> None:
    """Limits, then every contest; each result is saved when it is there."""
    for name, contest in limits(device, toy).items():
        report["limits"][name] = safely(lambda contest=contest: timed(contest, device, rounds))  # type: ignore[misc]
    for make in contests(device, toy):
        held: list[Held] = []

        def work(make: Callable[[], Held] = make, held: list[Held] = held) -> dict[str, Any]:
            held.append(make())
            return timed(held[0].contest, device, rounds)

        result = safely(work)
        limit = held[0].limit if held else "?"
        rate = rate_of(report["limits"].get(limit, {}))
        what = f"{held[0].contest.op}: {held[0].contest.case}" if held else repr(make)
        for name, row in result.get("entries", {}).items():
            row["fraction"] = row["rate"] / rate if rate else None
            share = f"{row['fraction']:.1%} of {limit}" if rate else ""
            seconds = row["seconds"]["median"]
            print(f"{what}  {name}: {seconds:.3g} s, {row['rate'] / 1e9:.4g} G{result['unit']} {share}", flush=True)
        report["results"].append({"what": what, "limit": limit, **result})
        save()
        held.clear()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def rate_of(limit: dict[str, Any]) -> float | None:
    """The measured rate, None if it could not be measured."""
    return float(limit["entries"]["torch"]["rate"]) if "entries" in limit else None


def main(arguments: list[str] | None = None) -> int:
    """0 if all tests passed and all of ours ran; 1 if not; 2 if there is no such engine here."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--engine", choices=("cuda", "simt"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="smallest shapes, tests of one file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args(arguments)
    with pytest.MonkeyPatch.context() as patch:
        try:
            engine = engines.use(options.engine, patch)
        except pytest.skip.Exception as reason:
            print(f"bench.gpu: {reason}", file=sys.stderr)
            return 2
        report: dict[str, Any] = {
            "machine": gpu_facts(engine.device),
            "absent": absences(options.toy),
            "limits": {},
            "results": [],
        }

        def save() -> None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            temporary = options.output.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(report, indent=1) + "\n")
            temporary.rename(options.output)

        print(report["machine"], report["absent"], sep="\n", flush=True)
        report["tests"] = run_tests(options.engine, options.toy)
        save()
        measure(engine.device, options.toy, options.rounds, report, save)
    failed = [one["what"] for one in report["results"] if "error" in one]
    print(f"written to {options.output}; tests exit {report['tests']['exit']}; failed: {failed or 'none'}")
    return int(report["tests"]["exit"] != 0 or bool(failed))


if __name__ == "__main__":
    sys.exit(main())
