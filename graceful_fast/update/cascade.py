"""A shortlist from the old gallery, put in order by the new model: no gallery is embedded again, a few rows a query are."""

from collections.abc import Callable
from typing import Any

import torch

from .._arrays import as_tensor
from ..search import Metric, Neighbors, knn

_BLOCK = 256  # queries at once: 256 shortlists of 1,000 rows of 384 columns are 400 MB


def cascade(
    old_queries: Any,
    old_gallery: Any,
    new_queries: Any,
    new_embeddings: Callable[[torch.Tensor], Any],
    k: int,
    *,
    shortlist: int,
    metric: Metric = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
) -> Neighbors:
    """The `shortlist` rows nearest by the old model, ranked again by the new model; the best `k` of them.

    The old model still embeds every query. With a shortlist as long as the gallery the answer is the new model's own; with
    one of `k` it holds the old model's rows in the new model's order.

    Args:
        old_queries: (Q, D_old) embeddings of the queries by the old model.
        old_gallery: (N, D_old), or a `Gallery`.
        new_queries: (Q, D_new) embeddings of the same queries by the new model.
        new_embeddings: (R,) ascending int64 rows of the gallery, each once -> their (R, D_new) embeddings by the new model;
            called for 256 queries at a time.
        k: Neighbours of each query, at most `shortlist`.
        shortlist: Rows that the new model sees of each query.
        metric: Of both searches.
        query_ids: As in `knn`: a query never finds its own id.
        gallery_ids: As in `knn`.

    Returns:
        Neighbors of torch tensors on the CPU: scores by the new model, and rows of the gallery; order and missing rows as
        in `knn`.

    Raises:
        ValueError: As `knn`; numbers of queries that differ; k above `shortlist`.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.eye(3)
        >>> found = cascade(old[:1], old, new[1:2], lambda rows: new[rows], 1, shortlist=2)
        >>> found.indices  # the old model would have said 0
        tensor([[1]])
    """
    if not 1 <= k <= shortlist:
        raise ValueError(f"k: expected 1..{shortlist}, the shortlist, got {k}")
    queries = as_tensor(new_queries, "new_queries").cpu()
    if len(queries) != len(old_queries):
        raise ValueError(f"new_queries: expected {len(old_queries)} rows as old_queries, got {len(queries)}")
    near = as_tensor(
        knn(old_queries, old_gallery, shortlist, metric=metric, query_ids=query_ids, gallery_ids=gallery_ids).indices,
        "indices",
    ).cpu()
    found = [
        _in_new_order(*block, new_embeddings, k, metric) for block in zip(*map(_blocks, (queries, near)), strict=True)
    ]
    scores, indices = (
        (torch.cat(parts) for parts in zip(*found, strict=True)) if found else (near[:, :k].float(), near[:, :k])
    )
    return Neighbors(scores, indices)


def _blocks(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rows.split(_BLOCK) if len(rows) else ()


def _in_new_order(
    queries: torch.Tensor, near: torch.Tensor, new_embeddings: Callable[[torch.Tensor], Any], k: int, metric: Metric
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one block of queries; `near`: (Q, shortlist) rows, -1 where there are fewer."""
    rows, place = near.clamp(min=0).unique(return_inverse=True)
    new = as_tensor(new_embeddings(rows), "new_embeddings").double().cpu()
    if new.shape != (len(rows), queries.shape[1]):
        raise ValueError(f"new_embeddings: expected {(len(rows), queries.shape[1])}, got {tuple(new.shape)}")
    wanted = queries.double()
    if metric == "cosine":
        new, wanted = torch.nn.functional.normalize(new, eps=0), torch.nn.functional.normalize(wanted, eps=0)
    of_query = new[place]
    if metric == "l2":
        scores = -(wanted[:, None] - of_query).square().sum(2)
    else:
        scores = torch.einsum("qd,qkd->qk", wanted, of_query)
    scores = scores.masked_fill(near < 0, -torch.inf)
    order = near.where(near >= 0, torch.iinfo(near.dtype).max).argsort(dim=1)  # the smaller index wins a tie
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    best = scores.gather(1, order).float()
    return (-best if metric == "l2" else best), near.gather(1, order)
