"""Train an old digit classifier and its successors: plain, with focal distillation, with the influence loss (BCT)."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional as F

from .images import SIDE, Images, Split, shift_randomly


@dataclass(frozen=True)
class Recipe:
    """All that decides the demo's training; the same for every seed."""

    old_share: float = 0.1  # of the training images, all that the old model ever sees
    old_channels: int = 4  # of the first of two convolutions; the second has twice as many
    new_channels: int = 8
    dim: int = 32  # of the embedding, old and new
    head_scale: float = 16.0  # logits are head_scale * cosine(embedding, class)
    old_steps: int = 400
    new_steps: int = 500
    batch: int = 64
    peak_rate: float = 2e-3
    weight_decay: float = 1e-2
    # Focal distillation. alpha = 0: where the old model is wrong there is nothing to keep. A temperature of 4 keeps the
    # successor's own accuracy, which the 100 of large networks pulls towards that of an old model this much weaker.
    alpha: float = 0.0
    beta: float = 0.1
    temperature: float = 4.0
    # Influence loss. A scale below the head's pulls embeddings close to the old class directions: at 16 the loss is
    # content far from them, and there wrongly placed old images are the nearest.
    influence_weight: float = 6.0
    influence_scale: float = 4.0


QUICK = Recipe(old_steps=60, new_steps=60)

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(embedding, logits, labels, images) of a batch -> the loss."""


class Classifier(nn.Module):
    """A body that makes unit embeddings, and a cosine head."""

    def __init__(self, body: nn.Module, dim: int, scale: float) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(dim, 10, bias=False)
        self.scale = scale

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 1, 28, 28) images -> (N, dim) embeddings, (N, 10) logits."""
        embedding = F.normalize(self.body(images))
        return embedding, self.scale * F.linear(embedding, F.normalize(self.head.weight))


@dataclass(frozen=True)
class Trained:
    """A model's answers on the test images."""

    name: str
    embeddings: torch.Tensor
    logits: torch.Tensor
    seconds: float


def old_body(recipe: Recipe) -> nn.Module:
    """The old model's body."""
    return _convolutions(recipe.old_channels, recipe.dim)


def new_body(recipe: Recipe) -> nn.Module:
    """Its successors' body: the same, wider."""
    return _convolutions(recipe.new_channels, recipe.dim)


def _convolutions(channels: int, dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * (SIDE // 4) ** 2, dim),
    )


def cross_entropy(embedding: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """The plain loss."""
    return F.cross_entropy(logits, labels)


def keep_answers(old: Classifier, recipe: Recipe) -> Loss:
    """Focal distillation from the old model, which sees the same shifted images."""
    from graceful_fast import focal_distillation_loss

    def loss(embedding: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            old_logits = old(images)[1]
        return focal_distillation_loss(
            logits, old_logits, labels, alpha=recipe.alpha, beta=recipe.beta, temperature=recipe.temperature
        )

    return loss


def keep_gallery(old: Classifier, recipe: Recipe) -> Loss:
    """Cross-entropy through the own head, and through the old model's frozen head."""
    from graceful_fast import influence_loss

    weight = old.head.weight.detach()

    def loss(embedding: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        influence = influence_loss(embedding, weight, labels, scale=recipe.influence_scale, normalize=True)
        return F.cross_entropy(logits, labels) + recipe.influence_weight * influence

    return loss


def train(
    body: Callable[[Recipe], nn.Module],
    recipe: Recipe,
    images: Images,
    rows: torch.Tensor,
    steps: int,
    loss: Loss,
    seed: int,
) -> Classifier:
    """Train a classifier on `rows`; `seed` decides its start, its batches and their shifts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(body(recipe), recipe.dim, recipe.head_scale)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (recipe.batch,), generator=generator)]
        shifted, labels = shift_randomly(images.pixels[batch], generator), images.labels[batch]
        embedding, logits = model(shifted)
        optimizer.zero_grad()
        loss(embedding, logits, labels, shifted).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def train_seed(seed: int, recipe: Recipe, images: Images, split: Split, done: Callable[[Trained], None]) -> None:
    """Train the old model, its control and its successors; each one's answers are handed to `done` as it is ready.

    Names: "old"; "reseed", the old recipe with another seed (what chance alone breaks); and the successors on all
    training images, which share one start and one order of batches: "plain", "focal distillation", "BCT".
    """
    generator = torch.Generator().manual_seed(seed)
    part = split.train[
        torch.randperm(len(split.train), generator=generator)[: round(recipe.old_share * len(split.train))]
    ]

    def make(
        name: str, body: Callable[[Recipe], nn.Module], rows: torch.Tensor, steps: int, loss: Loss, of: int
    ) -> Classifier:
        start = perf_counter()
        model = train(body, recipe, images, rows, steps, loss, 1000 * seed + of)
        with torch.no_grad():
            embeddings, logits = model(images.pixels[split.test])
        done(Trained(name, embeddings, logits, perf_counter() - start))
        return model

    old = make("old", old_body, part, recipe.old_steps, cross_entropy, 0)
    make("reseed", old_body, part, recipe.old_steps, cross_entropy, 1)
    for name, loss in (
        ("plain", cross_entropy),
        ("focal distillation", keep_answers(old, recipe)),
        ("BCT", keep_gallery(old, recipe)),
    ):
        make(name, new_body, split.train, recipe.new_steps, loss, 2)
