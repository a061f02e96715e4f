"""bench/gpu.py runs to its end on the emulator, so that it does the first time it meets a GPU."""

import json
from pathlib import Path

import pytest
import torch

from . import gpu


def test_it_runs_to_its_end_on_the_emulator(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "gpu.json"
    code = gpu.main(["--engine", "simt", "--toy", "--rounds", "1", "--output", str(output)])
    assert code == 0, capfd.readouterr().out
    report = json.loads(output.read_text())
    assert report["tests"]["exit"] == 0
    assert report["tests"]["passed"] > 0
    assert set(report["limits"]) == {"copy", "float32", "float16", "bfloat16", "int8"}
    assert {one["what"].split(":")[0] for one in report["results"]} == {
        "distill",
        "influence",
        "flips",
        "scan",
        "metrics",
    }
    for one in report["results"]:
        ours = next(iter(one["entries"].values()))
        assert ours["fraction"] > 0
        assert "failed" not in one
    assert {"faiss-gpu", "cuVS", "torch.compile"} >= set(report["absent"]) >= {"torch.compile"}
    assert report["machine"]["commit"]


def test_a_failure_is_reported_and_the_rest_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> gpu.Held:
        raise RuntimeError("no memory")

    def peer() -> None:
        raise RuntimeError("no such shape")

    contest = gpu.Contest("op", "case", {"ours": lambda: None, "peer": peer}, lambda: None, 1.0, "B/s")
    monkeypatch.setattr(gpu, "contests", lambda device, toy: [broken, lambda: gpu.Held(contest, "copy")])
    monkeypatch.setattr(gpu, "run_tests", lambda engine, toy: {"exit": 0})
    output = tmp_path / "gpu.json"
    assert gpu.main(["--engine", "simt", "--toy", "--rounds", "1", "--output", str(output)]) == 1
    first, second = json.loads(output.read_text())["results"]
    assert first["error"] == "RuntimeError: no memory"
    assert second["failed"] == {"peer": "RuntimeError: no such shape"}
    assert list(second["entries"]) == ["ours"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--output", str(tmp_path / "gpu.json")]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()
