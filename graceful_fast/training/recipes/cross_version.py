"""What an update does to a search: one gallery of labelled items that all look for each other, in two versions."""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ...metrics import retrieval_metrics
from ...update.maps import Method, fit_map
from ...update.matrix import update_gain
from ..bct import fit_width
from ..results import Entry

MAPPED = ("Procrustes", "ridge", "Procrustes, gallery", "ridge, gallery")
"""Of a new model not trained to fit: its queries mapped into the old space, or the old gallery into the new one."""


class Quality(NamedTuple):
    """Means over all items as queries."""

    map: float
    hit: float
    """Share of the queries whose nearest other item has their label."""


def quality(queries: torch.Tensor, gallery: torch.Tensor, labels: torch.Tensor, metric: str = "cosine") -> Quality:
    """Of queries that are the gallery's items, each without itself; their width is fitted to the gallery's."""
    ids = torch.arange(len(labels))
    found = retrieval_metrics(
        fit_width(queries, gallery.shape[1]),
        gallery,
        labels,
        labels,
        metric=metric,  # type: ignore[arg-type]
        k=1,
        query_ids=ids,
        gallery_ids=ids,
    )
    return Quality(found.map, found.cmc[1])


def ranked_quality(scores: torch.Tensor, labels: torch.Tensor) -> Quality:
    """The same of (N, N) scores that are no products of embeddings; greater is better, the smaller index wins a tie."""
    order = scores.double().fill_diagonal_(-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
    positive = labels[order] == labels[:, None]
    ranks = torch.arange(1, len(labels), dtype=torch.float64)
    precision = positive.cumsum(1) / ranks
    average = (precision * positive).sum(1) / positive.sum(1)
    return Quality(float(average.nanmean()), float(positive[:, 0].double().mean()))


def cosines(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """(Q, N), queries fitted to the gallery's width."""
    return F.normalize(fit_width(queries, gallery.shape[1])) @ F.normalize(gallery).T


def update_entry(old: Quality, across: Quality, new: Quality, paragon: Quality) -> Entry:
    """One entry of the results: the cross-version matrix, the criterion and the gain, by mAP."""
    gain = update_gain(old.map, across.map, paragon.map)
    return {
        "old/old": old._asdict(),
        "new/old": across._asdict(),
        "new/new": new._asdict(),
        "paragon": paragon._asdict(),
        "compatible": across.map > old.map,
        "gain": None if math.isnan(gain) else gain,
    }


def mapped(
    name: str, fit_old: torch.Tensor, fit_new: torch.Tensor, queries: torch.Tensor, gallery: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """New queries and an old gallery in the space of the side that is not mapped.

    Args:
        name: One of `MAPPED`.
        fit_old: What the map is fitted to: embeddings of training items by the old model.
        fit_new: The same items by the new model.
        queries: Embeddings by the new model.
        gallery: Embeddings by the old model.
    """
    method: Method = "ridge" if name.startswith("ridge") else "procrustes"
    if name.endswith(", gallery"):
        to_new = fit_map(fit_old, fit_new, source="old", target="new", method=method)
        return queries, torch.from_numpy(to_new(gallery, source="old", target="new"))
    to_old = fit_map(fit_new, fit_old, source="new", target="old", method=method)
    return torch.from_numpy(to_old(queries, source="new", target="old")), gallery
