"""A shortlist from the old gallery, put in order by the new model: only the shortlists are embedded again."""

from collections.abc import Callable
from typing import Any

import torch

from .._arrays import as_tensor
from ..search import Metric, Neighbors, knn

_BLOCK = 256  # queries at once: their shortlists of 1,000 rows have at most 256,000, of 384 columns 400 MB


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

    The old model still embeds every query. With a shortlist as long as the gallery the answer is the new model's own;
    with one of `k` it holds the old model's rows in the new model's order.

    Args:
        old_queries: (Q, D_old) embeddings of the queries by the old model.
        old_gallery: (N, D_old), or a `Gallery`.
        new_queries: (Q, D_new) embeddings of the same queries by the new model.
        new_embeddings: (R,) rows of the gallery, int64, ascending, each once -> their (R, D_new) embeddings by the new
            model. Called for 256 queries at a time.
        k: Neighbours of each query, at most `shortlist`.
        shortlist: Rows that the new model sees of each query, at most N.
        metric: Of both searches.
        query_ids: As in `knn`: a query never finds its own id.
        gallery_ids: As in `knn`.

    Returns:
        Neighbors of torch tensors on the CPU: scores by the new model and rows of the gallery; ties and missing rows
        as in `knn`.

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
    near = knn(old_queries, old_gallery, shortlist, metric=metric, query_ids=query_ids, gallery_ids=gallery_ids).indices
    near = as_tensor(near, "indices").cpu()
    indices = near.new_full((len(queries), k), -1)
    scores = torch.full((len(queries), k), torch.inf if metric == "l2" else -torch.inf)
    for start in range(0, len(queries), _BLOCK):
        block = near[start : start + _BLOCK]
        rows = block[block >= 0].unique()
        new = as_tensor(new_embeddings(rows), "new_embeddings").cpu()
        if new.shape != (len(rows), queries.shape[1]):
            raise ValueError(f"new_embeddings: expected {(len(rows), queries.shape[1])}, got {tuple(new.shape)}")
        for query, shortest in enumerate(block, start):
            own = shortest[shortest >= 0].sort().values  # ascending: the smaller index wins a tie
            if len(own):
                count = min(k, len(own))
                best = knn(queries[query : query + 1], new[torch.searchsorted(rows, own)], count, metric=metric)
                scores[query, :count], indices[query, :count] = best.scores[0], own[best.indices[0]]
    return Neighbors(scores, indices)
