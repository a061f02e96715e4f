"""Verification metrics from all pairs: TAR at a FAR with exact thresholds, EER, AUC, DET."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._progress import Progress
from .gallery import Gallery
from .search import Metric, as_bytes, as_gallery, as_labels, check_choice, check_dims, label_pair

if TYPE_CHECKING:
    from ._error_rates import Counts, Reached, Threshold
    from ._pairs import Pairs

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
    progress: bool | Progress = False,
    memory_limit: int | None = None,
) -> VerificationMetrics:
    """TAR at each FAR, EER and AUC from the scores of all pairs of a row of `a` and a row of `b`.

    Pairs of one label are genuine, all others impostors. A threshold is exact: with m = floor(FAR * impostors), FAR as
    the decimal that it is written as, it is the (m+1)-th best impostor score in float64 (the scores of
    `graceful_fast.knn`); TAR is the share of genuine scores strictly better. One scan counts the pairs by score and
    keeps the few near the thresholds; no (Na, Nb) matrix is held.

    If `a` and `b` are the same set (equal embeddings or the same files, with equal labels and ids in the same order;
    or `b` and `b_labels` None), each unordered pair counts once and no row is paired with itself.

    A gallery of files is read in blocks, and may be larger than memory: first rows of a sample of pairs, in ascending
    order, then all rows, then the rows near thresholds. `b` is read once for each block of `a`, an array being one. A
    threshold that the sample misses, or a `memory_limit` without room for the pairs near thresholds, costs more such
    readings. Beside blocks, only labels and ids grow with the galleries. TAR, thresholds and EER are the same, bit for
    bit, whatever the blocks.

    Args:
        a: (Na, D) embeddings, float16, bfloat16, float32, float64 or an integer dtype of 8 bits, or a `Gallery`; Na may
            be 0.
        b: (Nb, D) embeddings, in any of these dtypes, or a `Gallery`; None for the pairs within `a`.
        a_labels: (Na,) integers.
        b_labels: (Nb,) integers; None with `b`.
        metric: "cosine", "ip" (inner product) or "l2" (squared Euclidean distance).
        far: False accept rates, above 0 and below 1.
        a_ids: (Na,) integers, with `b_ids`: pairs of one id are left out.
        b_ids: (Nb,) integers; None with `b`.
        progress: print progress on standard error, or call with (rows done, rows in all): of `b`, for all blocks of
            `a`, of each scan of all pairs.
        memory_limit: bytes by which the process may grow above what it has when the call begins; up to 128 MiB for
            threads and libraries come on top. Never changes the answer.

    Returns:
        VerificationMetrics. Up to 2^20 pairs EER, AUC and DET are exact as well; beyond, EER still is, AUC and DET come
        from 65,536 bins between the scores' extremes. Without genuine pairs TAR, EER and AUC are NaN.

    Warns:
        UserWarning: a FAR that is below one impostor pair; its TAR and threshold are NaN.

    Raises:
        ValueError: shapes that do not match, a FAR out of range, an unknown option, NaN or infinity in an embedding, a
            zero vector under "cosine", a limit without room for the labels and a sample of pairs.
        TypeError: a wrong type or dtype.
        OSError: a file of a gallery that cannot be read or has changed.

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
    pairs = read_pairs(a, b, (a_labels, b_labels), (a_ids, b_ids), metric, progress, as_bytes(memory_limit))
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


def read_pairs(
    a: Any,
    b: Any,
    labels: tuple[Any, Any],
    ids: tuple[Any, Any],
    metric: str,
    progress: bool | Progress,
    memory_limit: int | None,
) -> "Pairs":
    """The arguments of `verification_metrics`, checked."""
    from ._pairs import Pairs, plan_pairs

    within = b is None
    if within:
        for name, (_, value) in (("b_labels", labels), ("b_ids", ids)):
            if value is not None:
                raise ValueError(f"{name}: expected None as b is None, got {type(value).__name__}")
        b, labels, ids = a, (labels[0], labels[0]), (ids[0], ids[0])
    first, second = as_gallery(a, "a"), as_gallery(b, "b")
    check_dims(first, second, ("a", "b"))
    values = as_labels(labels[0], "a_labels", len(first)), as_labels(labels[1], "b_labels", len(second))
    numbers = label_pair("ids", *ids, first, second, ("a", "b"))
    within = within or (same_values(*values) and same_values(*numbers) and same_rows(first, second))
    plan = plan_pairs(first, second, within, memory_limit, whole=not progress)
    return Pairs(first, second, metric, as_codes(*values), as_codes(*numbers), within, plan, progress)


def same_values(x: Any, y: Any) -> bool:
    """Whether both tensors, or None, are the same to the last value."""
    import torch

    return x is y or (x is not None and x.dtype == y.dtype and torch.equal(x, y))


def same_rows(x: Gallery, y: Gallery) -> bool:
    """Whether both are the same rows: arrays by their values, files by what tells them apart."""
    if x is y:
        return True
    if x.array is not None and y.array is not None:
        return same_values(x.array[:1], y.array[:1]) and same_values(x.array, y.array)
    return bool(x.files) and x.fingerprint() == y.fingerprint()


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
