"""Focal distillation from features and two heads, forward and backward: ours, and eager torch that makes the logits."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from cases import LINEAR_TIMED

import graceful_fast as gf
import graceful_fast.reference

from .bench_distill import eager as eager_of_logits
from .contest import Contest
from .memory import peak_bytes

Loss = Callable[..., torch.Tensor]


def eager(
    features: torch.Tensor,
    weight: torch.Tensor,
    old_features: torch.Tensor,
    old_weight: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    return eager_of_logits(features @ weight.T, old_features @ old_weight.T, target)


def ours(
    features: torch.Tensor,
    weight: torch.Tensor,
    old_features: torch.Tensor,
    old_weight: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    return gf.linear_focal_distillation_loss(features, weight, target, old_features=old_features, old_weight=old_weight)


LOSSES: dict[str, Loss] = {"graceful_fast": ours, "torch eager": eager}


def inputs(rows: int, width: int, classes: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    old_weight = torch.randn(classes, width, generator=generator)
    weight = old_weight + torch.randn(classes, width, generator=generator) / 4
    old_features = torch.randn(rows, width, generator=generator) / 8
    features = old_features + torch.randn(rows, width, generator=generator) / 32
    return features, weight, old_features, old_weight, torch.randint(0, classes, (rows,), generator=generator)


def step(loss: Loss, features: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients of features and weight."""
    leaves = features.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(loss(*leaves, *others), leaves)


def contests(quick: bool = False) -> Iterator[Contest]:
    for shape in LINEAR_TIMED[1:] if quick else LINEAR_TIMED:
        yield contest(shape)


def contest(shape: tuple[int, int, int]) -> Contest:
    features, weight, old_features, old_weight, target = tensors = inputs(*shape)

    def check() -> None:
        few = (features[:8], weight, old_features[:8], old_weight, target[:8])
        leaves = features[:8].double().requires_grad_(), weight.double().requires_grad_()
        old_logits = old_features[:8].double() @ old_weight.double().T
        value = gf.reference.focal_distillation_loss(leaves[0] @ leaves[1].T, old_logits, target[:8])
        for gradient, expected in zip(step(ours, *few), torch.autograd.grad(value, leaves), strict=True):
            error = (gradient - expected).abs().max() / expected.abs().max()
            assert error <= 1e-4, error.item()  # float32 products feed both

    entries = {name: partial(step, loss, *tensors) for name, loss in LOSSES.items()}
    rows, width, classes = shape
    # at least: new and old logits, the gradients of features and weight
    work = 4 * 2.0 * rows * width * classes
    case = " x ".join(map(str, shape))
    return Contest("linear", case, entries, check, work, "op/s", lambda name: peak_bytes("bench_linear", name, shape))
