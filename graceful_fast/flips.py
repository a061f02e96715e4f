"""Flips between two classifiers: which samples broke, which were fixed, the rates. Needs neither torch nor `_C`."""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import as_numpy, as_tensor, like

_SCORES = ("float16", "bfloat16", "float32", "float64")

# Below this, numpy needs less time for the scores than Python for importing torch (about a second each).
_WORTH_IMPORTING_TORCH = 1 << 28  # bytes

_BLOCK = 1 << 22  # scores that the definition compares at once: the temporaries stay in tens of MiB


@dataclass(frozen=True)
class FlipCounts:
    """What became of the samples: right or wrong under the old model, right or wrong under the new one.

    Rates are shares of `total`, NaN when there are no samples. NFR - PFR = ER_new - ER_old always.
    """

    both_correct: int
    negative: int
    """Right before, wrong now: these samples broke."""
    positive: int
    """Wrong before, right now."""
    both_wrong: int
    negative_indices: Any = field(default=None, repr=False, compare=False)
    """int64, ascending: the rows that broke, counted in the whole input even within a group."""
    by_group: dict[Any, "FlipCounts"] = field(default_factory=dict, hash=False)

    @property
    def total(self) -> int:
        """Number of samples."""
        return self.both_correct + self.negative + self.positive + self.both_wrong

    @property
    def nfr(self) -> float:
        """Negative flip rate: samples that broke / samples."""
        return _ratio(self.negative, self.total)

    @property
    def pfr(self) -> float:
        """Positive flip rate: samples that were fixed / samples."""
        return _ratio(self.positive, self.total)

    @property
    def error_old(self) -> float:
        """Error rate of the old model."""
        return _ratio(self.positive + self.both_wrong, self.total)

    @property
    def error_new(self) -> float:
        """Error rate of the new model."""
        return _ratio(self.negative + self.both_wrong, self.total)

    @property
    def relative_nfr(self) -> float:
        """NFR / ((1 - ER_old) * ER_new): 1 if the two models err independently, NaN if that divides by 0."""
        right_before = self.both_correct + self.negative
        wrong_now = self.negative + self.both_wrong
        # In whole numbers, so that nothing is rounded before the one division.
        return _ratio(self.negative * self.total, right_before * wrong_now)


def count_flips(old: Any, new: Any, target: Any, *, topk: int = 1, groups: Any = None) -> FlipCounts:
    """Count the samples that an update broke, fixed, and left as they were, in one pass over the scores.

    A sample is right at k if fewer than k classes are better than its label: a greater score, or an equal score and a
    smaller index. A negative flip is right under `old` and wrong under `new`; NFR = negative flips / samples, and
    relative NFR = NFR / ((1 - ER_old) * ER_new).

    Args:
        old: (N, C_old) scores, float16, bfloat16, float32 or float64, larger is better; or (N,) predicted classes, any
            integer dtype. torch, numpy, CuPy, or anything with `__dlpack__`. A predicted class that is no label of any
            sample (or negative: an abstention) is simply wrong.
        new: the same of the new model. C_new may differ from C_old; a model is wrong on a class that it does not know.
        target: (N,) labels, integers, 0 or more; with two score matrices, below max(C_old, C_new).
        topk: 1 or more, at most the number of classes; 1 when predicted classes are given.
        groups: (N,) integers or strings, for counts per group; None for none.

    Returns:
        FlipCounts: counts as int, rates as float, `negative_indices` of the kind and on the device of `old`, and
        `by_group` in ascending order of the groups. No samples: counts 0, rates NaN.

    Raises:
        ValueError: shapes that do not match, a NaN score, a label or `topk` out of range; names the argument and the
            first offending row.
        TypeError: a dtype that is none of the above, a `topk` that is no integer.

    Source: Yan et al., "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021, eq. 2 (NFR) and
    eq. 11 (relative NFR).

    Example:
        >>> import numpy as np
        >>> old, new, target = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 1]), np.array([0, 1, 2, 1])
        >>> flips = count_flips(old, new, target)
        >>> flips.both_correct, flips.negative, flips.positive, flips.both_wrong
        (2, 1, 1, 0)
        >>> flips.nfr, flips.negative_indices.tolist()
        (0.25, [2])
    """
    outcome = flip_outcomes(old, new, target, topk=topk)
    flips = tally(outcome, None if groups is None else read_groups(groups, len(outcome)))
    return _with_indices_like(flips, old)


def flip_outcomes(old: Any, new: Any, target: Any, *, topk: int = 1) -> np.ndarray:
    """(N,) uint8: bit 0 says that the old model is right, bit 1 that the new one is. Arguments as in `count_flips`."""
    labels = read_target(target)
    models = {"old": _read_model(old, "old", labels), "new": _read_model(new, "new", labels)}
    _check_topk(topk, models)
    _check_range(labels, models)
    scores = {name: model for name, model in models.items() if model.ndim == 2}
    outcome = _compiled(models["old"], models["new"], labels, topk) if len(scores) == 2 else None
    if outcome is None:
        old_right, new_right = (_right(model, labels, topk) for model in models.values())
        outcome = old_right | new_right << 1
    for name, flag in (("old", 4), ("new", 8)):
        if name in scores and len(rows := np.flatnonzero(outcome & flag)):
            raise ValueError(f"{name}: expected scores without NaN, got one in row {rows[0]}")
    return outcome


def tally(outcome: np.ndarray, groups: np.ndarray | None = None) -> FlipCounts:
    """Counts of the outcomes of `flip_outcomes`, as a whole and per group."""
    broken = np.flatnonzero(outcome == 1)
    by_group = {}
    if groups is not None and len(groups):
        names, group = np.unique(groups, return_inverse=True)
        counts = np.bincount(group * 4 + outcome, minlength=4 * len(names)).reshape(-1, 4)
        order = np.argsort(group[broken], kind="stable")
        indices = np.split(broken[order], np.cumsum(counts[:-1, 1]))
        by_group = {
            name: _counts(*row) for name, row in zip(names.tolist(), zip(counts, indices, strict=True), strict=True)
        }
    return _counts(np.bincount(outcome, minlength=4), broken, by_group)


def read_target(target: Any) -> np.ndarray:
    """(N,) labels as int64, all 0 or more."""
    labels = as_numpy(target, "target")
    if labels.dtype.kind not in "iub" and labels.size:
        raise TypeError(f"target: expected integers, got dtype {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"target: expected shape (N,), got {labels.shape}")
    wide = np.ascontiguousarray(labels, dtype=np.int64)  # a uint64 above the range of int64 turns negative
    if len(rows := np.flatnonzero(wide < 0)):
        raise ValueError(f"target: expected classes of 0 or more, got {labels[rows[0]]} in row {rows[0]}")
    return wide


def read_groups(groups: Any, n: int) -> np.ndarray:
    """(N,) groups as an array of integers or strings."""
    array = as_numpy(groups, "groups")
    if array.dtype.kind == "O" and all(isinstance(name, str) for name in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "iubUT" and array.size:
        raise TypeError(f"groups: expected integers or strings, got dtype {array.dtype}")
    if array.shape != (n,):
        raise ValueError(f"groups: expected shape ({n},) as target, got {array.shape}")
    return array


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


def _counts(outcomes: np.ndarray, broken: np.ndarray, by_group: dict[Any, FlipCounts] | None = None) -> FlipCounts:
    both_wrong, negative, positive, both_correct = outcomes.tolist()
    return FlipCounts(both_correct, negative, positive, both_wrong, broken, by_group or {})


def _with_indices_like(flips: FlipCounts, original: Any) -> FlipCounts:
    """`flips` with its indices as the kind of array that `original` is, on its device."""
    indices = like(flips.negative_indices, original)
    by_group = {name: _with_indices_like(group, original) for name, group in flips.by_group.items()}
    return FlipCounts(flips.both_correct, flips.negative, flips.positive, flips.both_wrong, indices, by_group)


def _dtype(array: Any) -> str:
    return str(array.dtype.name) if isinstance(array, np.ndarray) else str(array.dtype).removeprefix("torch.")


def _read_model(value: Any, name: str, labels: np.ndarray) -> Any:
    """(N, classes) scores or (N,) predicted classes: a torch tensor on its device, or a numpy array."""
    if hasattr(value, "detach"):
        model = value.detach()
    elif hasattr(value, "__cuda_array_interface__") and "torch" in sys.modules:
        model = as_tensor(value, name)
    else:
        model = as_numpy(value, name)
    shape, dtype = tuple(model.shape), _dtype(model)
    if len(shape) not in (1, 2) or shape[0] != len(labels):
        raise ValueError(
            f"{name}: expected as many rows as target, as (N, classes) scores or (N,) predicted classes, "
            f"got {shape} and target {labels.shape}"
        )
    if len(shape) == 2 and dtype not in _SCORES:
        raise TypeError(f"{name}: expected scores in {', '.join(_SCORES)}, got dtype {dtype} of shape {shape}")
    if len(shape) == 1 and not dtype.startswith(("int", "uint", "bool")) and shape[0]:
        raise TypeError(
            f"{name}: expected predicted classes as integers, got dtype {dtype} of shape {shape}; "
            "scores have shape (N, classes)"
        )
    return model


def _check_topk(topk: int, models: dict[str, Any]) -> None:
    if not hasattr(topk, "__index__"):
        raise TypeError(f"topk: expected an integer, got {type(topk).__name__}")
    if isinstance(topk, bool) or topk < 1:
        raise ValueError(f"topk: expected 1 or more, got {topk}")
    for name, model in models.items():
        if model.ndim == 1 and topk > 1:
            raise ValueError(
                f"topk: expected 1, as {name} is predicted classes of shape {tuple(model.shape)}, got {topk}"
            )
        if model.ndim == 2 and topk > model.shape[1] and len(model):
            raise ValueError(f"topk: expected at most the {model.shape[1]} classes of {name}, got {topk}")


def _check_range(labels: np.ndarray, models: dict[str, Any]) -> None:
    if any(model.ndim == 1 for model in models.values()):
        return  # predicted classes do not say how many there are
    classes = {name: model.shape[1] for name, model in models.items()}
    if len(rows := np.flatnonzero(labels >= max(classes.values()))):
        raise ValueError(
            f"target: expected classes below {max(classes.values())} (old knows {classes['old']}, "
            f"new {classes['new']}), got {labels[rows[0]]} in row {rows[0]}"
        )


def _compiled(old: Any, new: Any, labels: np.ndarray, topk: int) -> np.ndarray | None:
    """What the op says of two score matrices; None where it is not to be had, or not worth importing torch for."""
    devices = {"cpu" if isinstance(scores, np.ndarray) else str(scores.device) for scores in (old, new)}
    if (
        not len(labels)
        or len(devices) > 1
        or ("torch" not in sys.modules and old.nbytes + new.nbytes < _WORTH_IMPORTING_TORCH)
    ):
        return None
    try:
        from . import _ops
    except ImportError:  # no torch, or a source tree that was never built
        return None
    device = devices.pop()
    if device != "cpu" and not (device.startswith("cuda") and _ops.cuda):
        return None
    tensors = [as_tensor(old, "old"), as_tensor(new, "new")]
    rows = [scores if scores.stride(1) == 1 else scores.contiguous() for scores in tensors]
    outcome, _ = _ops.flips(rows[0], rows[1], as_tensor(labels, "target").to(device), topk)
    result: np.ndarray = outcome.cpu().numpy()
    return result


def _right(model: Any, labels: np.ndarray, topk: int) -> np.ndarray:
    """uint8 of one model: 1 right, 4 (alone) a NaN."""
    if model.ndim == 1:
        right: np.ndarray = as_numpy(model, "predictions") == labels
        return right.astype(np.uint8)
    outcome = _compiled(model, model, labels, topk)  # the second read of a row comes from the cache
    if outcome is not None:
        return outcome & 5
    outcome = np.empty(len(labels), np.uint8)
    step = max(1, _BLOCK // max(1, model.shape[1]))
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        outcome[rows] = _right_by_definition(model[rows], labels[rows], topk)
    return outcome


def _right_by_definition(scores: Any, labels: np.ndarray, topk: int) -> np.ndarray:
    """The definition, for numpy arrays and for torch tensors of any device."""
    classes: Any = np.arange(scores.shape[1])
    known = labels < len(classes)
    label: Any = np.where(known, labels, 0)[:, None]
    if isinstance(scores, np.ndarray):
        own = np.take_along_axis(scores, label, 1)
    else:
        import torch

        classes, label = (torch.from_numpy(array).to(scores.device) for array in (classes, label))
        own = scores.gather(1, label)
    better = ((scores > own) | ((scores == own) & (classes < label))).sum(1)
    nan = (scores != scores).any(1)
    right = known & (as_numpy(better, "scores") < topk)
    return np.where(as_numpy(nan, "scores"), 4, right).astype(np.uint8)
