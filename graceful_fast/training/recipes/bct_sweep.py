"""Hyper-parameters of backward-compatible training, measured on validation rows, with seeds that are not reported."""

from collections.abc import Iterator, Mapping
from itertools import product

from ..results import Entry, spread
from .bct_digits import Options

FIRST_SEED, SEEDS = 100, 2
"""Of the sweep; the reported seeds begin at 0."""

GRID: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "plain": {},
    "L2": {"weight": (0.3, 1.0, 3.0, 10.0)},
    "BCT": {"scale": (4.0, 8.0, 16.0), "weight": (1.0, 3.0, 10.0)},
    "hot-refresh": {"temperature": (0.05, 0.1, 0.2), "weight": (0.3, 1.0, 3.0)},
}


def grid() -> Iterator[tuple[str, Options]]:
    """All points: objective, options."""
    for objective, values in GRID.items():
        for point in product(*values.values()):
            yield objective, dict(zip(values, point, strict=True))


def name_of(objective: str, options: Options) -> str:
    """As in the results and in the table."""
    return ", ".join([objective, *(f"{key} {value:g}" for key, value in options.items())])


def of(entries: Mapping[str, Entry], name: str) -> list[Entry]:
    """The entries of a point, one of each seed."""
    return [entry for key, entry in entries.items() if key.rpartition("/")[0] == name]


def choose(entries: Mapping[str, Entry], objective: str) -> Options:
    """The options of the greatest new/old mAP, mean over seeds, whatever they cost: the best chance to fit."""
    points = [options for kind, options in grid() if kind == objective]
    return max(
        points, key=lambda options: spread(e["new/old"]["map"] for e in of(entries, name_of(objective, options))).mean
    )
