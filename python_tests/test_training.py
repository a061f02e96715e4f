"""The training loop goes on exactly where it was stopped, and results of experiments are measured once."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from graceful_fast.training import pct
from graceful_fast.training.loop import Training
from graceful_fast.training.results import Results, spread


def training(tmp_seed: int = 0) -> Training:
    """All that a state has to hold: momentum, a schedule, dropout, batch norm, a shuffled loader."""
    torch.manual_seed(tmp_seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    old = nn.Linear(6, 3)
    data = TensorDataset(torch.randn(40, 6), torch.arange(40) % 3)
    batches = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(tmp_seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.5)
    return Training(model, pct.FocalDistillation(old, divergence="logits"), optimizer, batches, schedule)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = training()
    whole.run(4)
    first = training()
    first.run(2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)  # another process has another state of random numbers
    second = training()
    second.batches.generator.manual_seed(99)
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    second.run(4)
    assert second.epoch == 4
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    assert whole.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"] < 0.1


def test_half_precision_training_keeps_parameters_in_float32() -> None:
    seen = []
    run = training()
    objective = run.objective

    def noting(logits: torch.Tensor, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return objective(logits, inputs, target)

    run.objective, run.autocast = noting, torch.bfloat16
    run.run(1)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_an_entry_is_written_at_once_and_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "results.json"
    measured = []

    def measure() -> dict[str, float]:
        measured.append(1)
        return {"nfr": 0.25}

    results = Results(file, "test/1", {"steps": (1, 2)})
    assert results.entry("a/0", measure) == {"nfr": 0.25}
    assert json.loads(file.read_text())["entries"] == {"a/0": {"nfr": 0.25}}
    with pytest.raises(KeyboardInterrupt):
        results.entry("a/1", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    again = Results(file, "test/1", {"steps": (1, 2)})
    assert again.entry("a/0", measure) == {"nfr": 0.25}
    assert len(measured) == 1
    assert list(again.entries) == ["a/0"]
    assert {"command", "versions", "recipe"} <= json.loads(file.read_text()).keys()


def test_a_number_that_json_has_not_is_no_result(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", "test/1", {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.entry("a", lambda: {"nfr": float("nan")})
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected results of test/1, got another file"),
        ("[]", "expected results of test/1, got another file"),
        ('{"entries": {}}', "expected results of test/1, got another file"),
        ('{"entries": {}, "schema": "test/1", "recipe": {"steps": 2}}', "got another one's; use a new file"),
        ('{"entries": {}, "schema": "other/1", "recipe": {"steps": 1}}', "got another one's; use a new file"),
    ],
)
def test_a_file_of_something_else_is_neither_read_nor_overwritten(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        Results(file, "test/1", {"steps": 1})
    assert str(error.value).startswith(f"{file}: ")
    assert file.read_text() == text


def test_spread_of_one_value_and_of_several() -> None:
    assert spread([0.5]) == (0.5, 0.0)
    mean, deviation = spread([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert deviation == pytest.approx(torch.tensor([1.0, 2.0, 4.0]).std().item())
