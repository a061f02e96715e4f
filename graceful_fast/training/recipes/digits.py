"""Digits for the recipes: images to train on, to choose by and to test on; small networks; distorted batches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from ...demo.images import SIDE, Images, load_images


class Digits(NamedTuple):
    """Images and the rows of each part; in any run of `train` the ten classes are equally frequent."""

    images: Images
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def load_digits(train: int, validation: int) -> Digits:
    """The demo's images: the same rows in each part on every run, all the others to test on.

    Args:
        train: Images to train on.
        validation: Images to choose hyper-parameters by.
    """
    images = load_images()
    generator = torch.Generator().manual_seed(0)
    by_class = [(images.labels == label).nonzero()[:, 0] for label in range(10)]
    by_class = [rows[torch.randperm(len(rows), generator=generator)] for rows in by_class]
    fewest = min(map(len, by_class))
    order = torch.stack([rows[:fewest] for rows in by_class], dim=1).reshape(-1)  # 0, 1, ..., 9, 0, 1, ...
    if not 0 < train + validation < len(order):
        raise ValueError(
            f"train, validation: expected fewer than {len(order)} images together, got {train + validation}"
        )
    return Digits(images, order[:train], order[train : train + validation], order[train + validation :])


def network(channels: int, classes: int) -> nn.Module:
    """A small convolutional classifier, (N, 1, 28, 28) images -> (N, classes) logits."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=2, padding=2),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * (SIDE // 4) ** 2, classes),
    )


def distort(pixels: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Each image through a random affine map: its entries differ from the identity's by up to `strength`."""
    identity = torch.eye(2, 3).expand(len(pixels), 2, 3)
    maps = identity + strength * (2 * torch.rand(identity.shape, generator=generator) - 1)
    places = nn.functional.affine_grid(maps, list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, places, align_corners=False)


class Batches:
    """An epoch of `steps` batches of images drawn at random, each distorted."""

    def __init__(
        self, images: Images, rows: torch.Tensor, *, steps: int, size: int, strength: float, generator: torch.Generator
    ) -> None:
        self.images, self.rows, self.steps, self.size, self.strength = images, rows, steps, size, strength
        self.generator = generator

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.steps):
            rows = self.rows[torch.randint(len(self.rows), (self.size,), generator=self.generator)]
            yield distort(self.images.pixels[rows], self.strength, self.generator), self.images.labels[rows]
