"""Where thresholds are to be expected, by a sample of pairs: which pairs a scan of all should keep."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._positives import Matches

if TYPE_CHECKING:
    from ._pairs import Pairs

BINS = 1 << 16  # 2 x 256 KiB of counters for each thread stay in L2
_SAMPLE = 1 << 18  # impostors; genuine pairs a quarter as many
_DEVIATIONS = 4.5  # a bracket this wide misses once in 100,000 times, and then costs a pass

Sample = tuple[np.ndarray, np.ndarray]  # scores of some impostor and some genuine pairs, from the best down


class Grid(NamedTuple):
    """Bins of equal width; the first and the last take what lies beyond."""

    origin: float
    width: float

    @staticmethod
    def around(sample: Sample) -> "Grid":
        """Bins over the scores of a sample and a little more."""
        scores = np.concatenate(sample)
        low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 0.0)
        if not low < high:
            low, high = low - 1, low + 1
        width = max((high - low) / BINS * 1.1, float(np.finfo(float).tiny))  # of subnormal scores it could be 0
        return Grid(low - (high - low) / 20, width)

    def bins_of(self, low: float, high: float) -> tuple[int, int]:
        """The bins from one score to another; infinities are the first and the last."""
        with np.errstate(over="ignore"):
            first, last = ((np.array([low, high]) - self.origin) / self.width).clip(0, BINS - 1).astype(int)
        return int(first), int(last)

    def edges(self, place: int, margin: float) -> tuple[float, float]:
        """The scores where a bin begins and ends, `margin` bins further out; infinities for the first and the last."""
        low, high = (self.origin + self.width * (place + step) for step in (-margin, 1 + margin))
        return -np.inf if place == 0 else low, np.inf if place == BINS - 1 else high


def sampled(pairs: "Pairs") -> Sample:
    """Scores of pairs drawn with equal chances among the impostors, and among the genuine ones."""
    rng = np.random.default_rng(0)
    labels = [side.numpy() for side in pairs.labels]
    rows, columns = rng.integers(0, len(pairs.a), _SAMPLE), rng.integers(0, len(pairs.b), _SAMPLE)
    different = labels[0][rows] != labels[1][columns]
    same = Matches(*labels)
    before = np.cumsum(same.counts)
    drawn = rng.integers(0, before[-1], _SAMPLE // 4) if before[-1] else np.zeros(0, np.int64)
    of_row = np.searchsorted(before, drawn, "right")
    mates = same.order[same.begin[of_row] + drawn - (before[of_row] - same.counts[of_row])]

    def scores(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        allowed = i != j if pairs.within else np.ones(len(i), dtype=bool)
        if pairs.ids[0] is not None and pairs.ids[1] is not None:
            allowed &= pairs.ids[0].numpy()[i] != pairs.ids[1].numpy()[j]
        keys = pairs.keys(i[allowed], j[allowed])
        return np.sort(keys[np.isfinite(keys)])[::-1]  # bad data is the scan's to report

    return scores(rows[different], columns[different]), scores(of_row, mates)


def brackets(sample: Sample, fars: list[float]) -> list[tuple[float, float]]:
    """Scores between which the threshold of each FAR is to be expected, then those of FAR = FRR."""
    return [_of_rate(sample[0], far) for far in fars] + [_of_equal(*sample)]


def _of_rate(impostors: np.ndarray, far: float) -> tuple[float, float]:
    count = len(impostors)
    spread = _DEVIATIONS * np.sqrt(count * far * (1 - far)) + 1
    upper, lower = int(count * far - spread), int(count * far + spread + _DEVIATIONS**2)
    return (
        float(impostors[lower]) if lower < count else -np.inf,
        float(impostors[upper]) if upper > 0 and count else np.inf,
    )


def _of_equal(impostors: np.ndarray, genuine: np.ndarray) -> tuple[float, float]:
    if not len(impostors) or not len(genuine):
        return -np.inf, np.inf
    scores = np.unique(np.concatenate([impostors, genuine]))
    far = 1 - np.searchsorted(impostors[::-1], scores, "left") / len(impostors)
    frr = np.searchsorted(genuine[::-1], scores, "left") / len(genuine)
    rate = far[np.argmin(np.abs(far - frr))]
    parts = 1 / len(impostors) + 1 / len(genuine)
    spread = _DEVIATIONS * np.sqrt(max(rate * (1 - rate), parts) * parts) + parts
    low, high = scores[far - frr > spread], scores[far - frr < -spread]  # FAR - FRR falls with the score
    return float(low[-1]) if len(low) else -np.inf, float(high[0]) if len(high) else np.inf


def merge(ranges: list[tuple[int, int]]) -> np.ndarray:
    """(ranges, 2) int64: disjoint ranges of bins that cover the given ones, ascending."""
    merged: list[list[int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return np.array(merged, np.int64)
