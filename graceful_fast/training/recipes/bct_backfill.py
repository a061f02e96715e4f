"""A backfill from its start to its end: quality of every mixed gallery, in several orders, and what clusters become."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch.nn import functional as F

from ...clusters import cluster_agreement
from ...update.backfill import area, backfilled, by_distance, by_uncertainty, joined_by_rank, joined_by_score
from ..results import Entry
from .bct_digits import SETTINGS, Models, Options
from .cross_version import Quality, cosines, mapped, quality, ranked_quality

SCHEMA = "graceful_fast.train.bct.backfill/1"
SETTING = "more data"
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
ORDERS = ("random", "uncertainty", "distance")


class Galleries(NamedTuple):
    """Embeddings of the same items by the old model, a plain and a compatible new one."""

    old: torch.Tensor
    plain: torch.Tensor
    compatible: torch.Tensor
    mapped: torch.Tensor
    """The old ones, in the plain model's space by ridge regression."""
    old_logits: torch.Tensor
    labels: torch.Tensor


def galleries(models: Models, options: Options) -> Galleries:
    """Of one seed."""
    before, after = SETTINGS[SETTING]
    old, plain = models.plain(before), models.plain(after, 1)
    compatible = models.train(after, models.objective("BCT", old.model, after, options), 1)
    fit_old, fit_new = (models.outputs(side.model, models.digits.train)[0] for side in (old, plain))
    _, mapped_rows = mapped("ridge, gallery", fit_old, fit_new, plain.embeddings, old.embeddings)
    compatible_rows = models.outputs(compatible, models.items)[0]
    return Galleries(
        old.embeddings, plain.embeddings, compatible_rows, F.normalize(mapped_rows), old.logits, models.labels
    )


def order_of(name: str, found: Galleries, seed: int) -> torch.Tensor:
    """Rows in the order of their backfill; nothing here knows a label: classes are the old model's answers."""
    if name == "uncertainty":
        return torch.from_numpy(by_uncertainty(found.old_logits))
    if name == "distance":
        return torch.from_numpy(by_distance(found.old, found.old_logits.argmax(1)))
    return torch.randperm(len(found.labels), generator=torch.Generator().manual_seed(seed))


def mixed(first: torch.Tensor, second: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
    """Rows of `second` where done, of `first` elsewhere."""
    return second.where(done[:, None], first)


def _by_score(found: Galleries, new: torch.Tensor, done: torch.Tensor) -> Quality:
    joined = joined_by_score(found.old, new, found.old, new, done)
    return quality(joined.queries, joined.gallery, found.labels, "ip")


def _by_rank(found: Galleries, new: torch.Tensor, done: torch.Tensor) -> Quality:
    # An item is not among its own results, nor does it take a place there.
    old_scores, new_scores = (cosines(x, x).fill_diagonal_(-torch.inf) for x in (found.old, new))
    return ranked_quality(joined_by_rank(old_scores, new_scores, done), found.labels)


SEARCHES: Mapping[str, Callable[[Galleries, torch.Tensor], Quality]] = {
    "BCT, one space": lambda g, done: quality(g.compatible, mixed(g.old, g.compatible, done), g.labels),
    "BCT, merged by score": lambda g, done: _by_score(g, g.compatible, done),
    "plain, merged by score": lambda g, done: _by_score(g, g.plain, done),
    "plain, merged by rank": lambda g, done: _by_rank(g, g.plain, done),
    "plain, old rows mapped": lambda g, done: quality(g.plain, mixed(g.mapped, g.plain, done), g.labels),
    "plain, one space": lambda g, done: quality(g.plain, mixed(g.old, g.plain, done), g.labels),
}


def measure(found: Galleries, variant: str, order: str, seed: int) -> Entry:
    """One entry of the results: a curve and the area under it."""
    rows = order_of(order, found, seed)
    points = [SEARCHES[variant](found, backfilled(rows, fraction)) for fraction in FRACTIONS]
    return {
        "fractions": list(FRACTIONS),
        "map": [point.map for point in points],
        "hit": [point.hit for point in points],
        "area": area(FRACTIONS, [point.map for point in points]),
    }


def measure_clusters(found: Galleries, seed: int) -> Entry:
    """Clusters of old, mixed and new galleries, as many as identities: agreement with these and with the old ones."""
    half = backfilled(order_of("random", found, seed), 0.5)
    kinds = {
        "old": found.old,
        "BCT, half": mixed(found.old, found.compatible, half),
        "BCT, new": found.compatible,
        "plain, half": mixed(found.old, found.plain, half),
        "plain, half mapped": mixed(found.mapped, found.plain, half),
        "plain, new": found.plain,
    }
    names = {kind: clusters(rows, len(found.labels.unique())) for kind, rows in kinds.items()}
    entry: Entry = {}
    for kind, found_clusters in names.items():
        truth = cluster_agreement(found.labels, found_clusters)
        before = cluster_agreement(names["old"], found_clusters)
        entry[kind] = {
            "bcubed_f": truth.bcubed_f,
            "pairwise_f": truth.pairwise_f,
            "bcubed_f_with_old": before.bcubed_f,
            "pairwise_f_with_old": before.pairwise_f,
        }
    return entry


def clusters(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) labels of Ward's clusters of unit embeddings."""
    tree = linkage(F.normalize(embeddings).numpy(), method="ward")
    return torch.from_numpy(fcluster(tree, count, criterion="maxclust"))
