"""An update of published text encoders: a projection of MiniLM that fits a gallery of WordNet's glosses by WordLlama.

The old model is WordLlama as published: it has no head, so the frozen head's rows are mean embeddings of the topics.
Both encoders stay as they are; the projection alone is trained.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ...losses import InfluenceLoss
from ...update.cascade import cascade
from .. import bct
from ..loop import Objective, Training
from ..results import Entry
from .bct_digits import CONTROL, Options, plain, two_scales
from .cross_version import MAPPED, Quality, mapped, quality, update_entry
from .glosses import PER_TOPIC, Glosses

SCHEMA = "graceful_fast.train.bct.glosses/1"
TRAINED = ("plain", CONTROL, "L2", "BCT", "BCT, arc margin", "hot-refresh", "hot-refresh, old negatives")
OBJECTIVES = (*TRAINED, *MAPPED)
NEW_DIM = 384
SHORTLISTS = (10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Recipe:
    """All that decides the results."""

    train: int = 60  # glosses of each topic
    validation: int = 20
    dim: int = 256
    head_scale: float = 16.0
    epochs: int = 30
    batch: int = 128
    peak_rate: float = 2e-3
    weight_decay: float = 1e-2
    options: dict[str, Options] = field(
        default_factory=lambda: {
            "L2": {"weight": 3.0},
            "BCT": {"scale": 4.0, "weight": 10.0},
            "hot-refresh": {"temperature": 0.2, "weight": 1.0},
        }
    )
    """Objective -> options that differ from its own."""


class Projection(nn.Module):
    """(N, 256 + 384) embeddings of both encoders -> unit embeddings made of MiniLM's, and logits by cosine."""

    def __init__(self, recipe: Recipe, topics: int) -> None:
        super().__init__()
        self.body = nn.Linear(NEW_DIM, recipe.dim)
        self.head = nn.Linear(recipe.dim, topics, bias=False)
        self.scale = recipe.head_scale

    def forward(self, both: torch.Tensor) -> bct.Output:
        """Embeddings and logits."""
        embeddings = F.normalize(self.body(both[:, -NEW_DIM:]))
        return embeddings, self.scale * F.linear(embeddings, F.normalize(self.head.weight))


class OldHalf(nn.Module):
    """The old encoder's embeddings of a batch of both."""

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        """(N, 256 + 384) -> (N, 256)."""
        return both[:, :-NEW_DIM]


class Parts:
    """Both encoders' embeddings side by side, of the glosses to train on, to choose by and to test on."""

    def __init__(self, glosses: Glosses, recipe: Recipe) -> None:
        self.topics = int(glosses.topics.max()) + 1
        self.paragons: dict[tuple[int, int], tuple[bct.Output, Quality]] = {}
        both = torch.cat([F.normalize(glosses.old), F.normalize(glosses.new)], dim=1)
        sizes = [recipe.train, recipe.validation, PER_TOPIC - recipe.train - recipe.validation]
        rows = [size * self.topics for size in sizes]
        self.train, self.validation, self.test = (
            TensorDataset(*part) for part in zip(both.split(rows), glosses.topics.split(rows), strict=True)
        )


def train(parts: Parts, recipe: Recipe, objective: Objective, seed: int) -> Projection:
    """Train; a seed is a start and an order of batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Projection(recipe, parts.topics)
        generator = torch.Generator().manual_seed(seed)
        batches = DataLoader(parts.train, recipe.batch, shuffle=True, drop_last=True, generator=generator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay)
        steps = recipe.epochs * len(batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps)
        Training(model, objective, optimizer, batches, schedule).run(recipe.epochs)
    return model.eval()


def objective_of(name: str, parts: Parts, recipe: Recipe, options: Options) -> Objective:
    """By its name in the tables."""
    if name == "plain":
        return plain
    if name == CONTROL:
        return two_scales(recipe.head_scale, **options)
    if name == "L2":
        return bct.L2Compatible(OldHalf(), **options)
    if name.startswith("hot-refresh"):
        return bct.HotRefresh(OldHalf(), new_negatives=name == "hot-refresh", **options)
    both, topics = parts.train.tensors
    weight, of_head = options.get("weight", 1.0), {key: options[key] for key in options if key != "weight"}
    margin: dict[str, Any] = {"margin": 0.2, "margin_type": "arc"} if "margin" in name else {}
    head = bct.synthesised_head(OldHalf()(both), topics, classes=parts.topics)
    return bct.BackwardCompatible(InfluenceLoss(head, normalize=True, **of_head, **margin), weight=weight)


def measure(parts: Parts, recipe: Recipe, objective: str, seed: int, options: Options, part: TensorDataset) -> Entry:
    """One entry of the results. Maps take MiniLM's own embeddings, without a projection: they need no labels."""
    both, topics = part.tensors
    old, encoder = both[:, :-NEW_DIM], both[:, -NEW_DIM:]
    before, accuracy = quality(old, old, topics), None
    if objective in MAPPED:
        fitted = parts.train.tensors[0]
        queries, gallery = mapped(objective, fitted[:, :-NEW_DIM], fitted[:, -NEW_DIM:], encoder, old)
        own = best = quality(encoder, encoder, topics)
    else:
        if (seed, len(both)) not in parts.paragons:
            output = outputs(train(parts, recipe, plain, seed), both)
            parts.paragons[seed, len(both)] = output, quality(output[0], output[0], topics)
        (embeddings, logits), best = parts.paragons[seed, len(both)]
        own = best
        if objective != "plain":
            embeddings, logits = outputs(
                train(parts, recipe, objective_of(objective, parts, recipe, options), seed), both
            )
            own = quality(embeddings, embeddings, topics)
        accuracy = float((logits.argmax(1) == topics).double().mean())
        queries, gallery = embeddings, old
    entry = update_entry(before, quality(queries, gallery, topics), own, best)
    return {"options": options, **entry, "accuracy": accuracy, "share": 1.0 if objective.startswith("BCT") else None}


def outputs(model: nn.Module, both: torch.Tensor) -> bct.Output:
    """Embeddings and logits."""
    with torch.no_grad():
        output: bct.Output = model(both)
    return output


def measure_cascade(old: torch.Tensor, new: torch.Tensor, labels: torch.Tensor, shortlist: int, k: int = 10) -> Entry:
    """The share of right ones at the first place and among the first `k`; the items look for each other."""
    ids = torch.arange(len(labels))
    found = cascade(
        old, old, new, partial(torch.index_select, new, 0), k, shortlist=shortlist, query_ids=ids, gallery_ids=ids
    )
    right = (labels[found.indices] == labels[:, None]).double()
    return {"hit": float(right[:, 0].mean()), f"precision@{k}": float(right.mean())}
