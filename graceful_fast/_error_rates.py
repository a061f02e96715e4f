"""Exact thresholds among the scores of all pairs, from histograms of one scan: what error rates are made of.

A threshold is the largest score at which enough pairs are accepted. A sample of pairs says within which bins of the
histogram it will lie; the scan counts every pair by its bin, keeps those bins' pairs alone, and float64 settles those
nearest to each threshold. A threshold that the sample misses, or too many scores in its bins, costs more passes, each
over a narrower range of exact scores: down to a single float64, whatever the data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._brackets import BINS, Grid, brackets, merge, sampled
from ._pairs import Binned, Pairs

Counts = np.ndarray  # (2, ...) int64: impostors, genuine
Reached = Callable[[Counts], Any]  # of the accepted: are they enough? Once true, true for every lower threshold.


class Threshold(NamedTuple):
    """A score, the pairs that are strictly better, and those that are at least as good."""

    score: float
    better: Counts
    accepted: Counts


@dataclass(frozen=True)
class Curve:
    """Impostors and genuine pairs by score, from the best down: of bins, or of distinct scores where pairs are few."""

    counts: Counts

    @property
    def totals(self) -> Counts:
        """Of both kinds."""
        return np.asarray(self.counts.sum(1))

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


def thresholds(
    pairs: Pairs, fars: list[float], targets: Callable[[Counts], list[Reached | None]]
) -> tuple[Curve, list[Threshold | None]]:
    """The curve, and the threshold of each target: `targets` makes them of the numbers of impostor and genuine pairs.

    `fars`: about which false accept rates the targets aim at; the last target is the one where FAR = FRR.
    """
    if pairs.few:
        return _among_all(pairs, targets)
    sample = sampled(pairs)
    grid = Grid.around(sample)
    keep = merge([grid.bins_of(*bracket) for bracket in brackets(sample, fars)])
    found = pairs.histogram(*grid, keep)
    curve = Curve(found.counts[:, ::-1])
    result: list[Threshold | None] = []
    for target in targets(curve.totals):
        threshold = None
        if target is not None:
            place = BINS - 1 - int(np.argmax(target(curve.counts.cumsum(1))))
            threshold = _near(pairs, target, place, found, keep) or narrowed(
                pairs, target, *grid.edges(place, found.margin)
            )
        result.append(threshold)
    return curve, result


def _near(pairs: Pairs, target: Reached, place: int, found: Binned, keep: np.ndarray) -> Threshold | None:
    """The threshold whose scan score is in bin `place`, if all pairs that could have its exact score are kept.

    Threshold and pairs are each within the margin of their places: pairs beyond twice the margin are on their sides.
    """
    if not found.complete or not found.margin < BINS:
        return None
    first = max(0, math.floor(place - 2 * found.margin))
    last = min(BINS - 1, math.floor(place + 1 + 2 * found.margin))
    if not any(begin <= first and last <= end for begin, end in keep):
        return None
    low, high = -np.inf if first == 0 else first, np.inf if last == BINS - 1 else last + 1
    near = np.flatnonzero((found.places >= low) & (found.places < high))
    keys = pairs.keys(*np.divmod(found.numbers[near], len(pairs.b)))
    above = found.counts[:, last + 1 :].sum(1)
    return among(target, *_ranked(keys, found.kinds[near]), above)


def _among_all(pairs: Pairs, targets: Callable[[Counts], list[Reached | None]]) -> tuple[Curve, list[Threshold | None]]:
    """The same from the exact score of every pair."""
    first, last = _FULL
    found = pairs.between(first, _shift(first, last, _FEWEST_BINS), _FEWEST_BINS, pairs.number)
    scores, accepted = _ranked(found.keys, found.kinds)
    curve = Curve(np.diff(accepted, axis=1, prepend=0))
    nothing = np.zeros(2, np.int64)
    return curve, [target and among(target, scores, accepted, nothing) for target in targets(curve.totals)]


def among(target: Reached, scores: np.ndarray, accepted: Counts, above: Counts) -> Threshold | None:
    """The target's threshold if it is one of these scores, as `_ranked` gives them, with `above` better than all."""
    accepted = accepted + above[:, None]
    if not len(scores) or target(above) or not target(accepted[:, -1]):
        return None
    at = int(np.argmax(target(accepted)))
    return Threshold(float(scores[at]) + 0.0, accepted[:, at - 1] if at else above, accepted[:, at])  # never -0.0


def narrowed(pairs: Pairs, target: Reached, low: float, high: float) -> Threshold:
    """The target's threshold by passes over exact scores, each over a part of the range of the one before."""
    largest = np.finfo(float).max
    first, last = (int(ordered(np.clip(end, -largest, largest))) for end in (low, high))
    while True:
        shift = _shift(first, last, BINS)
        found = pairs.between(first, shift, BINS, pairs.plan.kept)
        counts = found.counts
        accepted = counts[:, ::-1].cumsum(1)
        at = int(np.argmax(target(accepted)))
        place = BINS - 1 - at
        if place in (0, BINS - 1):  # not in the range after all
            first, last = _FULL
        elif found.complete:
            threshold = among(target, *_ranked(found.keys, found.kinds), counts[:, -1])
            assert threshold is not None
            return threshold
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


_FEWEST_BINS = 1 << 12  # that cover all float64 while their number times their width stays below 2^64
_FULL = (int(ordered(-np.finfo(float).max)), int(ordered(np.finfo(float).max)))


def _shift(first: int, last: int, bins: int) -> int:
    """So that all bins but two cover a range of ordered values."""
    return max(0, -(-(last - first + 1) // (bins - 2)) - 1).bit_length()


def _ranked(keys: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, Counts]:
    """The distinct scores from the best down, and how many impostors and genuine pairs are at least as good as each."""
    scores, genuine = np.unique(keys)[::-1], kinds == 1
    worse = [np.searchsorted(np.sort(keys[kind]), scores, "left") for kind in (~genuine, genuine)]
    return scores, np.array([[len(genuine) - genuine.sum()], [genuine.sum()]]) - np.stack(worse)
