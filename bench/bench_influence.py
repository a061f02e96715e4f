"""Influence loss, forward and backward to the features: ours, eager torch, torch.compile of the same; and memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from cases import INFLUENCE_TIMED

import graceful_fast as gf
import graceful_fast.reference

from .contest import Contest

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def eager(features: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(features @ weight.T, target)


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
    losses: dict[str, Loss] = {
        "graceful_fast": gf.influence_loss,
        "torch eager": eager,
        "torch.compile": torch.compile(eager),
    }

    def check() -> None:
        expected = step(gf.reference.influence_loss, features[:16].double(), weight.double(), target[:16])
        error = (step(gf.influence_loss, features[:16], weight, target[:16]) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max(), error.item()

    entries = {name: (lambda loss=loss: step(loss, features, weight, target)) for name, loss in losses.items()}
    case = " x ".join(map(str, shape))
    return Contest("influence", case, entries, check, 4.0 * shape[0] * shape[1] * shape[2], "op/s")


def peak_bytes(which: str, shape: tuple[int, int, int]) -> int:
    """How much a step raises the peak resident set of a process of its own that has warmed up on a small shape."""
    command = [sys.executable, "-m", "bench.bench_influence", which, *map(str, shape)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the growth of this process's peak resident set in one step."""
    which, *numbers = sys.argv[1:]
    shape = int(numbers[0]), int(numbers[1]), int(numbers[2])
    loss: Loss = gf.influence_loss if which == "graceful_fast" else eager
    step(loss, *inputs(*shape[:2], 1000))
    tensors = inputs(*shape)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again at what is resident now
    before = _peak()
    step(loss, *tensors)
    print(_peak() - before)


def _peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
