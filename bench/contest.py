"""One contest: ours and its peers do the same work in turn, in one process; medians and ratios of one run."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

_SHORTEST = 0.02  # seconds: far above the clock's and the scheduler's grain


def _warm(entry: Callable[[], Any]) -> float:
    """Seconds of the second call."""
    entry()
    start = perf_counter()
    entry()
    return perf_counter() - start


@dataclass(frozen=True)
class Contest:
    """Work that several entries do; `check` raises unless their results agree."""

    op: str
    case: str
    entries: dict[str, Callable[[], Any]]  # the first one is ours
    check: Callable[[], None]
    work: float  # bytes moved at least, or operations
    unit: str  # "B/s" or "op/s"
    peak_bytes: Callable[[str], int | None] | None = None  # what a call of an entry adds to the peak resident set

    def run(self, rounds: int = 7) -> dict[str, Any]:
        """Warm up every entry, then `rounds` rounds of A B C …; seconds as (min, median, max) and the ratio to ours.

        A call that takes less than _SHORTEST is repeated until that much has passed, and counts by its mean.
        """
        self.check()
        repeats = {name: max(1, math.ceil(_SHORTEST / _warm(entry))) for name, entry in self.entries.items()}
        seconds: dict[str, list[float]] = {name: [] for name in self.entries}
        for _ in range(rounds):
            for name, entry in self.entries.items():
                start = perf_counter()
                for _ in range(repeats[name]):
                    entry()
                seconds[name].append((perf_counter() - start) / repeats[name])
        ours = next(iter(self.entries))
        rows: dict[str, dict[str, Any]] = {
            name: {
                "seconds": {"min": min(times), "median": median(times), "max": max(times)},
                "rate": self.work / median(times),
                "ratio_to_ours": median(t / own for t, own in zip(times, seconds[ours], strict=True)),
            }
            for name, times in seconds.items()
        }
        if self.peak_bytes is not None:
            for name, row in rows.items():
                row["peak_bytes"] = self.peak_bytes(name)
        return {
            "op": self.op,
            "case": self.case,
            "work": self.work,
            "unit": self.unit,
            "rounds": rounds,
            "entries": rows,
        }
