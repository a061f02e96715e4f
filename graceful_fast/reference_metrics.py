"""The definitions of ranking, verification and clustering metrics: every score in float64, every ranking by sorting.

Public, slow, without cleverness: what the tests compare with. Scores and their order come from `reference.similarity`.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from .reference import similarity

# --- retrieval --------------------------------------------------------------------------------------------------------


def rankings(
    queries: Any,
    gallery: Any,
    query_labels: Any,
    gallery_labels: Any,
    *,
    metric: str = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
    query_groups: Any = None,
    gallery_groups: Any = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each query, over its allowed rows from the best down: scores, and whether the row is a positive."""
    gallery, gallery_labels = np.asarray(gallery), np.asarray(gallery_labels)
    for i, query in enumerate(np.asarray(queries)):
        score = similarity(query, gallery, metric)
        positive = gallery_labels == query_labels[i]
        allowed = np.ones(len(gallery), dtype=bool)
        if query_ids is not None:
            allowed &= np.asarray(gallery_ids) != query_ids[i]
        if query_groups is not None:
            allowed &= ~(positive & (np.asarray(gallery_groups) == query_groups[i]))
        rows = np.flatnonzero(allowed)
        order = rows[np.lexsort((rows, -score[rows]))]
        yield score[order], positive[order]


def average_precision(positive: np.ndarray) -> float:
    """Mean over the positives of (positives up to its rank) / rank."""
    ranks = np.flatnonzero(positive) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def retrieval_of_query(scores: np.ndarray, positive: np.ndarray, k: Sequence[int]) -> dict[str, Any]:
    """Every metric of one ranking that has a positive."""
    count = int(positive.sum())
    ranks = np.flatnonzero(positive) + 1
    against = positive[np.lexsort((positive, -scores))]  # among equal scores the positives last
    in_favour = positive[np.lexsort((~positive, -scores))]  # the positives first
    return {
        "recall": {n: float((ranks <= n).sum()) / count for n in k},
        "cmc": {n: float(ranks[0] <= n) for n in k},
        "ndcg": {
            n: math.fsum(1 / math.log2(r + 1) for r in ranks if r <= n)
            / math.fsum(1 / math.log2(r + 1) for r in range(1, min(n, count) + 1))
            for n in k
        },
        "map": average_precision(positive),
        "map_bounds": (average_precision(against), average_precision(in_favour)),
        "mrr": 1 / float(ranks[0]),
        "r_precision": float((ranks <= count).sum()) / count,
        "first_rank": float(ranks[0]),
    }


def retrieval_metrics(*arguments: Any, k: Sequence[int] = (1, 5, 10), **options: Any) -> list[dict[str, Any] | None]:
    """`retrieval_of_query` of each query, None of one without an allowed positive. Arguments as `rankings`."""
    return [
        retrieval_of_query(scores, positive, k) if positive.any() else None
        for scores, positive in rankings(*arguments, **options)
    ]


# --- verification -----------------------------------------------------------------------------------------------------


def pairs(
    a: Any, b: Any, a_labels: Any, b_labels: Any, *, metric: str = "cosine", a_ids: Any = None, b_ids: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all genuine and of all impostor pairs, larger is better; `b` None: unordered pairs within `a`."""
    within = b is None
    a = np.asarray(a)
    b, b_labels, b_ids = (a, a_labels, a_ids) if within else (np.asarray(b), b_labels, b_ids)
    genuine: list[float] = []
    impostor: list[float] = []
    for i, row in enumerate(a):
        score = similarity(row, b, metric)
        for j in range(i + 1 if within else 0, len(b)):
            if a_ids is None or a_ids[i] != b_ids[j]:
                (genuine if a_labels[i] == b_labels[j] else impostor).append(float(score[j]))
    return np.array(genuine), np.array(impostor)


def threshold(impostor: np.ndarray, far: float) -> float:
    """The (m+1)-th best impostor score, m = floor(far * impostors) with `far` as the decimal it reads; m = 0: NaN."""
    m = math.floor(Fraction(repr(float(far))) * len(impostor))
    return float(np.sort(impostor)[::-1][m]) if m else math.nan


def accepted(genuine: np.ndarray, tau: float) -> float:
    """Share of the genuine scores strictly better than tau; NaN without any, or without tau."""
    return float((genuine > tau).mean()) if len(genuine) and not math.isnan(tau) else math.nan


def roc(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FAR and FRR when scores of at least t are accepted, for t = infinity and every distinct score, descending."""
    scores = np.unique(np.concatenate([genuine, impostor]))[::-1]
    far = [0.0] + [float((impostor >= t).mean()) for t in scores]
    frr = [1.0] + [float((genuine < t).mean()) for t in scores]
    return np.array(far), np.array(frr)


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Where the polygon through the points of `roc` crosses FAR = FRR."""
    far, frr = roc(genuine, impostor)
    i = int(np.flatnonzero(far >= frr)[0])
    before, after = frr[i - 1] - far[i - 1], frr[i] - far[i]
    return float(far[i - 1] + (far[i] - far[i - 1]) * before / (before - after))


def area_under_roc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """P(genuine better than impostor) + P(equal) / 2."""
    better = sum(int((impostor < score).sum()) for score in genuine)
    equal = sum(int((impostor == score).sum()) for score in genuine)
    return (better + equal / 2) / (len(genuine) * len(impostor))


# --- open-set identification ------------------------------------------------------------------------------------------


def identification_rates(
    probes: Any,
    gallery: Any,
    probe_labels: Any,
    gallery_labels: Any,
    fpir: float,
    *,
    metric: str = "cosine",
    rank: int = 1,
    probe_ids: Any = None,
    gallery_ids: Any = None,
) -> tuple[float, float]:
    """TPIR and threshold at a FPIR, from the best score of each non-mated probe and the best mate of each mated one."""
    ids = {"query_ids": probe_ids, "gallery_ids": gallery_ids}
    mates, strangers = [], []
    for scores, positive in rankings(probes, gallery, probe_labels, gallery_labels, metric=metric, **ids):
        if positive.any():
            found = np.flatnonzero(positive[:rank])
            mates.append(float(scores[found[0]]) if len(found) else -math.inf)
        else:
            strangers.append(float(scores[0]) if len(scores) else -math.inf)
    tau = threshold(np.array(strangers), fpir)
    return accepted(np.array(mates), tau), tau


# --- clusters ---------------------------------------------------------------------------------------------------------


def cluster_agreement(reference: Sequence[int], clusters: Sequence[int]) -> dict[str, float]:
    """B-cubed and pairwise precision, recall and F of `clusters` against `reference`; one label each per item."""
    n = len(reference)
    precision, recall = [], []
    for i in range(n):
        together = [j for j in range(n) if clusters[j] == clusters[i]]
        related = [j for j in range(n) if reference[j] == reference[i]]
        both = len(set(together) & set(related))
        precision.append(both / len(together))
        recall.append(both / len(related))
    joined = [(i, j) for i, j in combinations(range(n), 2) if clusters[i] == clusters[j]]
    belong = [(i, j) for i, j in combinations(range(n), 2) if reference[i] == reference[j]]
    right = len(set(joined) & set(belong))
    pair_precision = right / len(joined) if joined else math.nan
    pair_recall = right / len(belong) if belong else math.nan
    b_precision, b_recall = (math.fsum(x) / n if n else math.nan for x in (precision, recall))
    return {
        "bcubed_precision": b_precision,
        "bcubed_recall": b_recall,
        "bcubed_f": harmonic(b_precision, b_recall),
        "pairwise_precision": pair_precision,
        "pairwise_recall": pair_recall,
        "pairwise_f": harmonic(pair_precision, pair_recall),
    }


def harmonic(precision: float, recall: float) -> float:
    """F = 2PR / (P + R); NaN if either is, or if both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else math.nan
