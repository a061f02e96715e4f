"""Agreement of two clusterings of the same items: B-cubed and pairwise precision, recall, F."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import as_numpy


@dataclass(frozen=True)
class ClusterAgreement:
    """How far `clusters` joins what `reference` joins. Shares; NaN where there is nothing to take a share of."""

    bcubed_precision: float
    """Mean over the items of the share of an item's cluster that belongs with it."""
    bcubed_recall: float
    """Mean over the items of the share of what belongs with an item that is in its cluster."""
    pairwise_precision: float
    """Share of the pairs joined by `clusters` that `reference` joins."""
    pairwise_recall: float
    """Share of the pairs joined by `reference` that `clusters` joins."""

    @property
    def bcubed_f(self) -> float:
        """Harmonic mean of B-cubed precision and recall."""
        return _harmonic(self.bcubed_precision, self.bcubed_recall)

    @property
    def pairwise_f(self) -> float:
        """Harmonic mean of pairwise precision and recall; NaN if both are 0."""
        return _harmonic(self.pairwise_precision, self.pairwise_recall)


def cluster_agreement(reference: Any, clusters: Any, *, noise: int | None = -1) -> ClusterAgreement:
    """Compare two clusterings of the same items, such as those of a gallery before, during and after a backfill.

    The clustering itself is anybody's: labels of scikit-learn's DBSCAN, HDBSCAN or AgglomerativeClustering, or the true
    identities as `reference`. Which integers name the clusters does not matter.

    Args:
        reference: (N,) integers, the cluster of each item: of the old gallery, or the true identity.
        clusters: (N,) integers of the same items in the same order: of the mixed or the new gallery.
        noise: the label of items in no cluster, on either side: each counts as a cluster of its own. None: a label as
            any other.

    Returns:
        ClusterAgreement. Swapping the two clusterings swaps precision and recall. No items: all NaN.

    Raises:
        ValueError: shapes that do not match. TypeError: labels that are no integers.

    Source: Bagga and Baldwin, "Entity-Based Cross-Document Coreferencing Using the Vector Space Model", 1998 (B-cubed);
    Amigo et al., "A comparison of extrinsic clustering evaluation metrics", 2009.

    Example:
        >>> found = cluster_agreement([0, 0, 1, 1], [5, 5, 5, -1])
        >>> round(found.bcubed_precision, 3), found.bcubed_recall, found.pairwise_precision
        (0.667, 0.75, 0.3333333333333333)
    """
    first = _read(reference, "reference", noise)
    second = _read(clusters, "clusters", noise)
    if len(first) != len(second):
        raise ValueError(f"clusters: expected as many labels as reference, {len(first)}, got {len(second)}")
    n = len(first)
    if n == 0:
        return ClusterAgreement(math.nan, math.nan, math.nan, math.nan)
    size_first, size_second = np.bincount(first), np.bincount(second)
    cells, shared = np.unique(first.astype(np.int64) * (second.max() + 1) + second, return_counts=True)
    of_first, of_second = size_first[cells // (second.max() + 1)], size_second[cells % (second.max() + 1)]
    weight = shared.astype(np.float64) ** 2
    joined_by_both = _pairs(shared)
    return ClusterAgreement(
        float((weight / of_second).sum() / n),
        float((weight / of_first).sum() / n),
        _ratio(joined_by_both, _pairs(size_second)),
        _ratio(joined_by_both, _pairs(size_first)),
    )


def _read(labels: Any, name: str, noise: int | None) -> np.ndarray:
    """Clusters as 0, 1, ..., noise as singletons."""
    array = as_numpy(labels, name)
    if array.dtype.kind not in "iub" and array.size:
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (N,), got {array.shape}")
    names, cluster = np.unique(array, return_inverse=True)
    cluster = cluster.astype(np.int64)
    alone = np.flatnonzero(array == noise) if noise is not None else np.zeros(0, np.int64)
    cluster[alone] = len(names) + np.arange(len(alone))
    return np.unique(cluster, return_inverse=True)[1]


def _pairs(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else math.nan
