"""Focal distillation loss, forward and backward with fresh outputs: ours, eager torch, torch.compile of the same."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cases import DISTILL_TIMED

import graceful_fast as gf
import graceful_fast.reference

from .contest import Contest


def eager(new: torch.Tensor, old: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The corrected loss as one writes it in torch."""
    cross_entropy = F.cross_entropy(new, target)
    divergence = F.kl_div(
        F.log_softmax(new / 100.0, dim=1), F.log_softmax(old / 100.0, dim=1), reduction="none", log_target=True
    )
    weight = 1.0 + 5.0 * (old.argmax(1) == target)
    return cross_entropy + (weight * divergence.sum(1)).mean() * 100.0**2


def inputs(shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(shape, generator=generator) * 3
    new = old + torch.randn(shape, generator=generator)
    target = torch.randint(0, shape[1], shape[:1], generator=generator)
    target[::2] = old.argmax(1)[::2]
    return new.to(dtype), old.to(dtype), target


def contests(quick: bool = False) -> Iterator[Contest]:
    shapes = DISTILL_TIMED[2:] if quick else DISTILL_TIMED
    for shape in shapes:
        yield contest(shape, torch.float32)
    yield contest(shapes[-2 if len(shapes) > 1 else 0], torch.bfloat16)
    yield call_contest()
    if not quick:
        yield new_pages_contest(shapes[0])


def contest(shape: tuple[int, int], dtype: torch.dtype) -> Contest:
    new, old, target = inputs(shape, dtype)
    losses: dict[str, Callable[..., torch.Tensor]] = {
        "graceful_fast": gf.focal_distillation_loss,
        "torch eager": eager,
        "torch.compile": torch.compile(eager),
    }

    def step(loss: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = new.detach().requires_grad_()
        value = loss(leaf, old, target)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    def check() -> None:
        leaf = new[:32].double().requires_grad_()
        value = gf.reference.focal_distillation_loss(leaf, old[:32].double(), target[:32])
        (expected,) = torch.autograd.grad(value, leaf)
        ours = new[:32].detach().requires_grad_()
        loss = gf.focal_distillation_loss(ours, old[:32], target[:32])
        loss.backward()
        assert ours.grad is not None
        assert abs(loss.item() - value.item()) <= 2e-5 * abs(value.item()), (loss.item(), value.item())
        error = (ours.grad - expected).abs().max() / expected.abs().max()
        assert error <= (1e-5 if dtype == torch.float32 else 1e-2), error.item()

    entries = {name: partial(step, loss) for name, loss in losses.items()}
    case = f"{shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
    return Contest("distill", case, entries, check, 3.0 * new.numel() * new.element_size(), "B/s")


def new_pages_contest(shape: tuple[int, int]) -> Contest:
    """A large gradient into pages that are new to the process: none is ever freed, so no block comes back for reuse."""
    new, old, target = inputs(shape, torch.float32)
    held: list[torch.Tensor] = []

    def step() -> None:
        leaf = new.detach().requires_grad_()
        gf.focal_distillation_loss(leaf, old, target).backward()
        assert leaf.grad is not None
        held.append(leaf.grad)

    case = f"{shape[0]} x {shape[1]} float32, every gradient in new pages"
    return Contest("distill", case, {"graceful_fast": step}, lambda: None, 3.0 * new.numel() * 4, "B/s")


def call_contest() -> Contest:
    """What a call costs beside the work: a forward pass of 4 x 10 logits, with and without a gradient to come."""
    new, old, target = inputs((4, 10), torch.float32)
    leaf = new.clone().requires_grad_()
    entries: dict[str, Callable[[], Any]] = {
        "graceful_fast": lambda: gf.focal_distillation_loss(leaf, old, target),
        "graceful_fast, no gradient": lambda: gf.focal_distillation_loss(new, old, target),
        "torch eager": lambda: eager(leaf, old, target),
    }
    return Contest("distill", "4 x 10 float32, forward only", entries, lambda: None, 2.0 * new.numel() * 4, "B/s")
