"""What one update did to the users of a classifier: how much broke, where, and which samples, worst first."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .._arrays import as_numpy
from ..flips import FlipCounts, flip_outcomes, read_groups, read_target, tally
from .statistics import Interval, clopper_pearson, mcnemar

SCHEMA = "graceful_fast.update_report/1"

_BLOCK = 1 << 22  # scores of broken samples that are ranked at once


@dataclass(frozen=True)
class SliceFlips:
    """The flips among the samples of one class, or of one group."""

    name: str
    key: Any
    """The class's index, or the group as given."""
    flips: FlipCounts


class BrokenSample(NamedTuple):
    """A sample that was right before and is wrong now."""

    row: int
    name: str | None
    """From `inputs`."""
    target: int
    old: int
    """What it was predicted as before; with `topk` above 1 not always the target."""
    new: int
    margin: float | None
    """New score of the target minus its best rival; None for predicted classes."""


class Confusion(NamedTuple):
    """How many samples of class `target` broke by being taken for class `new`."""

    target: int
    new: int
    samples: int


@dataclass(frozen=True)
class UpdateReport:
    """What an update did; every share is of all samples unless it says otherwise."""

    flips: FlipCounts
    topk: int
    nfr_interval: Interval
    """Clopper-Pearson interval of the NFR."""
    mcnemar_p: float
    """Exact two-sided p-value that the accuracies are the same; it informs and decides nothing."""
    per_class: tuple[SliceFlips, ...]
    """Classes that occur among the labels: most broken samples first, then highest share, then index."""
    per_group: tuple[SliceFlips, ...]
    """The same of the groups; empty without groups."""
    broken: tuple[BrokenSample, ...]
    """At most `max_examples`: smallest margin first (by row without scores), then by row."""
    confusions: tuple[Confusion, ...]
    """Most frequent first, over all broken samples."""
    class_names: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def accuracy_old(self) -> float:
        """Share of samples that the old model gets right (at `topk`)."""
        return 1 - self.flips.error_old

    @property
    def accuracy_new(self) -> float:
        """Share of samples that the new model gets right (at `topk`)."""
        return 1 - self.flips.error_new

    def class_name(self, index: int) -> str:
        """The name of a class, or its index where it has none."""
        return self.class_names[index] if self.class_names and 0 <= index < len(self.class_names) else str(index)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values in the schema `graceful_fast.update_report/1`: None where a rate is NaN."""
        interval = self.nfr_interval
        return {
            "schema": SCHEMA,
            "kind": "classification",
            "topk": self.topk,
            "accuracy": {"old": _finite(self.accuracy_old), "new": _finite(self.accuracy_new)},
            "flips": _flips_dict(self.flips),
            "nfr_interval": {"lower": interval.lower, "upper": interval.upper, "confidence": interval.confidence},
            "mcnemar_p": self.mcnemar_p,
            "per_class": [{"class": s.key, "name": s.name, **_flips_dict(s.flips)} for s in self.per_class],
            "per_group": [{"group": s.key, **_flips_dict(s.flips)} for s in self.per_group],
            "confusions": [confusion._asdict() for confusion in self.confusions],
            "broken": [
                {
                    **sample._asdict(),
                    "margin": _finite(sample.margin),
                    "target_name": self.class_name(sample.target),
                    "old_name": self.class_name(sample.old),
                    "new_name": self.class_name(sample.new),
                }
                for sample in self.broken
            ],
            "negative_indices": np.asarray(self.flips.negative_indices).tolist(),
        }

    def to_json(self) -> str:
        """The report as JSON, in the schema `graceful_fast.update_report/1`: null where a rate is NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_html(self, *, title: str = "What the update broke") -> str:
        """The report as one self-contained HTML page (no scripts, no network); needs jinja2.

        Samples whose name in `inputs` is an image file are shown as pictures.
        """
        from .page import render

        return render(self, title)


def compare_classifiers(
    old: Any,
    new: Any,
    target: Any,
    *,
    topk: int = 1,
    classes: Sequence[str] | None = None,
    groups: Any = None,
    inputs: Sequence[Any] | None = None,
    confidence: float = 0.95,
    max_examples: int = 100,
) -> UpdateReport:
    """Report what replacing one classifier by another breaks and fixes.

    A sample broke if it is right under `old` and wrong under `new`, as `graceful_fast.count_flips` defines it. Worst
    are the broken samples whose label has the smallest margin: new score of the label minus the best other score.

    Args:
        old: (N, C_old) scores or (N,) predicted classes, as `graceful_fast.count_flips` takes them.
        new: the same of the new model.
        target: (N,) integer labels, 0 or more.
        topk: right means that fewer than `topk` classes are better than the label.
        classes: names of the classes 0, 1, ...; at least as many as there are classes.
        groups: (N,) integers or strings, for flips per group.
        inputs: N names or paths of the samples; image files are shown in the HTML report.
        confidence: of the interval of the NFR, above 0, below 1.
        max_examples: broken samples to list, 0 or more; `flips.negative_indices` always holds all.

    Returns:
        UpdateReport: `.flips`, `.nfr_interval`, `.mcnemar_p`, `.per_class`, `.per_group`, `.broken` (worst first),
        `.confusions`; `.to_json()`, `.to_html()`.

    Raises:
        ValueError: shapes that do not match, a NaN score, a label, `topk` or an option out of range; too few names.
        TypeError: a dtype that `graceful_fast.count_flips` refuses, a `topk` or `max_examples` that is no integer.

    Source: Yan et al., "Positive-Congruent Training", CVPR 2021, eq. 2 and 11, for the rates.

    Example:
        >>> import numpy as np
        >>> old, new, target = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 1]), np.array([0, 1, 2, 1])
        >>> report = compare_classifiers(old, new, target, classes=["cat", "dog", "owl"])
        >>> [(sample.row, report.class_name(sample.new)) for sample in report.broken]
        [(2, 'dog')]
        >>> report.mcnemar_p
        1.0
    """
    if not hasattr(max_examples, "__index__"):
        raise TypeError(f"max_examples: expected an integer, got {type(max_examples).__name__}")
    if isinstance(max_examples, bool) or max_examples < 0:
        raise ValueError(f"max_examples: expected 0 or more, got {max_examples}")
    labels = read_target(target)
    outcome = flip_outcomes(old, new, labels, topk=topk)
    models = tuple(_plain(model, name) for name, model in (("old", old), ("new", new)))
    names = _read_names(classes, labels, models)
    if inputs is not None and len(inputs) != len(labels):
        raise ValueError(f"inputs: expected {len(labels)} names as target, got {len(inputs)}")
    flips = tally(outcome, None if groups is None else read_groups(groups, len(labels)))
    per_class = tally(outcome, labels).by_group
    rows = flips.negative_indices
    top_old, _ = _predictions(models[0], rows, labels)
    top_new, margins = _predictions(models[1], rows, labels)
    order = np.arange(len(rows)) if margins is None else np.argsort(margins, kind="stable")
    return UpdateReport(
        flips=flips,
        topk=topk,
        nfr_interval=clopper_pearson(flips.negative, flips.total, confidence=confidence),
        mcnemar_p=mcnemar(flips.negative, flips.positive),
        per_class=_worst_first(SliceFlips(names[i] if names else str(i), i, of) for i, of in per_class.items()),
        per_group=_worst_first(SliceFlips(str(name), name, of) for name, of in flips.by_group.items()),
        broken=tuple(
            BrokenSample(
                row=int(rows[i]),
                name=None if inputs is None else str(inputs[rows[i]]),
                target=int(labels[rows[i]]),
                old=int(top_old[i]),
                new=int(top_new[i]),
                margin=None if margins is None else float(margins[i]),
            )
            for i in order[:max_examples].tolist()
        ),
        confusions=_confusions(labels[rows], top_new),
        class_names=names,
    )


def _plain(model: Any, name: str) -> Any:
    """A torch tensor (of any device) as it is, anything else as numpy: only the rows that broke are read again."""
    return model.detach() if hasattr(model, "detach") else as_numpy(model, name)


def _read_names(classes: Sequence[str] | None, labels: np.ndarray, models: tuple[Any, ...]) -> tuple[str, ...] | None:
    if classes is None:
        return None
    known = [
        model.shape[1] if model.ndim == 2 else int(model.max(initial=-1)) + 1 for model in map(_numpy_if_1d, models)
    ]
    needed = max(*known, int(labels.max(initial=-1)) + 1)
    if len(classes) < needed:
        raise ValueError(f"classes: expected a name for each of {needed} classes, got {len(classes)}")
    return tuple(str(name) for name in classes)


def _numpy_if_1d(model: Any) -> Any:
    return as_numpy(model, "predictions") if model.ndim == 1 else model


def _predictions(model: Any, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The predicted class of the given rows, and with scores the margin of the label (-inf for an unknown class)."""
    if model.ndim == 1:
        return as_numpy(model, "predictions")[rows].astype(np.int64), None
    top, margin = np.empty(len(rows), np.int64), np.empty(len(rows))
    step = max(1, _BLOCK // max(1, model.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        scores = as_numpy(model[rows[block]], "scores").astype(np.float64)
        label = labels[rows[block]]
        top[block] = scores.argmax(1)
        known = np.flatnonzero(label < scores.shape[1])
        own = np.full(len(scores), -np.inf)
        own[known] = scores[known, label[known]]
        scores[known, label[known]] = -np.inf
        rival = scores.max(1)
        # Equal scores have no margin; without this line two infinite ones would have none that is a number.
        margin[block] = np.subtract(own, rival, out=np.zeros(len(scores)), where=own != rival)
    return top, margin


def _worst_first(slices: Any) -> tuple[SliceFlips, ...]:
    return tuple(sorted(slices, key=lambda part: (-part.flips.negative, -part.flips.nfr)))


def _confusions(target: np.ndarray, new: np.ndarray) -> tuple[Confusion, ...]:
    pairs, counts = np.unique(np.stack([target, new], 1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple(Confusion(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order.tolist())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _flips_dict(flips: FlipCounts) -> dict[str, Any]:
    counts = {name: getattr(flips, name) for name in ("total", "both_correct", "negative", "positive", "both_wrong")}
    rates = {name: _finite(getattr(flips, name)) for name in ("nfr", "pfr", "relative_nfr", "error_old", "error_new")}
    return counts | rates
