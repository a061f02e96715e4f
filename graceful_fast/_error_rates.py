"""Exact thresholds among the scores of all pairs, from histograms of one scan: what error rates are made of.

A threshold is the largest score at which enough pairs are accepted. A sample of pairs says within which bins of the
histogram it will lie; the scan counts every pair by its bin, keeps the exact scores of those bins alone, and so settles
all thresholds in one pass. A threshold that the sample misses, or too many scores in its bins, costs more passes, each
over a narrower range of exact scores: down to a single float64, whatever the data.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _ops
from ._positives import Matches
from .search import raise_fault

if TYPE_CHECKING:
    import torch

Counts = np.ndarray  # (2, ...) int64: impostors, genuine
Reached = Callable[[Counts], Any]  # of the accepted: are they enough? Once true, true for every lower threshold.

_BINS = 1 << 16  # 2 x 256 KiB of counters for each thread stay in L2
_FEW = 1 << 20  # pairs whose scores are simply all kept
_KEPT = 1 << 24  # exact scores kept at most: 150 MB
_SAMPLE = 1 << 19  # pairs, of each kind
_DEVIATIONS = 4.5  # a bracket this wide misses once in 100,000 times, and then costs a pass


class Pairs(NamedTuple):
    """Rows of `a` with rows of `b`, or every two rows of `a` once where `within`; pairs of one id are left out."""

    a: "torch.Tensor"
    b: "torch.Tensor"
    metric: str
    labels: tuple["torch.Tensor", "torch.Tensor"]
    ids: tuple["torch.Tensor | None", "torch.Tensor | None"]
    within: bool

    def checked(self, found: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a scan found, as numpy; ValueError for what is wrong with the data."""
        *arrays, status = found
        raise_fault(status, self.a, self.b, names=("a", "b"))
        return tuple(array.numpy() for array in arrays)


class Threshold(NamedTuple):
    """A score, the pairs that are strictly better, and those that are at least as good."""

    score: float
    better: Counts
    accepted: Counts


class Curve(NamedTuple):
    """Impostors and genuine pairs by score, from the best down: of bins, or of distinct scores where pairs are few."""

    counts: Counts

    @property
    def totals(self) -> Counts:
        """Of both kinds."""
        return self.counts.sum(1)

    def area(self) -> float:
        """P(genuine better than impostor) + P(equal) / 2; what shares a bin counts as equal."""
        impostors, genuine = self.counts.astype(np.float64)
        worse = impostors.sum() - impostors.cumsum()
        with np.errstate(invalid="ignore"):
            return float((genuine * (worse + impostors / 2)).sum() / (impostors.sum() * genuine.sum()))

    def trade_off(self, points: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """FAR ascending and FRR, at about as many thresholds, equally spaced in log FAR."""
        accepted = np.concatenate([np.zeros((2, 1), np.int64), self.counts.cumsum(1)], axis=1)
        far = accepted[0]
        wanted = np.geomspace(1, far[-1], points) if far[-1] else np.zeros(0)
        last_without = np.searchsorted(far, 0, "right") - 1
        places = np.unique([last_without, *np.searchsorted(far, np.floor(wanted)), far.shape[0] - 1])
        with np.errstate(invalid="ignore"):
            return far[places] / far[-1], 1 - accepted[1][places] / accepted[1][-1]


def thresholds(pairs: Pairs, fars: list[float], targets: Callable[[Counts], list[Reached | None]]) -> Any:
    """The curve, and the threshold of each target: `targets` makes them of the numbers of impostor and genuine pairs.

    `fars`: about which false accept rates the targets aim at, the last being that where FAR = FRR.
    """
    count = len(pairs.a) * (len(pairs.a) - 1) // 2 if pairs.within else len(pairs.a) * len(pairs.b)
    if count <= _FEW:
        every = np.array([[0, _BINS - 1]])
        _, keys, kinds, _, _ = _scan(pairs, 0.0, 1.0, every, count)
        order = np.argsort(-keys, kind="stable")
        keys, genuine = keys[order], kinds[order] & 1
        curve = Curve(np.add.reduceat(np.stack([1 - genuine, genuine]).astype(np.int64), _firsts(keys), axis=1))
        if not len(keys):
            curve = Curve(np.zeros((2, 0), np.int64))
        nothing = np.zeros(2, np.int64)
        return curve, [target and among(target, keys, genuine, nothing) for target in targets(curve.totals)]
    sample = _sample(pairs)
    low, high = (float(end) for end in (min(s.min(initial=np.inf) for s in sample), max(s.max(initial=-np.inf) for s in sample)))
    if not low < high:
        low, high = (low - 1, low + 1) if np.isfinite(low) else (-1.0, 1.0)
    width = (high - low) * 1.1 / _BINS
    origin = low - (high - low) * 0.05
    brackets = [_bracket(sample, far) for far in fars] + [_bracket_of_equal(sample)]
    places = [[_bin(end, origin, width) for end in bracket] for bracket in brackets]
    keep, of_bracket = _merge(places)
    counts, keys, kinds, margin, kept = _scan(pairs, origin, width, keep, _KEPT)
    curve = Curve(counts[:, ::-1])
    found: list[Threshold | None] = []
    for target, merged in zip(targets(curve.totals), of_bracket, strict=True):
        if target is None:
            found.append(None)
            continue
        result = None
        if kept <= _KEPT:
            first, last = keep[merged]
            mine = kinds >> 1 == merged
            order = np.argsort(-keys[mine], kind="stable")
            result = among(target, keys[mine][order], (kinds[mine] & 1)[order], counts[:, last + 1 :].sum(1))
            if result is not None:
                floor = -np.inf if first == 0 else origin + first * width + margin
                ceiling = np.inf if last == _BINS - 1 else origin + (last + 1) * width - margin
                result = result if floor <= result.score < ceiling else None
        if result is None:
            place = _BINS - 1 - int(np.argmax(target(curve.counts.cumsum(1))))
            low = -np.inf if place == 0 else origin + place * width - margin
            high = np.inf if place == _BINS - 1 else origin + (place + 1) * width + margin
            result = narrowed(pairs, target, low, high)
        found.append(result)
    return curve, found


def among(target: Reached, keys: np.ndarray, genuine: np.ndarray, above: Counts) -> Threshold | None:
    """The target's threshold if it is one of `keys`, sorted from the best, with `above` better than all of them."""
    if not len(keys) or target(above):
        return None
    firsts = _firsts(keys)
    kinds = np.stack([1 - genuine.astype(np.int64), genuine])
    accepted = above[:, None] + np.add.reduceat(kinds, firsts, axis=1).cumsum(1)
    reached = target(accepted)
    at = int(np.argmax(reached))
    if not reached[at]:
        return None
    return Threshold(float(keys[firsts[at]]), accepted[:, at - 1] if at else above, accepted[:, at])


def narrowed(pairs: Pairs, target: Reached, low: float, high: float) -> Threshold:
    """The target's threshold by passes over exact scores, each over a part of the range of the one before."""
    full = (int(ordered(-np.finfo(float).max)), int(ordered(np.finfo(float).max)))
    first, last = (max(full[0], int(ordered(low))), min(full[1], int(ordered(high))))
    while True:
        shift = max(0, -(-(last - first + 1) // (_BINS - 2)) - 1).bit_length()
        counts, keys, genuine, kept = pairs.checked(
            _ops.scan_between(
                pairs.a, pairs.b, pairs.metric, pairs.labels, pairs.ids, pairs.within, first, shift, _BINS, _KEPT
            )
        )
        accepted = counts[:, ::-1].cumsum(1)
        at = int(np.argmax(target(accepted)))
        place = _BINS - 1 - at
        if place in (0, _BINS - 1):  # not in the range after all
            first, last = full
        elif kept <= _KEPT:
            order = np.argsort(-keys, kind="stable")
            return among(target, keys[order], genuine[order], counts[:, -1])  # type: ignore[return-value]
        elif shift == 0:
            return Threshold(float(unordered(first + place - 1)), accepted[:, at - 1], accepted[:, at])
        else:
            first += (place - 1) << shift
            last = first + (1 << shift) - 1


def ordered(key: Any) -> Any:
    """float64 as integers in the same order; -0.0 and 0.0 are one."""
    bits = np.asarray(key, np.float64).view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def unordered(value: int) -> Any:
    """The float64 of such an integer."""
    return np.array(value if value >= 0 else -(2**63) - value, np.int64).view(np.float64)


def _scan(pairs: Pairs, origin: float, width: float, keep: np.ndarray, capacity: int) -> Any:
    import torch

    found = _ops.scan_histogram(
        pairs.a,
        pairs.b,
        pairs.metric,
        pairs.labels,
        pairs.ids,
        pairs.within,
        origin,
        width,
        _BINS,
        torch.from_numpy(keep),
        capacity,
    )
    counts, keys, kinds, margin, kept = pairs.checked(found)
    return counts, keys, kinds, float(margin), kept


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Where each distinct value of a sorted array starts."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))


def _sample(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Scores of some impostor and some genuine pairs, from the best down."""
    import torch

    rng = np.random.default_rng(0)
    labels = [side.numpy() for side in pairs.labels]
    rows, columns = rng.integers(0, len(pairs.a), _SAMPLE), rng.integers(0, len(pairs.b), _SAMPLE)
    different = labels[0][rows] != labels[1][columns]
    same = Matches(*labels)
    before = np.cumsum(same.counts)
    drawn = rng.integers(0, before[-1], _SAMPLE) if before[-1] else np.zeros(0, np.int64)
    of_row = np.searchsorted(before, drawn, "right")
    mates = same.order[same.begin[of_row] + drawn - (before[of_row] - same.counts[of_row])]
    samples = []
    for i, j in ((rows[different], columns[different]), (of_row, mates)):
        allowed = np.ones(len(i), dtype=bool)
        if pairs.within:
            allowed &= i != j
        if pairs.ids[0] is not None:
            allowed &= pairs.ids[0].numpy()[i] != pairs.ids[1].numpy()[j]  # type: ignore[union-attr]
        picked = (torch.from_numpy(side[allowed]) for side in (i, j))
        keys, _ = pairs.checked(_ops.scan_pairs(pairs.a, pairs.b, pairs.metric, *picked))
        samples.append(np.sort(keys)[::-1])
    return samples[0], samples[1]


def _bracket(sample: tuple[np.ndarray, np.ndarray], far: float) -> tuple[float, float]:
    """Scores between which the threshold of this FAR is to be expected."""
    count = len(sample[0])
    spread = _DEVIATIONS * np.sqrt(count * far * (1 - far)) + 1
    upper, lower = int(count * far - spread), int(count * far + spread + _DEVIATIONS**2)
    return (
        float(sample[0][lower]) if lower < count else -np.inf,
        float(sample[0][upper]) if upper >= 0 and count else np.inf,
    )


def _bracket_of_equal(sample: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Scores between which FAR = FRR is to be expected."""
    impostors, genuine = (side[::-1] for side in sample)
    if not len(impostors) or not len(genuine):
        return -np.inf, np.inf
    scores = np.unique(np.concatenate(sample))
    far = 1 - np.searchsorted(impostors, scores, "left") / len(impostors)
    frr = np.searchsorted(genuine, scores, "left") / len(genuine)
    rate = far[np.argmin(np.abs(far - frr))]
    parts = 1 / len(impostors) + 1 / len(genuine)
    spread = _DEVIATIONS * np.sqrt(max(rate * (1 - rate), parts) * parts) + parts
    low, high = scores[far - frr > spread], scores[far - frr < -spread]  # FAR - FRR falls with the score
    return float(low[-1]) if len(low) else -np.inf, float(high[0]) if len(high) else np.inf


def _bin(score: float, origin: float, width: float) -> int:
    return int(np.clip(np.floor((np.clip(score, -1e300, 1e300) - origin) / width), 0, _BINS - 1))


def _merge(places: list[list[int]]) -> tuple[np.ndarray, list[int]]:
    """Disjoint ranges of bins that cover the given ones, ascending, and which of them each given one lies in."""
    merged: list[list[int]] = []
    for first, last in sorted(places):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    of = [next(i for i, (first, last) in enumerate(merged) if first <= place[0] <= last) for place in places]
    return np.array(merged, np.int64), of
