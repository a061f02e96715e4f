"""Verification metrics from all pairs: TAR at a FAR with exact thresholds, EER, AUC, DET."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .search import Metric, as_embeddings, as_labels, check_choice, check_dims, label_pair

if TYPE_CHECKING:
    from ._error_rates import Counts, Reached, Threshold

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


class Det(NamedTuple):
    """Points of the detection error trade-off, FAR ascending; float64 arrays of one length, at most some 260."""

    far: np.ndarray
    frr: np.ndarray


@dataclass(frozen=True)
class VerificationMetrics:
    """How well a threshold on the score tells genuine pairs from impostors."""

    tar: dict[float, float]
    """{FAR: share of the genuine scores strictly better than the threshold}; NaN where FAR * impostors is below 1."""
    threshold: dict[float, float]
    """{FAR: the (m+1)-th best impostor score, m = floor(FAR * impostors)}; for "l2" squared distances."""
    eer: float
    """Equal error rate: where the ROC polygon crosses FAR = FRR."""
    auc: float
    """Area under the ROC: P(genuine better than impostor) + P(equal) / 2."""
    genuine: int
    """Pairs of one label."""
    impostor: int
    """Pairs of two labels."""
    det: Det = field(repr=False, compare=False)


def verification_metrics(
    a: Any,
    b: Any,
    a_labels: Any,
    b_labels: Any,
    *,
    metric: Metric = "cosine",
    far: float | Iterable[float] = FARS,
    a_ids: Any = None,
    b_ids: Any = None,
) -> VerificationMetrics:
    """TAR at each FAR, EER and AUC from the scores of all pairs of a row of `a` and a row of `b`.

    Pairs of one label are genuine, all others impostors. A threshold is exact: with m = floor(FAR * impostors), FAR as
    the decimal that it is written as, it is the (m+1)-th best impostor score in float64 (the scores of
    `graceful_fast.knn`); TAR is the share of genuine scores strictly better. One scan counts the pairs by score and
    keeps the few near the thresholds; no (Na, Nb) matrix is held.

    If `a` and `b` are the same set (equal embeddings, labels and ids in the same order, or `b` and `b_labels` None),
    each unordered pair counts once and no row is paired with itself. Both sides are arrays in memory.

    Args:
        a: (Na, D) embeddings, float16, bfloat16, float32, float64 or an integer dtype of 8 bits; Na may be 0.
        b: (Nb, D) embeddings, in any of these dtypes; None for the pairs within `a`.
        a_labels: (Na,) integers.
        b_labels: (Nb,) integers; None with `b`.
        metric: "cosine", "ip" (inner product) or "l2" (squared Euclidean distance).
        far: False accept rates, above 0 and below 1.
        a_ids: (Na,) integers, with `b_ids`: pairs of one id are left out.
        b_ids: (Nb,) integers; None with `b`.

    Returns:
        VerificationMetrics. Up to 2^20 pairs EER, AUC and DET are exact as well; beyond, EER still is, AUC and DET come
        from 65,536 bins between the scores' extremes. Without genuine pairs TAR, EER and AUC are NaN.

    Warns:
        UserWarning: a FAR that is below one impostor pair; its TAR and threshold are NaN.

    Raises:
        ValueError: shapes that do not match, a FAR out of range, an unknown option, NaN or infinity in an embedding, a
            zero vector under "cosine".
        TypeError: a wrong type or dtype.

    Source: ISO/IEC 19795-1 for FAR, FRR (= 1 - TAR), EER and DET.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[0.0], [1.0], [5.0], [5.5]], dtype=np.float32)
        >>> found = verification_metrics(rows, None, [0, 0, 1, 1], None, metric="l2", far=0.25)
        >>> found.genuine, found.impostor, found.threshold, found.tar
        (2, 4, {0.25: 20.25}, {0.25: 1.0})
    """
    check_choice("metric", metric, ("cosine", "ip", "l2"))
    rates = check_rates("far", far)
    pairs = read_pairs(a, b, a_labels, b_labels, metric, a_ids, b_ids)
    from ._error_rates import thresholds

    def targets(totals: "Counts") -> list["Reached | None"]:
        return [*(accepts(rate, totals) for rate in rates), crossing(totals)]

    curve, found = thresholds(pairs, [float(rate) for rate in rates], targets)
    impostor, genuine = curve.totals.tolist()
    for rate in (rate for rate, threshold in zip(rates, found, strict=False) if threshold is None):
        warnings.warn(
            f"far: {rate} of {impostor} impostor pairs is less than one pair: its TAR and threshold are NaN",
            stacklevel=2,
        )
    sign = -1 if metric == "l2" else 1
    with np.errstate(invalid="ignore"):
        return VerificationMetrics(
            tar={rate: _share(t, genuine) for rate, t in zip(rates, found, strict=False)},
            threshold={rate: sign * t.score if t else math.nan for rate, t in zip(rates, found, strict=False)},
            eer=_equal_error_rate(found[-1], curve.totals),
            auc=curve.area(),
            genuine=genuine,
            impostor=impostor,
            det=Det(*curve.trade_off()),
        )


def read_pairs(a: Any, b: Any, a_labels: Any, b_labels: Any, metric: str, a_ids: Any, b_ids: Any) -> Any:
    """The arguments of `verification_metrics` as `_error_rates.Pairs`."""
    import torch

    from ._error_rates import Pairs

    within = b is None
    if within:
        for name, value in (("b_labels", b_labels), ("b_ids", b_ids)):
            if value is not None:
                raise ValueError(f"{name}: expected None as b is None, got {type(value).__name__}")
        b, b_labels, b_ids = a, a_labels, a_ids
    first, second = as_embeddings(a, "a"), as_embeddings(b, "b")
    check_dims(first, second, ("a", "b"))
    labels = (as_labels(a_labels, "a_labels", len(first)), as_labels(b_labels, "b_labels", len(second)))
    ids = label_pair("ids", a_ids, b_ids, first, second, ("a", "b"))

    def same(x: Any, y: Any) -> bool:
        return x is y or (x is not None and x.dtype == y.dtype and x.device == y.device and torch.equal(x, y))

    within = within or all(same(*sides) for sides in ((first[:1], second[:1]), labels, ids, (first, second)))
    return Pairs(first, second, metric, as_codes(*labels), as_codes(*ids), within)


def as_codes(first: Any, second: Any) -> Any:
    """The same values of both sides as the same int32."""
    import torch

    if first is None:
        return None, None
    _, codes = torch.unique(torch.cat([first, second]), return_inverse=True)
    return codes[: len(first)].to(torch.int32), codes[len(first) :].to(torch.int32)


def check_rates(name: str, rates: Any) -> tuple[Any, ...]:
    """`rates` as a tuple of distinct numbers above 0 and below 1."""
    values = tuple(rates) if isinstance(rates, Iterable) and not isinstance(rates, str) else (rates,)
    for rate in values:
        try:
            exact = Fraction(str(rate))
        except ValueError as error:
            raise TypeError(f"{name}: expected numbers, got {rate!r}") from error
        if not 0 < exact < 1:
            raise ValueError(f"{name}: expected rates above 0 and below 1, got {rate}")
    return tuple(dict.fromkeys(values))


def exact_count(rate: Any, count: int) -> int:
    """floor(rate * count), the rate as the decimal that it is written as."""
    return math.floor(Fraction(str(rate)) * count)


def accepts(rate: Any, totals: "Counts") -> "Reached | None":
    """Whether m + 1 impostors are accepted; None where m = floor(rate * impostors) is 0."""
    m = exact_count(rate, int(totals[0]))
    return (lambda accepted: accepted[0] > m) if m else None


def crossing(totals: "Counts") -> "Reached | None":
    """Whether FAR >= FRR; None without impostors or without genuine pairs."""
    impostors, genuine = totals.tolist()
    if not impostors or not genuine:
        return None
    return lambda accepted: accepted[0] / impostors >= (genuine - accepted[1]) / genuine


def _share(threshold: "Threshold | None", genuine: int) -> float:
    return int(threshold.better[1]) / genuine if threshold and genuine else math.nan


def _equal_error_rate(threshold: "Threshold | None", totals: "Counts") -> float:
    if threshold is None:
        return math.nan
    (far0, tar0), (far1, tar1) = ((counts / totals).tolist() for counts in (threshold.better, threshold.accepted))
    before, after = 1 - tar0 - far0, 1 - tar1 - far1
    return float(far0 + (far1 - far0) * before / (before - after))
