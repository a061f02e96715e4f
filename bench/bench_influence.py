"""Influence loss, forward and backward to the features: ours, eager torch, torch.compile of the same; and memory."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from cases import INFLUENCE_TIMED

import graceful_fast as gf
import graceful_fast.reference

from .contest import Contest
from .memory import peak_bytes

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def eager(features: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(features @ weight.T, target)


LOSSES: dict[str, Loss] = {"graceful_fast": gf.influence_loss, "torch eager": eager}


def inputs(rows: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, width, generator=generator)
    target = torch.randint(0, classes, (rows,), generator=generator)
    return torch.randn(rows, width, generator=generator) / 8, weight, target


def step(loss: Loss, features: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    leaf = features.detach().requires_grad_()
    loss(leaf, weight, target).backward()
    assert leaf.grad is not None
    return leaf.grad


def contests(quick: bool = False) -> Iterator[Contest]:
    for shape in INFLUENCE_TIMED[1:] if quick else INFLUENCE_TIMED:
        yield contest(shape)


def contest(shape: tuple[int, int, int]) -> Contest:
    features, weight, target = inputs(*shape)
    losses = LOSSES | {"torch.compile": torch.compile(eager)}

    def check() -> None:
        expected = step(gf.reference.influence_loss, features[:16].double(), weight.double(), target[:16])
        error = (step(gf.influence_loss, features[:16], weight, target[:16]) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max(), error.item()

    entries = {name: (lambda loss=loss: step(loss, features, weight, target)) for name, loss in losses.items()}
    case = " x ".join(map(str, shape))
    work = 4.0 * shape[0] * shape[1] * shape[2]
    return Contest("influence", case, entries, check, work, "op/s", lambda name: _peak_bytes(name, shape))


def _peak_bytes(name: str, shape: tuple[int, int, int]) -> int | None:
    return peak_bytes("bench_influence", name, shape) if name in LOSSES else None
