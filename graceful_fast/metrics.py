"""Retrieval metrics from the full ranking of every query: exact mAP, CMC, recall, nDCG, MRR, R-precision, flips."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import like
from ._checkpoint import Checkpoint
from ._positives import Relevant
from ._progress import Progress
from ._rank_counts import RankCounts, count_better, plan_counts
from ._search_blocks import work_of
from .flips import FlipCounts
from .search import (
    Metric,
    as_bytes,
    as_embeddings,
    as_gallery,
    as_labels,
    check_choice,
    check_dims,
    label_pair,
)


@dataclass(frozen=True)
class PerQuery:
    """Each metric of each query, arrays of (Q,) float64 of the queries' kind; NaN of a query without a positive."""

    recall: dict[int, Any]
    cmc: dict[int, Any]
    ndcg: dict[int, Any]
    map: Any
    """Average precision."""
    map_bounds: tuple[Any, Any]
    mrr: Any
    """1 / rank of the first positive."""
    r_precision: Any
    first_rank: Any
    """Rank of the first positive, from 1."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have an allowed positive; NaN if none has."""

    recall: dict[int, float]
    """{k: share of the positives among the first k}."""
    cmc: dict[int, float]
    """{k: share of the queries with a positive among the first k}."""
    ndcg: dict[int, float]
    """{k: sum of 1 / log2(rank + 1) over the positives among the first k, over that of the best ranking}."""
    map: float
    """Mean average precision: the mean over a query's positives of (positives up to its rank) / rank."""
    map_bounds: tuple[float, float]
    """mAP with equal scores broken against the positives, and for them."""
    mrr: float
    """Mean reciprocal rank of the first positive."""
    r_precision: float
    """Share of the positives among the first R, where R is the number of positives."""
    queries: int
    """How many there were."""
    without_positive: int
    """How many of them have no allowed positive, and are in no mean."""
    per_query: PerQuery = field(repr=False, compare=False)


def retrieval_metrics(
    queries: Any,
    gallery: Any,
    query_labels: Any,
    gallery_labels: Any,
    *,
    metric: Metric = "cosine",
    k: int | tuple[int, ...] = (1, 5, 10),
    query_ids: Any = None,
    gallery_ids: Any = None,
    query_groups: Any = None,
    gallery_groups: Any = None,
    progress: bool | Progress = False,
    memory_limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> RetrievalMetrics:
    """Every ranking metric, exactly, from the full ranking of the gallery for each query; nothing is cut at a depth.

    A gallery row of the query's label is a positive. Rows rank by (score, smaller index), scores being those of
    `graceful_fast.knn`, in float64. The rank of each positive is counted in one pass over the gallery, without sorting
    and without a (Q, N) matrix.

    A gallery of files is read in blocks, and may be larger than memory: first the rows that are positives or excluded,
    in ascending order, then all rows, once for every 4 million positives and excluded rows of the queries together, or
    as often as `memory_limit` asks. Queries and labels stay in memory.

    Args:
        queries: (Q, D) embeddings, float16, bfloat16, float32, float64 or an integer dtype of 8 bits; Q may be 0.
        gallery: (N, D) embeddings, in any of these dtypes, or a `Gallery`.
        query_labels: (Q,) integers.
        gallery_labels: (N,) integers.
        metric: "cosine", "ip" (inner product) or "l2" (squared Euclidean distance).
        k: depths of recall, CMC and nDCG, each at least 1; beyond N they see the whole gallery.
        query_ids: (Q,) integers, with `gallery_ids`: rows of the query's own id are left out of its ranking.
        gallery_ids: (N,) integers.
        query_groups: (Q,) integers, with `gallery_groups`: rows of the query's group and label are left out
            (re-identification: the same person seen by the same camera).
        gallery_groups: (N,) integers.
        progress: print progress on standard error, or call with (rows done, rows in all), rows of each reading.
        memory_limit: bytes by which the process may grow above what it has when the call begins; up to 128 MiB for
            threads and libraries come on top. Never changes the answer.
        checkpoint: a directory, made if it is not there, that keeps what is counted so far: the same call, started
            again after it was stopped anywhere, goes on from there.

    Returns:
        RetrievalMetrics: means as float; `per_query` has arrays of the queries' kind.

    Raises:
        ValueError: shapes that do not match, k out of range, an unknown option, NaN or infinity in an embedding, a
            zero vector under "cosine", a limit without room for the queries, the labels and the positives of a query, a
            checkpoint of other work.
        TypeError: a wrong type or dtype.
        OSError: a file of the gallery or of the checkpoint that cannot be read or has changed.

    Source: the re-identification protocol is that of Zheng et al., "Scalable Person Re-identification: A Benchmark",
    ICCV 2015; average precision is the sum over ranks, without interpolation.

    Example:
        >>> import numpy as np
        >>> gallery = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
        >>> ids = {"query_ids": [0], "gallery_ids": [0, 1, 2]}
        >>> found = retrieval_metrics(gallery[:1], gallery, [7], [7, 8, 7], k=(1, 2), **ids)
        >>> found.map, found.cmc, found.without_positive
        (1.0, {1: 1.0, 2: 1.0}, 0)
    """
    check_choice("metric", metric, ("cosine", "ip", "l2"))
    depths = check_depths(k)
    memory_limit = as_bytes(memory_limit)
    q, x = as_embeddings(queries, "queries"), as_gallery(gallery)
    check_dims(q, x)
    labels = (as_labels(query_labels, "query_labels", len(q)), as_labels(gallery_labels, "gallery_labels", len(x)))
    ids = label_pair("ids", query_ids, gallery_ids, q, x)
    groups = label_pair("groups", query_groups, gallery_groups, q, x)
    relevant = Relevant(labels, ids, groups)
    plan = plan_counts(q, x, relevant, memory_limit, whole=checkpoint is None and not progress)
    saved = None
    if checkpoint is not None:
        work = work_of(q, x, [*labels, *ids, *groups], metric=metric, k=list(depths), pairs_at_once=plan.pairs)
        saved = Checkpoint(checkpoint, work)
    table = np.empty((6 + 3 * len(depths), len(q)))
    for some, counts in count_better(q, x, metric, relevant, plan, progress, table, saved):
        table[:, some] = of_block(counts, depths)
    return summarise(table, depths, queries)


def check_depths(k: Any) -> tuple[int, ...]:
    """`k` as a tuple of distinct depths."""
    depths = k if isinstance(k, (tuple, list)) else (k,)
    for depth in depths:
        if isinstance(depth, bool) or not hasattr(depth, "__index__"):
            raise TypeError(f"k: expected integers, got {type(depth).__name__}")
        if depth < 1:
            raise ValueError(f"k: expected depths of 1 or more, got {depth}")
    if not depths:
        raise ValueError("k: expected at least one depth, got none")
    return tuple(dict.fromkeys(depth.__index__() for depth in depths))


def of_block(counts: RankCounts, depths: tuple[int, ...]) -> np.ndarray:
    """(6 + 3 * depths, Q) float64, the rows as `summarise` names them; NaN columns of queries without a positive."""
    start, greater, equal, before = counts
    count = np.diff(start)
    queries = len(count)
    query = np.repeat(np.arange(queries), count)
    rank = greater + before + 1
    place = np.arange(1, len(rank) + 1) - start[query]  # among the query's positives, from 1
    first_equal = np.ones(len(rank), dtype=bool)
    first_equal[1:] = (query[1:] != query[:-1]) | (greater[1:] != greater[:-1])
    tie = np.cumsum(first_equal) - 1  # positives of one query and one score
    size = np.bincount(tie)[tie] if len(tie) else tie
    among = np.arange(len(rank)) - np.flatnonzero(first_equal)[tie] + 1 if len(tie) else tie
    with np.errstate(invalid="ignore", divide="ignore"):

        def mean(values: np.ndarray) -> np.ndarray:
            return np.bincount(query, values, queries) / count

        gain = 1 / np.log2(rank + 1.0)
        ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2.0, count.max(initial=0) + 2)))])
        first_rank = np.full(queries, np.nan)
        first_rank[count > 0] = rank[start[:-1][count > 0]]
        return np.stack(
            [
                mean(place / rank),
                mean(place / (greater + equal - size + among)),
                mean(place / (greater + among)),
                1 / first_rank,
                mean((rank <= count[query]).astype(float)),
                first_rank,
                *(mean((rank <= k).astype(float)) for k in depths),
                *(np.where(count > 0, (first_rank <= k).astype(float), np.nan) for k in depths),
                *(np.bincount(query, gain * (rank <= k), queries) / ideal[np.minimum(count, k)] for k in depths),
            ]
        )


def summarise(table: np.ndarray, depths: tuple[int, ...], queries: Any) -> RetrievalMetrics:
    """The means of what `of_block` found, and the arrays themselves as the kind that `queries` are."""
    import torch

    with_positive = table[:, ~np.isnan(table[0])]
    means = with_positive.mean(1).tolist() if with_positive.shape[1] else [float("nan")] * len(table)
    arrays = list(like(torch.from_numpy(table), queries))

    def named(rows: list[Any]) -> dict[str, Any]:
        recall, cmc, ndcg = (
            dict(zip(depths, rows[6 + i * len(depths) : 6 + (i + 1) * len(depths)], strict=True)) for i in range(3)
        )
        return {
            "recall": recall,
            "cmc": cmc,
            "ndcg": ndcg,
            "map": rows[0],
            "map_bounds": (rows[1], rows[2]),
            "mrr": rows[3],
            "r_precision": rows[4],
        }

    count = table.shape[1]
    return RetrievalMetrics(
        **named(means),
        queries=count,
        without_positive=count - with_positive.shape[1],
        per_query=PerQuery(**named(arrays), first_rank=arrays[5]),
    )


def count_retrieval_flips(old: RetrievalMetrics, new: RetrievalMetrics, k: int = 1) -> FlipCounts:
    """Which queries an update broke: a positive among the first k before, none now.

    Args:
        old: Metrics of the queries before the update.
        new: Metrics of the same queries, in the same order, after it.
        k: 1 or more.

    Returns:
        FlipCounts over the queries that have an allowed positive; `negative_indices`: rows of the queries, ascending.

    Raises:
        ValueError: k below 1, metrics of different numbers of queries, a query that has a positive in one of them only.

    Example:
        >>> import numpy as np
        >>> gallery, labels = np.eye(3, dtype=np.float32), [0, 1, 2]
        >>> old = retrieval_metrics(gallery, gallery, labels, labels)
        >>> new = retrieval_metrics(gallery[[0, 2, 2]], gallery, labels, labels)
        >>> flips = count_retrieval_flips(old, new)
        >>> flips.negative, flips.negative_indices.tolist()
        (1, [1])
    """
    import torch

    (depth,) = check_depths(k)
    ranks = [np.asarray(metrics.per_query.first_rank) for metrics in (old, new)]
    if len(ranks[0]) != len(ranks[1]):
        raise ValueError(f"new: expected metrics of as many queries as old, {len(ranks[0])}, got {len(ranks[1])}")
    evaluated = [~np.isnan(rank) for rank in ranks]
    if len(rows := np.flatnonzero(evaluated[0] != evaluated[1])):
        has = "old" if evaluated[0][rows[0]] else "new"
        raise ValueError(f"new: expected positives for the same queries as old, got one for {rows[0]} in {has} alone")
    rows = np.flatnonzero(evaluated[0])
    hit_old, hit_new = (rank[rows] <= depth for rank in ranks)
    broken = torch.from_numpy(rows[hit_old & ~hit_new])
    return FlipCounts(
        both_correct=int((hit_old & hit_new).sum()),
        negative=len(broken),
        positive=int((hit_new & ~hit_old).sum()),
        both_wrong=int((~hit_old & ~hit_new).sum()),
        negative_indices=like(broken, old.per_query.first_rank),
    )
