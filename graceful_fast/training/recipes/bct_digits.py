"""Backward-compatible training on digits: four kinds of update, and what queries find in the gallery left behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...demo.images import SIDE
from ...losses import InfluenceLoss
from .. import bct
from ..loop import Objective, Training
from ..results import Entry
from .cross_version import MAPPED, Quality, mapped, quality, update_entry
from .digits import Batches, Digits

SCHEMA = "graceful_fast.train.bct/1"

Options = dict[str, Any]


class Generation(NamedTuple):
    """How a model is made, but for its objective and its seed."""

    images: int
    channels: int  # of the first convolution, the second has twice as many
    classes: int = 10
    dim: int = 32


class Setting(NamedTuple):
    """An update."""

    old: Generation
    new: Generation


FEW, MANY = Generation(100, 4), Generation(1000, 8)
SETTINGS = {
    "more data": Setting(FEW, MANY),
    "more classes": Setting(FEW._replace(images=200, classes=5), MANY),
    "wider": Setting(FEW, MANY._replace(dim=64)),
    "narrower": Setting(FEW, MANY._replace(dim=16)),
}
CONTROL = "plain, two scales"
"""No old model at all: what BCT does through the old head, done through the own one."""
TRAINED = (
    "plain",
    CONTROL,
    "L2",
    "BCT",
    "BCT, cosine margin",
    "BCT, arc margin",
    "hot-refresh",
    "hot-refresh, old negatives",
)
KNOWN_ONLY = "BCT, known classes"


def objectives_of(setting: str) -> tuple[str, ...]:
    """Those that are measured there: margins and negatives where the widths are equal."""
    if setting in ("wider", "narrower"):
        return ("plain", "L2", "BCT", "hot-refresh", *MAPPED)
    return (*TRAINED, *([KNOWN_ONLY] if setting == "more classes" else []), *MAPPED)


@dataclass(frozen=True)
class Recipe:
    """All that decides the results."""

    train: int = 1000
    validation: int = 1000
    items: int = 1000  # of the images to test on: queries and gallery
    head_scale: float = 16.0
    steps: int = 150
    batch: int = 64
    peak_rate: float = 4e-3
    weight_decay: float = 1e-2
    strength: float = 0.2  # of the distortions: 0.2 turns by up to 11 degrees, moves by up to 2.8 pixels
    options: dict[str, Options] = field(
        default_factory=lambda: {
            "L2": {"weight": 10.0},
            "BCT": {"scale": 4.0, "weight": 10.0},
            "hot-refresh": {"temperature": 0.1, "weight": 3.0},
        }
    )
    """Objective -> options that differ from its own."""


class Embedder(nn.Module):
    """(N, 1, 28, 28) images -> unit embeddings, and logits: their cosines with the classes' directions, scaled."""

    def __init__(self, made: Generation, scale: float) -> None:
        super().__init__()
        channels = made.channels
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 5, stride=2, padding=2),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * (SIDE // 4) ** 2, made.dim),
        )
        self.head = nn.Linear(made.dim, made.classes, bias=False)
        self.scale = scale

    def forward(self, images: torch.Tensor) -> bct.Output:
        """Embeddings and logits."""
        embeddings = F.normalize(self.body(images))
        return embeddings, self.scale * F.linear(embeddings, F.normalize(self.head.weight))


class Embedding(nn.Module):
    """The embeddings alone of a model that returns (embeddings, logits)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs -> (N, D)."""
        embeddings: torch.Tensor = self.model(inputs)[0]
        return embeddings


def plain(output: bct.Output, inputs: Any, target: torch.Tensor) -> torch.Tensor:
    """The own loss alone."""
    return F.cross_entropy(output[1], target)


def two_scales(head_scale: float, scale: float, weight: float) -> Objective:
    """The own loss at its own scale and at another one."""

    def objective(output: bct.Output, inputs: Any, target: torch.Tensor) -> torch.Tensor:
        return plain(output, inputs, target) + weight * F.cross_entropy(output[1] * (scale / head_scale), target)

    return objective


class Answers(NamedTuple):
    """A model and what it makes of the items that are measured on."""

    model: Embedder
    embeddings: torch.Tensor
    logits: torch.Tensor
    own: Quality
    """Its queries in its own gallery."""


class Models:
    """The models of one seed; the plain ones are trained and measured once.

    Args:
        digits: Images and their parts.
        recipe: How models are made.
        seed: Of all that is random.
        rows: The images that are measured on, queries and gallery.
    """

    def __init__(self, digits: Digits, recipe: Recipe, seed: int, rows: torch.Tensor) -> None:
        self.digits, self.recipe, self.seed, self.items = digits, recipe, seed, rows
        self.labels = digits.images.labels[rows]
        self._plain: dict[tuple[Generation, int], Answers] = {}

    def plain(self, made: Generation, number: int = 0) -> Answers:
        """Of one trained by its own loss alone; all numbers differ in seed alone."""
        if (made, number) not in self._plain:
            self._plain[made, number] = self.answers(self.train(made, plain, number))
        return self._plain[made, number]

    def answers(self, model: Embedder) -> Answers:
        """On the items that are measured on."""
        embeddings, logits = self.outputs(model, self.items)
        return Answers(model, embeddings, logits, quality(embeddings, embeddings, self.labels))

    def rows(self, made: Generation) -> torch.Tensor:
        """The images that this generation trains on."""
        rows = self.digits.train[: len(self.digits.train) if made.classes < 10 else made.images]
        return rows[self.digits.images.labels[rows] < made.classes][: made.images]

    def train(self, made: Generation, objective: Objective, number: int = 0) -> Embedder:
        """Train; models of one seed and number share batches and distortions, and their start where shapes allow."""
        recipe, start = self.recipe, 1000 * self.seed + number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start)
            model = Embedder(made, recipe.head_scale)
        batches = Batches(
            self.digits.images,
            self.rows(made),
            steps=recipe.steps,
            size=recipe.batch,
            strength=recipe.strength,
            generator=torch.Generator().manual_seed(start),
        )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=recipe.steps)
        Training(model, objective, optimizer, batches, schedule).run(1)
        return model.eval()

    def outputs(self, model: Embedder, rows: torch.Tensor) -> bct.Output:
        """Embeddings and logits of these images."""
        with torch.no_grad():
            output: bct.Output = model(self.digits.images.pixels[rows])
        return output

    def influence(self, old: Embedder, new: Generation, known_only: bool, options: Options) -> InfluenceLoss:
        """Through the old head, with rows for the classes that it does not have unless `known_only`."""
        weight = F.normalize(old.head.weight.detach())
        class_map = torch.arange(new.classes)
        class_map[class_map >= len(weight)] = -1
        if not known_only and len(weight) < new.classes:
            rows = self.rows(new)
            features, target = self.outputs(old, rows)[0], self.digits.images.labels[rows]
            weight = bct.synthesised_head(features, target, classes=new.classes, old_weight=weight, class_map=class_map)
            class_map = torch.arange(new.classes)
        return InfluenceLoss(weight, normalize=True, class_map=class_map, **options)

    def objective(self, name: str, old: Embedder, new: Generation, options: Options) -> Objective:
        """By its name in the tables."""
        if name == "plain":
            return plain
        if name == CONTROL:
            return two_scales(self.recipe.head_scale, **options)
        if name == "L2":
            return bct.L2Compatible(Embedding(old), **options)
        if name.startswith("hot-refresh"):
            return bct.HotRefresh(Embedding(old), new_negatives=name == "hot-refresh", **options)
        weight, of_head = options.get("weight", 1.0), {key: options[key] for key in options if key != "weight"}
        margin = {"margin": 0.2, "margin_type": "arc" if name.endswith("arc margin") else "cosine"}
        head = self.influence(old, new, name == KNOWN_ONLY, of_head | (margin if "margin" in name else {}))
        return bct.BackwardCompatible(head, weight=weight)


def options_of(options: Mapping[str, Options], objective: str) -> Options:
    """Those of an objective; all kinds of BCT, its control among them, and of hot-refresh share theirs."""
    return options.get("BCT" if objective == CONTROL else objective.partition(",")[0], {})


def measure(models: Models, setting: str, objective: str, options: Options) -> Entry:
    """One entry of the results: an update by that objective."""
    before, after = SETTINGS[setting]
    old, paragon, share = models.plain(before), models.plain(after, 1), None
    new = paragon
    if objective != "plain" and objective not in MAPPED:
        built = models.objective(objective, old.model, after, options)
        new = models.answers(models.train(after, built, 1))
        if isinstance(built, bct.BackwardCompatible):
            class_map, target = built.heads[0].class_map, models.digits.images.labels[models.rows(after)]
            share = float((class_map[target] >= 0).double().mean())  # type: ignore[index]
    queries, gallery = new.embeddings, old.embeddings
    if objective in MAPPED:
        fit_old, fit_new = (models.outputs(side.model, models.digits.train)[0] for side in (old, new))
        queries, gallery = mapped(objective, fit_old, fit_new, queries, gallery)
    entry = update_entry(old.own, quality(queries, gallery, models.labels), new.own, paragon.own)
    accuracy = float((new.logits.argmax(1) == models.labels).double().mean())
    return {"options": options, **entry, "accuracy": accuracy, "share": share}
