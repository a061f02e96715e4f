"""Objectives of positive-congruent training: formulas, who gets gradients, and that the old model stays as it was."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import graceful_fast as gf
from graceful_fast import reference
from graceful_fast.training import pct

ROWS, WIDTH, CLASSES = 12, 6, 5


def network(seed: int, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With what training mode changes: batch norm, and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, classes)).to(
        dtype
    )


def batch(dtype: torch.dtype = torch.float32, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, WIDTH, generator=generator, dtype=dtype),
        torch.randint(CLASSES, (rows,), generator=generator),
    )


def near(value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((value - expected).abs().max() <= tolerance * expected.abs().max())


OBJECTIVES = {
    "FD-KL": (pct.FocalDistillation, {}),
    "FD-LM": (pct.FocalDistillation, {"divergence": "logits", "alpha": 0.5, "beta": 2.0}),
    "LDI": (pct.FocalDistillation, {"divergence": "ldi", "focus": "all", "distillation_weight": 0.5}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_the_reference_on_both_models_logits(name: str) -> None:
    kind, options = OBJECTIVES[name]
    old, new = network(1, dtype=torch.float64), network(2, dtype=torch.float64).eval()
    inputs, target = batch(torch.float64)
    kind(old, **options)(new(inputs), inputs, target).backward()
    gradients = [parameter.grad.clone() for parameter in new.parameters()]
    new.zero_grad()
    old_logits = copy.deepcopy(old).eval()(inputs)
    expected = reference.focal_distillation_loss(new(inputs), old_logits, target, **options)
    loss = kind(old, **options)(new(inputs), inputs, target)
    assert near(loss, expected, 1e-9)  # the reference's own KL at T = 100 keeps ten digits
    expected.backward()
    for parameter, gradient in zip(new.parameters(), gradients, strict=True):
        assert near(gradient, parameter.grad, 1e-9)


def test_elodi_is_ldi_to_the_mean_logits_without_the_targets_class() -> None:
    members = [network(seed, dtype=torch.float64) for seed in range(3)]
    inputs, target = batch(torch.float64)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        mean = sum(copy.deepcopy(member).eval()(inputs) for member in members) / 3
    loss = pct.elodi(members)(logits, inputs, target)
    squares = (logits - mean).square().scatter(1, target[:, None], 0).mean(1)
    expected = 0.2 * F.cross_entropy(logits, target) + 0.8 * squares.mean()
    assert near(loss, expected.detach(), 1e-12)
    (gradient,) = torch.autograd.grad(pct.elodi(members, cross_entropy_weight=0.0)(logits, inputs, target), logits)
    assert not gradient.gather(1, target[:, None]).any()
    assert gradient.abs().sum() > 0


def test_naive_counts_rows_more_that_the_old_model_gets_right() -> None:
    old = network(1, dtype=torch.float64)
    inputs, target = batch(torch.float64)
    answers = copy.deepcopy(old).eval()(inputs).argmax(1)
    target[:4] = answers[:4]
    new = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    right = (answers == target).double()
    assert 0 < right.sum() < ROWS
    rows = F.cross_entropy(new, target, reduction="none")
    for weight in (0.0, 1.0, 5.0):
        loss = pct.NaiveReweighting(old, weight=weight)(new, inputs, target)
        assert near(loss, ((1 + weight * right) * rows).mean(), 1e-12)


def test_naive_with_ties_ignored_rows_and_classes_that_the_old_model_lacks() -> None:
    old_logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0], [9.0, 0.0]])
    target = torch.tensor([0, 1, 2, -100])  # right: the first of equal ones; wrong; unknown to the old model; ignored
    new = torch.randn(4, 3)
    rows = F.cross_entropy(new, target, reduction="none")
    expected = (3 * rows[0] + rows[1] + rows[2]) / 3
    objective = pct.NaiveReweighting(nn.Identity(), weight=2.0)
    assert near(objective(new, old_logits, target), expected, 1e-6)
    assert near(objective(new, old_logits, target, count=6.0), expected / 2, 1e-6)
    swapped = pct.NaiveReweighting(nn.Identity(), weight=2.0, class_map=torch.tensor([1, -1, 0]))
    # New class 0 is old class 1, new class 2 is old class 0: of equal logits the smaller new class is the answer.
    assert near(swapped(new, old_logits, torch.tensor([0, 2, 0, 2])), _weighted(new, [0, 2, 0, 2], [3, 1, 3, 3]), 1e-6)
    wider = pct.NaiveReweighting(nn.Identity(), weight=2.0)
    assert near(wider(new[:, :1], old_logits, torch.zeros(4, dtype=torch.long)), torch.zeros(()), 1.0)
    assert objective(new[:0], old_logits[:0], target[:0]) == 0
    assert objective(new, old_logits, torch.full((4,), -100)) == 0


def _weighted(new: torch.Tensor, target: list[int], weights: list[int]) -> torch.Tensor:
    rows = F.cross_entropy(new, torch.tensor(target), reduction="none")
    return (rows * torch.tensor(weights)).mean()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight: expected a finite number, 0 or more, got"):
        pct.NaiveReweighting(network(0), weight=weight)


ALL = {
    "naive": lambda old: pct.NaiveReweighting(old, weight=2.0),
    "FD-KL": pct.FocalDistillation,
    "ELODI": lambda old: pct.elodi([old, network(5)]),
}


@pytest.mark.parametrize("name", ALL)
def test_training_leaves_the_old_model_as_it_was(name: str) -> None:
    old, new = network(1), network(2)
    old.train()
    objective = ALL[name](old)
    both = nn.ModuleDict({"new": new, "objective": objective}).train()  # as a Lightning module would hold them
    before = copy.deepcopy(old.state_dict())
    start = copy.deepcopy(new.state_dict())
    optimizer = torch.optim.AdamW(both.parameters(), lr=0.1, weight_decay=0.1)
    inputs, target = batch()
    for _ in range(3):
        optimizer.zero_grad()
        objective(new(inputs), inputs, target).backward()
        optimizer.step()
    assert new.training
    assert not old.training
    assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items())
    assert all(parameter.grad is None for parameter in old.parameters())
    assert all((value != start[key]).any() for key, value in new.state_dict().items())


def test_an_old_model_in_training_mode_is_refused() -> None:
    old = network(1)
    objective = pct.FocalDistillation(old)
    old.train()
    inputs, target = batch()
    with pytest.raises(ValueError, match="old: expected a model in eval mode, got one in training mode"):
        objective(torch.zeros(ROWS, CLASSES), inputs, target)


def test_the_old_model_sees_what_the_new_one_sees() -> None:
    class Seen(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.inputs = inputs
            return super().forward(inputs)

    old = Seen(WIDTH, CLASSES)
    inputs, target = batch()
    pct.FocalDistillation(old)(torch.zeros(ROWS, CLASSES), inputs, target)
    assert old.inputs is inputs


def test_an_ensemble_is_the_mean_of_logits_and_has_members() -> None:
    members = [network(seed).eval() for seed in range(3)]
    inputs, _ = batch()
    with torch.no_grad():
        expected = (members[0](inputs) + members[1](inputs) + members[2](inputs)) / 3
        assert near(pct.Ensemble(members)(inputs), expected, 1e-6)
    with pytest.raises(ValueError, match="members: expected at least one model, got none"):
        pct.Ensemble([])


@pytest.mark.parametrize("name", ALL)
def test_no_rows_cost_nothing(name: str) -> None:
    inputs, target = batch(rows=0)
    logits = torch.zeros(0, CLASSES, requires_grad=True)
    loss = ALL[name](network(1))(logits, inputs, target)
    loss.backward()
    assert loss == 0
    assert logits.grad.shape == (0, CLASSES)


@pytest.mark.parametrize("name", ALL)
def test_autocast_computes_both_models_in_half_precision(name: str) -> None:
    new, objective = network(2).eval(), ALL[name](network(1))
    inputs, target = batch()
    exact = objective(new(inputs), inputs, target)
    with torch.autocast("cpu", torch.bfloat16):
        logits = new(inputs)
        assert logits.dtype == objective.old_logits(inputs).dtype == torch.bfloat16
        loss = objective(logits, inputs, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss != exact
    assert near(loss, exact.detach(), 0.05)
    assert all(parameter.grad.dtype == torch.float32 for parameter in new.parameters())


# Dynamo makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ALL)
def test_a_whole_step_compiles_without_a_break(name: str) -> None:
    new, objective = network(2).eval(), ALL[name](network(1))
    inputs, target = batch()

    def step(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return objective(new(inputs), inputs, target)

    expected = torch.autograd.grad(step(inputs, target), list(new.parameters()))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(inputs, target), list(new.parameters()))
    assert all(near(a, b, 1e-5) for a, b in zip(found, expected, strict=True))


def gradients_of_rank(rank: int, folder: str) -> None:
    """One of two processes with an uneven part of the batch; rank 0 saves its gradients."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    inputs, target = batch()
    target[3] = -100
    part = slice(0, 9) if rank == 0 else slice(9, None)
    found = {}
    for name, make in ALL.items():
        model = DistributedDataParallel(network(2).eval())
        objective = make(network(1))
        count = gf.global_count(target[part])
        objective(model(inputs[part]), inputs[part], target[part], count=count).backward()
        found[name] = [parameter.grad for parameter in model.parameters()]
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    dist.destroy_process_group()


def test_two_processes_make_the_gradient_of_one(tmp_path: Path) -> None:
    code = "import sys, test_pct; test_pct.gradients_of_rank(int(sys.argv[1]), sys.argv[2])"
    folder = Path(__file__).parent
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path)], cwd=folder, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors.decode()
    found = torch.load(tmp_path / "gradients.pt")
    inputs, target = batch()
    target[3] = -100
    for name, make in ALL.items():
        new = network(2).eval()
        make(network(1))(new(inputs), inputs, target).backward()
        for gradient, parameter in zip(found[name], new.parameters(), strict=True):
            assert near(gradient, parameter.grad, 1e-5), name
