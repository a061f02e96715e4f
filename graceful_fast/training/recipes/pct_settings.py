"""The four update settings of positive-congruent training on digits, and what each objective keeps in them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ...flips import count_flips
from ...losses import focal_distillation_loss
from .. import pct
from ..loop import Objective, Training, cross_entropy
from ..results import Entry
from .digits import Batches, Digits, network

SCHEMA = "graceful_fast.train.pct/1"

Options = dict[str, Any]


class Generation(NamedTuple):
    """How a model is made, but for its objective and its seed."""

    channels: str  # a field of the recipe
    train_share: float = 1.0
    classes: int = 10


GENERATIONS = {
    "small": Generation("small"),
    "small, again": Generation("small"),
    "large": Generation("large"),
    "half the images": Generation("small", train_share=0.5),
    "five classes": Generation("small", classes=5),
}


class Setting(NamedTuple):
    """An update: generations of the old and of the new model."""

    old: str
    new: str


SETTINGS = {
    "same architecture": Setting("small", "small, again"),
    "larger architecture": Setting("small", "large"),
    "more data": Setting("half the images", "small, again"),
    "more classes": Setting("five classes", "small, again"),
}
OBJECTIVES = (
    "reseed",
    "plain",
    "naive",
    "FD-KL",
    "FD-LM",
    "ensemble",
    "ensemble after one",
    "ELODI",
    "ELODI after plain",
)
"""`reseed` is no update but the old recipe with another seed. An ensemble follows an ensemble and an ELODI model an
ELODI model, as in the papers; "after": the same new model after the plain old one."""


CHOSEN: dict[str, dict[str, Options]] = {
    "same architecture": {
        "naive": {"weight": 5.0},
        "FD-KL": {"distillation_weight": 0.03},
        "FD-LM": {"distillation_weight": 0.01},
    },
    "larger architecture": {
        "naive": {"weight": 5.0},
        "FD-KL": {"distillation_weight": 0.03},
        "FD-LM": {"distillation_weight": 0.1},
    },
    "more data": {
        "naive": {"weight": 1.0},
        "FD-KL": {"distillation_weight": 0.03},
        "FD-LM": {"distillation_weight": 0.03},
    },
    "more classes": {
        "naive": {"weight": 1.0},
        "FD-KL": {"distillation_weight": 0.1},
        "FD-LM": {"distillation_weight": 0.01},
    },
}
"""Setting -> objective -> the options that `pct_sweep.choose` picks out of the committed sweep."""
ELODI: Options = {"cross_entropy_weight": 1.0, "distillation_weight": 0.1}
"""Chosen in the first setting, for all: no old model has a part in it."""
for _options in CHOSEN.values():
    _options |= {"ELODI": ELODI, "ELODI after plain": ELODI}


@dataclass(frozen=True)
class Recipe:
    """All that decides the results."""

    train: int = 100
    validation: int = 1000
    small: int = 6  # channels of the first convolution, the second has twice as many
    large: int = 16
    steps: int = 200
    batch: int = 64
    peak_rate: float = 4e-3
    weight_decay: float = 1e-2
    strength: float = 0.2  # of the distortions: 0.2 turns by up to 11 degrees, moves by up to 2.8 pixels
    members: int = 3  # of an ensemble
    options: dict[str, dict[str, Options]] = field(default_factory=lambda: CHOSEN)


class Models:
    """The models of one seed, each trained when it is first asked for."""

    def __init__(self, digits: Digits, recipe: Recipe, seed: int) -> None:
        self.digits, self.recipe, self.seed = digits, recipe, seed
        self._trained: dict[tuple[str, ...], nn.Module] = {}

    def member(self, generation: str, number: int = 0) -> nn.Module:
        """A model trained plainly; all numbers differ in seed alone."""
        return self._once(("plain", generation, str(number)), lambda: self.train(generation, cross_entropy, number))

    def members(self, generation: str) -> list[nn.Module]:
        """Those of an ensemble."""
        return [self.member(generation, number) for number in range(self.recipe.members)]

    def elodi(self, generation: str, options: Options) -> nn.Module:
        """A model distilled from the ensemble of its own generation."""
        return self._once(
            ("ELODI", generation, str(options)),
            lambda: self.train(generation, pct.elodi(self.members(generation), **options)),
        )

    def _once(self, name: tuple[str, ...], make: Callable[[], nn.Module]) -> nn.Module:
        if name not in self._trained:
            self._trained[name] = make()
        return self._trained[name]

    def train(self, generation: str, objective: Objective, number: int = 0) -> nn.Module:
        """Train; models of one generation and number share start, batches and shifts whatever their objective."""
        recipe, made = self.recipe, GENERATIONS[generation]
        start = 10_000 * self.seed + 100 * list(GENERATIONS).index(generation) + number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start)
            model = network(getattr(recipe, made.channels), made.classes)
        rows = self.digits.train[: round(made.train_share * len(self.digits.train))]
        rows = rows[self.digits.images.labels[rows] < made.classes]
        generator = torch.Generator().manual_seed(start)
        batches = Batches(
            self.digits.images,
            rows,
            steps=recipe.steps,
            size=recipe.batch,
            strength=recipe.strength,
            generator=generator,
        )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=recipe.steps)
        Training(model, objective, optimizer, batches, schedule).run(1)
        return model.eval()


class AveragedFocus(pct.FocalDistillation):
    """Focal distillation as the published code computes it: mean of the focal weights times mean of the divergences."""

    def __init__(self, old: torch.nn.Module, *, alpha: float = 1.0, beta: float = 5.0, **options: Any) -> None:
        super().__init__(old, **options)
        self.alpha, self.beta, self.options = alpha, beta, options

    def forward(
        self,
        new_logits: torch.Tensor,
        inputs: Any,
        target: torch.Tensor,
        *,
        count: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss."""
        old = self.old_logits(inputs)
        weights = self.alpha + self.beta * (old.argmax(1) == target).float()
        focus = weights.mean().expand(len(target))
        return focal_distillation_loss(new_logits, old, target, focus=focus, count=count, **self.options)


AVERAGED = "FD-KL, averaged focus"
FROM_OLD: dict[str, Callable[..., Objective]] = {
    "naive": pct.NaiveReweighting,
    "FD-KL": pct.FocalDistillation,
    "FD-LM": partial(pct.FocalDistillation, divergence="logits"),
    AVERAGED: AveragedFocus,
}


def pair(models: Models, setting: str, objective: str, options: Options) -> tuple[nn.Module, nn.Module]:
    """The old and the new model of an update."""
    old, new = SETTINGS[setting]
    if objective in FROM_OLD:
        before = models.member(old)
        return before, models.train(new, FROM_OLD[objective](before, **options))
    if objective in ("ensemble", "ensemble after one"):
        after = pct.Ensemble(models.members(new))
        return (pct.Ensemble(models.members(old)) if objective == "ensemble" else models.member(old)), after
    if objective in ("ELODI", "ELODI after plain"):
        before = models.elodi(old, options) if objective == "ELODI" else models.member(old)
        return before, models.elodi(new, options)
    return models.member(old), models.member(old, 1) if objective == "reseed" else models.member(new)


def flip_entry(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, old_classes: int) -> Entry:
    """Errors and flips on the samples of classes that the old model knows, and the new model's error on all.

    Args:
        before: (N,) classes, the old model's answers.
        after: The new model's.
        labels: The truth.
        old_classes: Classes 0 .. old_classes - 1 are those the old model knows.
    """
    known = labels < old_classes
    flips = count_flips(before[known], after[known], labels[known])
    return {
        "error_old": flips.error_old,
        "error_new": flips.error_new,
        "error_new_all": float((after != labels).double().mean()),
        "nfr": flips.nfr,
        "pfr": flips.pfr,
        "relative_nfr": None if math.isnan(flips.relative_nfr) else flips.relative_nfr,
        "negative": flips.negative,
        "samples": flips.total,
    }


def measure(models: Models, setting: str, objective: str, options: Options, rows: torch.Tensor) -> Entry:
    """One entry of the results: an update by that objective, on these images."""
    old, new = pair(models, setting, objective, options)
    pixels, labels = models.digits.images.pixels[rows], models.digits.images.labels[rows]
    with torch.no_grad():
        before, after = old(pixels).argmax(1), new(pixels).argmax(1)
    known = GENERATIONS[SETTINGS[setting].old].classes
    return {"options": options, **flip_entry(before, after, labels, known)}
