"""One contest: ours and its peers do the same work in turn, in one process; medians and ratios of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Contest:
    """Work that several entries do; `check` raises unless their results agree."""

    op: str
    case: str
    entries: dict[str, Callable[[], Any]]  # the first one is ours
    check: Callable[[], None]
    work: float  # bytes moved at least, or operations
    unit: str  # "B/s" or "op/s"

    def run(self, rounds: int = 7) -> dict[str, Any]:
        """Warm up every entry, then `rounds` rounds of A B C …; seconds as (min, median, max) and the ratio to ours."""
        self.check()
        for entry in self.entries.values():
            entry()
        seconds: dict[str, list[float]] = {name: [] for name in self.entries}
        for _ in range(rounds):
            for name, entry in self.entries.items():
                start = perf_counter()
                entry()
                seconds[name].append(perf_counter() - start)
        ours = next(iter(self.entries))
        rows = {
            name: {
                "seconds": {"min": min(times), "median": median(times), "max": max(times)},
                "rate": self.work / median(times),
                "ratio_to_ours": median(t / own for t, own in zip(times, seconds[ours], strict=True)),
            }
            for name, times in seconds.items()
        }
        return {
            "op": self.op,
            "case": self.case,
            "work": self.work,
            "unit": self.unit,
            "rounds": rounds,
            "entries": rows,
        }
