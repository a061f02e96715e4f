"""The torchmetrics metrics: equal to count_flips over all batches, and mergeable."""

import math
import subprocess
import sys

import pytest
import torch

import graceful_fast as gf

OLD, NEW = (torch.randn(64, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
TARGET = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("metric", "rate"), [("NegativeFlipRate", "nfr"), ("RelativeNegativeFlipRate", "relative_nfr")]
)
@pytest.mark.parametrize("topk", [1, 2])
def test_batches_add_up_to_the_whole(metric: str, rate: str, topk: int) -> None:
    flip_rate = getattr(gf, metric)(topk=topk)
    for rows in torch.arange(64).split(10):
        flip_rate.update(OLD[rows], NEW[rows], TARGET[rows])
    assert flip_rate.compute().item() == getattr(gf.count_flips(OLD, NEW, TARGET, topk=topk), rate)
    flip_rate.reset()
    flip_rate.update(OLD[:0], NEW[:0], TARGET[:0])
    assert math.isnan(flip_rate.compute().item())


def test_states_are_integers_that_processes_sum() -> None:
    whole, first, second = (gf.NegativeFlipRate() for _ in range(3))
    whole.update(OLD, NEW, TARGET)
    first.update(OLD[:20], NEW[:20], TARGET[:20])
    second.update(OLD[20:], NEW[20:], TARGET[20:])
    assert first.outcomes.dtype == torch.int64
    assert first._reductions["outcomes"] is not None
    first.merge_state(second)
    assert torch.equal(first.outcomes, whole.outcomes)
    assert first.compute() == whole.compute()


def test_forward_gives_the_rate_of_the_batch() -> None:
    metric = gf.NegativeFlipRate()
    metric.update(OLD, NEW, TARGET)
    before = metric.compute().item()
    assert metric(torch.tensor([0, 0]), torch.tensor([1, 0]), torch.tensor([0, 0])).item() == 0.5
    assert metric.counts().total == 66
    assert metric.compute().item() != before


def test_bad_input_is_that_of_count_flips() -> None:
    with pytest.raises(ValueError, match=r"target: .* got -1 in row 1"):
        gf.NegativeFlipRate().update([0, 1], [0, 1], [0, -1])


def test_without_torchmetrics_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torchmetrics"] = None
import graceful_fast as gf
try:
    gf.NegativeFlipRate
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expected torchmetrics to be installed: pip install torchmetrics" in done.stdout
