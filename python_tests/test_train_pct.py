"""The recipe of positive-congruent training: it runs, resumes, compares the right images, its page is true."""

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from graceful_fast.demo.images import load_images
from graceful_fast.training.recipes import digits, pct_report, pct_sections, pct_settings, pct_sweep
from graceful_fast.training.results import Results

Console = pytest.importorskip("rich.console").Console
pct_run = pytest.importorskip("graceful_fast.training.recipes.pct_run")
PAGE = Path(__file__).parents[1] / "docs/recipes/pct.md"
COMMITTED = PAGE.with_suffix("")
needs_docs = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    try:
        load_images()
    except ValueError as reason:
        pytest.skip(str(reason))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graceful_fast", "train", "pct", *arguments], capture_output=True, text=True, check=False
    )


def test_quick_recipe_runs_and_a_second_run_measures_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = command("--quick", "--output", str(tmp_path), "--json", "-")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout, parse_constant=pytest.fail)
    assert summary["schema"] == "graceful_fast.train.pct.summary/1"
    assert list(summary["tables"]) == list(pct_settings.SETTINGS)
    for rows in summary["tables"].values():
        assert [row["objective"] for row in rows] == list(pct_settings.OBJECTIVES)
    assert done.stderr.count("same architecture/plain/0") == 1
    written = (tmp_path / "settings.json").read_bytes()
    assert all(Path(name).stat().st_size for name in summary["files"])
    screen = Console(file=io.StringIO())
    assert pct_run.run(tmp_path, quick=True, console=screen) == summary
    assert "plain/0" not in screen.file.getvalue()
    assert (tmp_path / "settings.json").read_bytes() == written


def test_bad_options_and_other_results_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    for options, reason in (
        ({"part": "everything"}, "part: expected one of settings, sweep, published, got 'everything'"),
        ({"seeds": 0}, "seeds: expected 1 or more, got 0"),
        ({"images": 19}, "images: expected 20 or more, with part settings, got 19 with settings"),
        ({"part": "sweep", "images": 300}, "images: expected 20 or more, with part settings, got 300 with sweep"),
        ({}, f"{tmp_path}/settings.json: expected results of graceful_fast.train.pct/1, got another file"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            pct_run.run(tmp_path, **options)
    done = command("--output", str(tmp_path), "--part", "everything")
    expected = "graceful-fast: --part: expected one of settings, sweep, published, got 'everything'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def small(seed: int = 0) -> pct_settings.Models:
    recipe = pct_settings.Recipe(train=60, validation=20, steps=4, batch=8, members=2)
    return pct_settings.Models(digits.load_digits(60, 20), recipe, seed)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_parts_have_no_image_in_common_and_all_classes_alike() -> None:
    parts = digits.load_digits(500, 1000)
    rows = torch.cat(parts[1:])
    assert len(rows.unique()) == len(rows)
    for part in parts[1:]:
        counts = parts.images.labels[part].bincount()
        assert counts.max() == counts.min()
    with pytest.raises(ValueError, match=r"expected fewer than .* images together, got 6000"):
        digits.load_digits(5000, 1000)


def test_a_generation_trains_on_its_own_images_and_classes() -> None:
    models = small()
    seen: dict[str, set[int]] = {}

    def objective(logits: torch.Tensor, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.setdefault(f"{logits.shape[1]}", set()).update(target.tolist())
        return torch.nn.functional.cross_entropy(logits, target)

    for generation in ("small", "five classes"):
        models.train(generation, objective)
    assert seen == {"10": set(range(10)), "5": set(range(5))}


def test_objectives_start_from_one_model_and_see_the_same_batches_and_seeds_do_not() -> None:
    def first_steps(models: pct_settings.Models, number: int, factor: float) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def objective(logits: torch.Tensor, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            seen.extend([inputs, target] if seen else [logits.detach(), inputs, target])
            return factor * torch.nn.functional.cross_entropy(logits, target)

        models.train("small, again", objective, number)
        return seen

    first = first_steps(small(), 0, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(first, first_steps(small(), 0, 2.0), strict=True))
    for models, number in ((small(), 1), (small(1), 0)):
        assert not any(torch.equal(a, b) for a, b in zip(first, first_steps(models, number, 1.0), strict=True))
    assert equal(small().member("small"), small().member("small"))
    assert not equal(small().member("small"), small().member("small, again"))


def test_reseed_and_the_same_architecture_are_the_same_kind_of_update() -> None:
    models = small()
    for setting in pct_settings.SETTINGS:
        old, again = pct_settings.pair(models, setting, "reseed", {})
        assert old is models.member(pct_settings.SETTINGS[setting].old)
        assert again is models.member(pct_settings.SETTINGS[setting].old, 1)
    old, new = pct_settings.pair(models, "same architecture", "ensemble", {})
    assert list(old.members) == models.members("small")
    assert list(new.members) == models.members("small, again")


def test_flips_are_counted_where_the_old_model_knows_the_class() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    before, after = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 3, 2, 0])
    entry = pct_settings.flip_entry(before, after, labels, old_classes=2)
    assert (entry["samples"], entry["negative"], entry["nfr"]) == (2, 1, 0.5)
    assert (entry["error_old"], entry["error_new"], entry["error_new_all"]) == (0.0, 0.5, 0.5)
    perfect = pct_settings.flip_entry(labels, labels, labels, old_classes=4)
    assert (perfect["nfr"], perfect["relative_nfr"]) == (0.0, None)


def test_averaged_focus_is_the_published_codes_broadcast() -> None:
    old_logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    target = torch.tensor([0, 1, 1, 0])
    new = torch.randn(4, 2, dtype=torch.float64)
    averaged = pct_settings.AveragedFocus(
        torch.nn.Identity(), alpha=1.0, beta=5.0, divergence="logits", cross_entropy_weight=0.0
    )
    weights = torch.tensor([6.0, 1.0, 6.0, 1.0], dtype=torch.float64)
    losses = (new - old_logits).square().mean(1) / 2
    published = (weights[:, None] * losses).mean()
    assert averaged(new, old_logits, target) == pytest.approx(float(published))
    assert float(published) != pytest.approx(float((weights * losses).mean()))


def results_of(tmp_path: Path, entries: dict[str, tuple[float, float]]) -> Results:
    results = Results(tmp_path / "sweep.json", "test/1", {})
    for name, (error, nfr) in entries.items():
        results.entries[name] = {"error_new_all": error, "nfr": nfr, "error_old": 0.1, "relative_nfr": None}
    return results


def test_options_are_chosen_by_flips_among_those_that_keep_the_error(tmp_path: Path) -> None:
    setting = "larger architecture"
    results = results_of(
        tmp_path,
        {
            f"{setting}/plain//100": (0.050, 0.020),
            f"{setting}/plain//101": (0.050, 0.020),
            f"{setting}/FD-KL/distillation_weight=0.1/100": (0.050, 0.018),
            f"{setting}/FD-KL/distillation_weight=0.1/101": (0.050, 0.018),
            f"{setting}/FD-KL/distillation_weight=0.3/100": (0.058, 0.010),
            f"{setting}/FD-KL/distillation_weight=0.3/101": (0.051, 0.012),
            f"{setting}/FD-KL/distillation_weight=1.0/100": (0.058, 0.001),
            f"{setting}/FD-KL/distillation_weight=1.0/101": (0.054, 0.001),
            f"{setting}/naive/weight=1.0/100": (0.2, 0.0),
            f"{setting}/naive/weight=5.0/100": (0.1, 0.1),
        },
    )
    assert pct_sweep.choose(results, setting, "FD-KL") == {"distillation_weight": 0.3}
    assert pct_sweep.choose(results, setting, "naive") == {"weight": 5.0}  # none is allowed: the least error


def test_rows_read_against_plain_and_undefined_ratios_are_a_dash() -> None:
    def entry(error: float, nfr: float, relative: float | None = 0.5) -> dict[str, float | None]:
        return {"error_old": 0.1, "error_new_all": error, "nfr": nfr, "relative_nfr": relative}

    rows = pct_report.rows_of(
        {"plain": [entry(0.05, 0.02), entry(0.07, 0.04)], "FD-KL": [entry(0.06, 0.01), entry(0.065, 0.02, None)]}
    )
    assert rows[1].cells() == ["FD-KL", "6.25 ± 0.35", "1.50 ± 0.71", "-", "-50 %", "+0.25"]
    assert rows[0].cells()[3:] == ["50.0 ± 0.0", "+0 %", "+0.00"]
    assert pct_report.rows_of({"plain": [entry(0.05, 0.0)]})[0].cells()[4] == "-"


def test_published_encoders_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pct_sections, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="is not installed: pip install transformers onnxruntime vital"):
        pct_sections.weights_folder(pct_sections.OLD)


def test_a_head_reads_its_own_encoder_alone() -> None:
    recipe = pct_sections.Recipe()
    embeddings = torch.randn(3, 2 * pct_sections.DIM)
    for half in (0, 1):
        head = pct_sections.Head(half, recipe).eval()
        other = embeddings.clone()
        other[:, (1 - half) * pct_sections.DIM : (2 - half) * pct_sections.DIM] = torch.nan
        assert torch.equal(head(other), head(embeddings))
        assert head(embeddings).shape == (3, len(pct_sections.SECTIONS))


COMMITTED_PARTS = {
    "settings": (5, pct_settings.SCHEMA),
    "sweep": (2, pct_sweep.SCHEMA),
    "published": (5, pct_sections.SCHEMA),
}


@needs_docs
@pytest.mark.parametrize("part", COMMITTED_PARTS)
def test_the_page_shows_the_committed_results(part: str) -> None:
    seeds, schema = COMMITTED_PARTS[part]
    found = json.loads((COMMITTED / f"{part}.json").read_text())
    assert found["schema"] == schema
    assert found["command"].startswith("graceful-fast train pct")
    groups: dict[str, set[str]] = {}
    chosen_by: set[str] = set()
    for name, entry in found["entries"].items():
        group, _, seed = name.rpartition("/")
        if name.startswith("validation/"):
            chosen_by.add(seed)
        else:
            groups.setdefault(group, set()).add(seed)
        assert entry["nfr"] - entry["pfr"] == pytest.approx(entry["error_new"] - entry["error_old"]), name
        assert entry["nfr"] == pytest.approx(entry["negative"] / entry["samples"]), name
    assert {len(numbers) for numbers in groups.values()} == {seeds}
    assert set.union(*groups.values()).isdisjoint({"100", "101"}) == (part != "sweep")
    assert chosen_by == ({"100", "101"} if part == "published" else set())
    tables = (COMMITTED / f"tables-{part}.md").read_text()
    if part != "sweep":
        assert tables in PAGE.read_text()


@needs_docs
def test_the_recipes_options_are_those_that_the_sweep_chose() -> None:
    recipe = pct_settings.Recipe()
    head = json.loads((COMMITTED / "sweep.json").read_text())["recipe"]
    results = Results(COMMITTED / "sweep.json", pct_sweep.SCHEMA, head)
    for setting in pct_settings.SETTINGS:
        for objective in ("naive", "FD-KL", "FD-LM"):
            assert recipe.options[setting][objective] == pct_sweep.choose(results, setting, objective)
    assert json.loads((COMMITTED / "settings.json").read_text())["recipe"] == json.loads(json.dumps(asdict(recipe)))
