"""Open-set identification, 1:N: how often a probe's mate is found, at a rate of false alarms by people not enrolled."""

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._progress import Progress
from ._search_blocks import Labels, Search
from .search import (
    Metric,
    as_bytes,
    as_embeddings,
    as_gallery,
    as_labels,
    check_choice,
    check_shapes,
    codes_pay,
    label_pair,
    nearest,
)
from .verification import check_rates, exact_count


@dataclass(frozen=True)
class IdentificationMetrics:
    """What a watch list does at each false positive identification rate."""

    tpir: dict[float, float]
    """{FPIR: share of the mated probes with a mate among the first `rank` rows, strictly better than the threshold}."""
    threshold: dict[float, float]
    """{FPIR: the (m+1)-th best of the non-mated probes' best scores, m = floor(FPIR * non-mated)}; "l2": squared
    distances."""
    mated: int
    """Probes whose label is in the gallery."""
    non_mated: int
    """Probes whose label is not: only they raise false alarms."""

    @property
    def fnir(self) -> dict[float, float]:
        """{FPIR: 1 - TPIR}: the mates that are missed."""
        return {rate: 1 - share for rate, share in self.tpir.items()}


def identification_metrics(
    probes: Any,
    gallery: Any,
    probe_labels: Any,
    gallery_labels: Any,
    *,
    metric: Metric = "cosine",
    fpir: float | Iterable[float] = (1e-1, 1e-2, 1e-3),
    rank: int = 1,
    probe_ids: Any = None,
    gallery_ids: Any = None,
    progress: bool | Progress = False,
    memory_limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> IdentificationMetrics:
    """TPIR at each FPIR: open-set search, false alarms measured on probes of people who are not in the gallery.

    A probe is mated if an allowed gallery row has its label. A false alarm is a non-mated probe whose best row passes
    the threshold; a mated probe is identified if the best-ranked of its mates is among the first `rank` rows and its
    score is strictly better than the threshold. Thresholds are exact, as in `graceful_fast.verification_metrics`.

    Args:
        probes: (Q, D) embeddings, dtypes as of `graceful_fast.knn`; Q may be 0.
        gallery: (N, D) embeddings, or a `Gallery`, which is read once, in blocks.
        probe_labels: (Q,) integers.
        gallery_labels: (N,) integers.
        metric: "cosine", "ip" (inner product) or "l2" (squared Euclidean distance).
        fpir: False positive identification rates, above 0 and below 1.
        rank: Within how many rows the mate must be, 1 to N.
        probe_ids: (Q,) integers, with `gallery_ids`: a probe never finds a row of its own id.
        gallery_ids: (N,) integers.
        progress, memory_limit, checkpoint: as of `graceful_fast.knn`; labels come on top of the limit.

    Returns:
        IdentificationMetrics; TPIR is NaN without mated probes.

    Warns:
        UserWarning: an FPIR that is below one non-mated probe; its TPIR and threshold are NaN.

    Raises:
        ValueError, TypeError, OSError: as `graceful_fast.knn`; an FPIR out of range.

    Source: ISO/IEC 19795-1; Grother et al., "Face Recognition Vendor Test Part 2: Identification", NIST IR 8271.

    Example:
        >>> import numpy as np
        >>> gallery = np.eye(3, dtype=np.float32)
        >>> probes = np.array([[9, 1, 0], [1, 9, 2], [5, 5, 5], [0, 4, 5]], dtype=np.float32)
        >>> found = identification_metrics(probes, gallery, [0, 1, 7, 8], [0, 1, 2], fpir=0.5)
        >>> found.mated, found.non_mated, found.tpir
        (2, 2, {0.5: 1.0})
    """
    check_choice("metric", metric, ("cosine", "ip", "l2"))
    rates = check_rates("fpir", fpir)
    q, x = as_embeddings(probes, "probes"), as_gallery(gallery)
    rank = check_shapes(q, x, rank, ("probes", "gallery"), "rank")
    memory_limit = as_bytes(memory_limit)
    of_probes = as_labels(probe_labels, "probe_labels", len(q)).numpy()
    of_gallery = as_labels(gallery_labels, "gallery_labels", len(x)).numpy()
    ids = label_pair("ids", probe_ids, gallery_ids, q, x, ("probe", "gallery"))
    search = Search(q, rank, metric, Labels(*ids), Labels(), codes_pay(q), prepared=x.codes is not None)
    keys, rows, _ = nearest(search, x, memory_limit, progress, checkpoint, ("probes", "gallery"))
    found = rows.cpu().numpy()
    mated = has_mate(of_probes, of_gallery, *(None if side is None else side.numpy() for side in ids))
    score = keys.cpu().numpy()  # -inf where there is no row
    is_mate = (found >= 0) & (of_gallery[found] == of_probes[:, None])
    mates = np.where(is_mate, score, -np.inf)[mated].max(1)
    strangers = np.sort(score[~mated, 0])[::-1]
    sign = -1 if metric == "l2" else 1
    tpir, threshold = {}, {}
    for rate in rates:
        m = exact_count(rate, len(strangers))
        if m == 0:
            warnings.warn(
                f"fpir: {rate} of {len(strangers)} non-mated probes is less than one: its TPIR and threshold are NaN",
                stacklevel=2,
            )
        tau = float(strangers[m]) if m else math.nan
        threshold[rate] = sign * tau
        tpir[rate] = float((mates > tau).mean()) if m and len(mates) else math.nan
    return IdentificationMetrics(tpir, threshold, int(mated.sum()), int((~mated).sum()))


def has_mate(
    of_probes: np.ndarray, of_gallery: np.ndarray, probe_ids: np.ndarray | None, gallery_ids: np.ndarray | None
) -> np.ndarray:
    """Of each probe, whether a gallery row has its label, and not its id."""
    counts = _rows_with(of_probes[:, None], of_gallery[:, None])
    if probe_ids is not None and gallery_ids is not None:
        counts = counts - _rows_with(np.stack([of_probes, probe_ids], 1), np.stack([of_gallery, gallery_ids], 1))
    return counts > 0


def _rows_with(wanted: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How many of `rows` equal each of `wanted`."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    _, place = np.unique(np.concatenate([wanted, rows]), axis=0, return_inverse=True)
    place = place.reshape(-1)
    counts: np.ndarray = np.bincount(place[len(wanted) :], minlength=len(place))[place[: len(wanted)]]
    return counts
