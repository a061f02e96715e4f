"""A gallery in the middle of its backfill: in which order to embed again, the mixed index, the area under the curve."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .._arrays import as_tensor


class Joined(NamedTuple):
    """One index of two spaces side by side, for inner products."""

    queries: torch.Tensor
    """(Q, D_old + D_new)"""
    gallery: torch.Tensor
    """(N, D_old + D_new)"""


def by_uncertainty(old_logits: Any) -> np.ndarray:
    """Rows of the gallery in the order of the old model's doubt: the flattest softmax first.

    Args:
        old_logits: (N, C) of the gallery's items.

    Returns:
        (N,) int64; equal entropies in ascending order.

    Example:
        >>> by_uncertainty(torch.tensor([[9.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
        array([1, 2, 0])
    """
    logits = as_tensor(old_logits, "old_logits").double().log_softmax(1)
    entropy = -(logits.exp() * logits).nan_to_num(0).sum(1)
    return np.argsort(-entropy.numpy(), kind="stable")


def by_distance(old_gallery: Any, labels: Any) -> np.ndarray:
    """Rows of the gallery in the order of their distance from the mean of their class, the farthest first.

    Args:
        old_gallery: (N, D) embeddings; unit lengths are taken of them and of the means.
        labels: (N,) integers: the truth, or what the old model takes each item for.

    Returns:
        (N,) int64; equal distances in ascending order.

    Source: an order of λ-Orthogonality Regularization for Compatible Representation Learning, NeurIPS 2025.

    Example:
        >>> by_distance(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), [0, 0, 0])
        array([2, 0, 1])
    """
    rows = torch.nn.functional.normalize(as_tensor(old_gallery, "old_gallery").double())
    classes, place = as_tensor(labels, "labels").unique(return_inverse=True)
    if len(place) != len(rows):
        raise ValueError(f"labels: expected {len(rows)} as rows of old_gallery, got {len(place)}")
    sums = rows.new_zeros(len(classes), rows.shape[1]).index_add_(0, place, rows)
    return np.argsort((rows * torch.nn.functional.normalize(sums)[place]).sum(1).numpy(), kind="stable")


def backfilled(order: Any, fraction: float) -> torch.Tensor:
    """(N,) bool: which rows have been embedded again once that share of the order is done (rounded down).

    Example:
        >>> backfilled([2, 0, 1], 0.7)
        tensor([ True, False,  True])
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected 0..1, got {fraction}")
    rows = as_tensor(order, "order").long()
    done = torch.zeros(len(rows), dtype=torch.bool)
    done[rows[: int(fraction * len(rows))]] = True
    return done


def joined_by_score(
    old_queries: Any, new_queries: Any, old_gallery: Any, new_gallery: Any, done: torch.Tensor
) -> Joined:
    """An index of old rows found by old queries and new rows found by new ones, merged by their cosines as they are.

    The merge that needs no training and no compatible model ("distance rank merge"): search both halves, each with its
    own model's query, and sort all that is found by score. Here as one search by inner product ("ip"): a query is both
    its unit embeddings side by side, a gallery row one of its own and zeros.

    Args:
        old_queries: (Q, D_old).
        new_queries: (Q, D_new), the same queries.
        old_gallery: (N, D_old).
        new_gallery: (N, D_new), the same items; only rows in `done` are read.
        done: (N,) bool, see `backfilled`.

    Source: Seo et al., Online Backfilling with No Regret for Large-Scale Image Retrieval, 2023.

    Example:
        >>> old, new = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0], [1.0]])
        >>> joined_by_score(old, new, old, new, torch.tensor([True, False])).gallery
        tensor([[0., 0., 1.],
                [0., 1., 0.]])
    """
    queries = torch.cat([_unit(old_queries, "old_queries"), _unit(new_queries, "new_queries")], dim=1)
    old, new = _unit(old_gallery, "old_gallery"), _unit(new_gallery, "new_gallery")
    return Joined(queries, torch.cat([old * ~done[:, None], new * done[:, None]], dim=1))


def joined_by_rank(old_scores: torch.Tensor, new_scores: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
    """Scores of a mixed index by rank alone: a row's place within its half, as a share of the half.

    Args:
        old_scores: (Q, N) of old queries and old rows, greater is better.
        new_scores: (Q, N) of new queries and new rows.
        done: (N,) bool, see `backfilled`.

    Returns:
        (Q, N) float64, greater is better; equal places of both halves are equal scores.

    Example:
        >>> scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        >>> joined_by_rank(scores, scores, torch.tensor([False, False, False, True]))
        tensor([[-0.1667, -0.5000, -0.8333, -0.5000]], dtype=torch.float64)
    """
    merged = torch.empty(old_scores.shape, dtype=torch.float64)
    for half, scores in ((~done, old_scores), (done, new_scores)):
        count = int(half.sum())
        place = scores[:, half].argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        merged[:, half] = -(place.double() + 0.5) / max(count, 1)
    return merged


def area(fractions: Sequence[float], values: Sequence[float]) -> float:
    """The mean of a metric over a backfill that goes on at one pace: the area under the line through the points.

    Args:
        fractions: From 0 to 1, ascending.
        values: The metric at each.

    Source: Jaeckle et al., FastFill: Efficient Compatible Model Update, ICLR 2023.

    Example:
        >>> area([0, 0.5, 1], [0.2, 0.6, 0.8])
        0.55
    """
    steps = np.diff(fractions)
    if len(fractions) != len(values) or not len(steps) or (fractions[0], fractions[-1]) != (0, 1) or (steps < 0).any():
        raise ValueError(f"fractions: expected {len(values)} from 0 to 1, ascending, got {list(fractions)}")
    return float(np.trapezoid(values, fractions))


def _unit(embeddings: Any, name: str) -> torch.Tensor:
    return torch.nn.functional.normalize(as_tensor(embeddings, name).float())
