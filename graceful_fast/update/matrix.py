"""Retrieval across versions of a model: old and new queries against the old gallery, and against the new one."""

import math
from dataclasses import dataclass
from typing import Any

from .._progress import Progress
from ..flips import FlipCounts
from ..metrics import RetrievalMetrics, count_retrieval_flips, retrieval_metrics
from ..search import Metric


@dataclass(frozen=True)
class CrossVersion:
    """Metrics of pairs of versions, "queries/gallery", and what became of the queries since "old/old"."""

    matrix: dict[str, RetrievalMetrics]
    """"old/old", "new/old" and, with a new gallery, "new/new"."""
    flips: dict[str, dict[int, FlipCounts]]
    """Of "new/old" and "new/new": {k: hits among the first k that became misses, and the other way round}."""
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON; None for NaN."""
        first = self.matrix["old/old"]
        return {
            "schema": "graceful_fast.retrieve/1",
            "metric": self.metric,
            "k": list(first.cmc),
            "queries": first.queries,
            "without_positive": first.without_positive,
            "matrix": {name: _means(metrics) for name, metrics in self.matrix.items()},
            "flips": {name: {str(k): _flips(flips) for k, flips in by_k.items()} for name, by_k in self.flips.items()},
        }


def compare_versions(
    old_queries: Any,
    new_queries: Any,
    old_gallery: Any,
    query_labels: Any,
    gallery_labels: Any,
    *,
    new_gallery: Any = None,
    metric: Metric = "cosine",
    k: tuple[int, ...] = (1, 5, 10),
    query_ids: Any = None,
    gallery_ids: Any = None,
    progress: bool | Progress = False,
    memory_limit: int | None = None,
) -> CrossVersion:
    """`retrieval_metrics` of every pair of versions that an update goes through. Errors name these arguments.

    Example:
        >>> import numpy as np
        >>> rows, labels = np.eye(3, dtype=np.float32), [0, 1, 2]
        >>> found = compare_versions(rows, rows[[0, 2, 2]], rows, labels, labels, k=(1,))
        >>> found.matrix["new/old"].cmc, found.flips["new/old"][1].negative
        ({1: 0.6666666666666666}, 1)
    """
    pairs = {"old/old": (old_queries, old_gallery), "new/old": (new_queries, old_gallery)}
    if new_gallery is not None:
        pairs["new/new"] = (new_queries, new_gallery)
    matrix = {}
    for name, (queries, gallery) in pairs.items():
        of_queries, of_gallery = name.split("/")
        try:
            matrix[name] = retrieval_metrics(
                queries,
                gallery,
                query_labels,
                gallery_labels,
                metric=metric,
                k=k,
                query_ids=query_ids,
                gallery_ids=gallery_ids,
                progress=progress,
                memory_limit=memory_limit,
            )
        except (ValueError, TypeError) as error:
            argument, _, rest = str(error).partition(": ")
            versioned = {"queries": f"{of_queries}_queries", "gallery": f"{of_gallery}_gallery"}
            raise type(error)(f"{versioned.get(argument, argument)}: {rest}") from error
    old, *others = matrix
    flips = {
        name: {depth: count_retrieval_flips(matrix[old], matrix[name], depth) for depth in matrix[old].cmc}
        for name in others
    }
    return CrossVersion(matrix, flips, metric)


def update_gain(old_old: float, new_old: float, paragon: float) -> float:
    """How much of an update's worth its queries have before any gallery is embedded again.

    ``(new_old - old_old) / (paragon - old_old)`` of one metric where more is better. The update is compatible where
    ``new_old > old_old``, strictly.

    Args:
        old_old: Old queries, old gallery.
        new_old: New queries, old gallery.
        paragon: Queries and gallery of a model made as the new one, but with no thought of the old one.

    Returns:
        1: as good as embedding all again; negative: the update breaks the search; NaN where the paragon is not better
        than the old model.

    Source: Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020.

    Example:
        >>> round(update_gain(0.395, 0.422, 0.663), 3), update_gain(0.4, 0.5, 0.4)
        (0.101, nan)
    """
    return (new_old - old_old) / (paragon - old_old) if paragon > old_old else math.nan


def _means(metrics: RetrievalMetrics) -> dict[str, Any]:
    by_k = {name: getattr(metrics, name) for name in ("recall", "cmc", "ndcg")}
    return {
        "map": _finite(metrics.map),
        "map_bounds": [_finite(bound) for bound in metrics.map_bounds],
        "mrr": _finite(metrics.mrr),
        "r_precision": _finite(metrics.r_precision),
        **{name: {str(k): _finite(value) for k, value in values.items()} for name, values in by_k.items()},
    }


def _flips(flips: FlipCounts) -> dict[str, Any]:
    return {
        "total": flips.total,
        "negative": flips.negative,
        "positive": flips.positive,
        "nfr": _finite(flips.nfr),
        "negative_indices": flips.negative_indices.tolist(),
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
