"""The definitions, in short plain torch: what every op is compared with. Public, slow, without cleverness."""

from typing import Any

import numpy as np

# --- scan -------------------------------------------------------------------------------------------------------------


def fixed_sum(terms: np.ndarray) -> np.ndarray:
    """Sum over the last axis, float64: eight lanes i mod 8 in ascending i, then ((0+1)+(2+3))+((4+5)+(6+7))."""
    dim = terms.shape[-1]
    lanes = np.zeros((*terms.shape[:-1], 8))
    for start in range(0, dim, 8):
        width = min(8, dim - start)
        lanes[..., :width] += terms[..., start : start + width]
    s = [lanes[..., i] for i in range(8)]
    total: np.ndarray = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
    return total


def similarity(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """Score of one query (D,) with every gallery row (N, D), float64: larger is better, so "l2" is negated."""
    q, x = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "l2":
        return -fixed_sum((q - x) ** 2)
    inner = fixed_sum(q * x)
    if metric == "ip":
        return inner
    cosine: np.ndarray = inner / (np.sqrt(fixed_sum(q * q)) * np.sqrt(fixed_sum(x * x)))
    return cosine


def knn(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    metric: str = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
    query_groups: Any = None,
    gallery_groups: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) float32 and indices (Q, k) int64 of `graceful_fast.knn`, by sorting every float64 score."""
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    scores = np.full((len(queries), k), -np.inf)
    indices = np.full((len(queries), k), -1)
    for i, query in enumerate(queries):
        score = similarity(query, gallery, metric)
        allowed = np.ones(len(gallery), dtype=bool)
        if query_ids is not None:
            allowed &= np.asarray(gallery_ids) != query_ids[i]
        if query_groups is not None:
            allowed &= np.asarray(gallery_groups) != query_groups[i]
        rows = np.flatnonzero(allowed)
        best = rows[np.lexsort((rows, -score[rows]))][:k]
        scores[i, : len(best)], indices[i, : len(best)] = score[best], best
    with np.errstate(over="ignore"):
        return (-scores if metric == "l2" else scores).astype(np.float32), indices
