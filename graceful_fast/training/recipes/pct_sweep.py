"""Hyper-parameters of positive-congruent training, measured on validation images, with seeds that are not reported."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..results import Entry, Results, spread
from .pct_settings import AVERAGED, SETTINGS, Options

SCHEMA = "graceful_fast.train.pct.sweep/1"
FIRST_SEED, SEEDS = 100, 2
"""Of the sweep; the reported seeds begin at 0."""

ERROR_ALLOWED = 0.005
"""How much more error than the plain update's an option may cost."""

ALPHA_BETA = ((0, 1), (1, 0), (1, 1), (1, 2), (1, 5), (1, 10), (1, 20))  # the paper's
PUBLISHED_CODE = ((0, 1), (1, 5))  # where its broadcast is compared with the formula
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
ONLY_RIGHT: Options = {"alpha": 0.0, "beta": 5.0, "temperature": 4.0}
"""Nothing is kept where the old model is wrong, and its small logits count less."""


class Point(NamedTuple):
    """One choice of hyper-parameters in one setting."""

    setting: str
    objective: str
    options: Options

    @property
    def label(self) -> str:
        """Objective and options, as in a table."""
        return ", ".join([self.objective, *(f"{key.replace('_', ' ')} {value}" for key, value in self.options.items())])

    @property
    def name(self) -> str:
        """As in the results."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.setting}/{self.objective}/{options}"


def grid() -> Iterator[Point]:
    """All points, the references first in each setting."""
    for setting in SETTINGS:
        yield from (Point(setting, name, {}) for name in ("reseed", "plain"))
        yield from (Point(setting, "naive", {"weight": weight}) for weight in (1.0, 5.0))
        yield from (Point(setting, "FD-KL", {"distillation_weight": weight}) for weight in WEIGHTS)
        yield from (Point(setting, "FD-LM", {"distillation_weight": weight}) for weight in WEIGHTS if weight != 0.3)
        yield from (Point(setting, "FD-KL", {**ONLY_RIGHT, "distillation_weight": weight}) for weight in (0.1, 1.0))
    yield Point("same architecture", "ELODI", {})
    for weight in (0.03, 0.1):
        options = {"cross_entropy_weight": 1.0, "distillation_weight": weight}
        yield Point("same architecture", "ELODI", options)
    for setting in ("same architecture", "more data"):
        for alpha, beta in ALPHA_BETA if setting == "same architecture" else PUBLISHED_CODE:
            options = {"alpha": alpha, "beta": beta, "distillation_weight": 0.1}
            yield Point(setting, "FD-KL", options)
            if (alpha, beta) in PUBLISHED_CODE:
                yield Point(setting, AVERAGED, options)


def of(results: Results, point: Point) -> list[Entry]:
    """The entries of a point, one of each seed."""
    return [entry for name, entry in results.entries.items() if name.rpartition("/")[0] == point.name]


def choose(results: Results, setting: str, objective: str) -> Options:
    """The options of that objective for that setting, by `least_flips`."""
    measured = [(p.options, of(results, p)) for p in grid() if (p.setting, p.objective) == (setting, objective)]
    return least_flips(measured, of(results, Point(setting, "plain", {})))


def least_flips(measured: Iterable[tuple[Options, Sequence[Entry]]], plain: Sequence[Entry]) -> Options:
    """The options of the least NFR among those whose error is at most `ERROR_ALLOWED` above plain; means over seeds.

    Where none keeps to that, the options of the least error.

    Args:
        measured: Options and their entries; those without entries are left out.
        plain: The plain update's entries.
    """
    bound = _mean(plain, "error_new_all") + ERROR_ALLOWED
    means = [
        (_mean(entries, "error_new_all"), _mean(entries, "nfr"), options) for options, entries in measured if entries
    ]
    allowed = [(nfr, options) for error, nfr, options in means if error <= bound]
    ranked = allowed or [(error, options) for error, _, options in means]
    return min(ranked, key=lambda pair: pair[0])[1]


def _mean(entries: Sequence[Entry], key: str) -> float:
    return spread(entry[key] for entry in entries).mean
