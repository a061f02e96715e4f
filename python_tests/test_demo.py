"""The demo: it runs from end to end, its effect shows in several seeds, and the published pair is optional."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from graceful_fast.demo import digits, evaluate, files, images, published

tables = pytest.importorskip("graceful_fast.demo.tables")  # needs rich


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graceful_fast", "demo", *arguments], capture_output=True, text=True, check=False
    )


def loaded_images() -> images.Images:
    try:
        return images.load_images()
    except ValueError as reason:
        pytest.skip(str(reason))


def test_quick_demo_runs_from_end_to_end(tmp_path):
    pytest.importorskip("jinja2")
    loaded_images()
    done = command("--quick", "--output", str(tmp_path / "out"), "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    assert result["schema"] == "graceful_fast.demo/1"
    assert result["published"] == {"skipped": "left out by --quick"}
    (seed,) = result["digits"]["seeds"]
    assert list(seed["models"]) == ["old", "reseed", "plain", "focal distillation", "BCT"]
    for name in evaluate.SUCCESSORS:
        numbers = seed["models"][name]
        assert 0 <= numbers["nfr"] <= 1
        assert numbers["old/old"] == seed["models"]["old"]["old/old"]
        assert numbers["compatible"] == (numbers["new/old"] > numbers["old/old"])
        assert result["digits"]["summary"][name]["nfr"]["mean"] == numbers["nfr"]
    assert [Path(report).name for report in result["reports"]] == [
        "digits-plain.html",
        "digits-focal-distillation.html",
    ]
    assert all("<html" in Path(report).read_text(encoding="utf-8") for report in result["reports"])


def test_no_seed_is_bad_input(tmp_path):
    done = command("--seeds", "0", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "seeds: expected 1 or more, got 0" in done.stderr


def test_a_folder_that_cannot_be_made_and_a_file_that_cannot_be_written_are_known_at_once(tmp_path):
    (tmp_path / "file").touch()
    for arguments, reason in (
        (("--output", str(tmp_path / "file")), f"{tmp_path}/file: cannot make the folder: File exists"),
        (("--output", str(tmp_path), "--json", "nowhere/d.json"), "nowhere/d.json: cannot write: No such file"),
    ):
        done = command("--quick", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"graceful-fast: {reason}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def seed_of(gain, relative_nfr=0.5):
    numbers = {"accuracy": 0.912, "nfr": 0.0123, "relative_nfr": relative_nfr, "compatible": False, "update_gain": gain}
    numbers |= {"old/old": 0.853, "new/old": 0.234, "new/new": 0.956}
    return {"models": {"old": {"accuracy": 0.9, "old/old": 0.853}, **dict.fromkeys(evaluate.SUCCESSORS, numbers)}}


def printed(table):
    from rich.console import Console

    screen = Console(width=200, file=io.StringIO())
    screen.print(table)
    return screen.file.getvalue()


def test_undefined_ratios_are_null_and_a_dash():
    numbers = [seed_of(0.4), seed_of(None, None)]
    summary = evaluate.summarise(numbers)
    assert summary["BCT"]["update_gain"] is None
    assert summary["BCT"]["relative_nfr"] is None
    assert summary["BCT"]["nfr"] == {"mean": 0.0123, "min": 0.0123, "max": 0.0123}
    json.dumps(summary, allow_nan=False)
    assert re.search(r"BCT .* 0 of 2 . +- ", printed(tables.retrieval(summary, 2)))
    assert re.search(r"BCT .* 1.23 . +- ", printed(tables.flips(summary, 2)))


def test_evaluation_of_a_perfect_old_model_has_no_undefined_number():
    embeddings = torch.eye(4).repeat(2, 1)
    model = digits.Trained("plain", embeddings, 9 * embeddings, 0.0)
    labels = torch.arange(4).repeat(2)
    numbers = evaluate.evaluate_model(model, digits.Trained("old", embeddings, embeddings, 0.0), model, labels)
    assert (numbers["old/old"], numbers["nfr"], numbers["compatible"]) == (1, 0, False)
    assert numbers["relative_nfr"] is numbers["update_gain"] is None


@pytest.mark.parametrize(("gain", "cell"), [(-27.5, "-"), (0.0, "-"), (0.42, "42")])
def test_gain_is_shown_where_there_is_one(gain, cell):
    text = printed(tables.retrieval(evaluate.summarise([seed_of(gain)]), 1))
    assert re.search(rf"BCT .* 0 of 1 . +{cell} ", text)
    assert re.search(r"old +. +85.3 . +- ", text)


def test_tables_fit_eighty_columns():
    numbers = [seed_of(0.4) for _ in range(10)]
    for name in evaluate.SUCCESSORS:
        varied = {"nfr": 0.01, "accuracy": 0.8, "relative_nfr": 0.4, "new/old": 0.1, "new/new": 0.9, "update_gain": 0.9}
        numbers[3]["models"][name] = numbers[3]["models"][name] | varied
    for table in (tables.flips, tables.retrieval):
        assert max(map(len, printed(table(evaluate.summarise(numbers), 10)).rstrip().splitlines())) <= 80


def test_titles_say_what_the_brackets_are():
    summary = evaluate.summarise([seed_of(0.5), seed_of(0.5)])
    for table in (tables.flips, tables.retrieval):
        assert "mean and [range] of 2 seeds" in " ".join(printed(table(summary, 2)).split())


@pytest.mark.slow
def test_compatible_training_saves_what_plain_training_breaks():
    from graceful_fast.demo.digits import Recipe, train_seed

    data = loaded_images()
    if "MNIST" not in data.source:
        pytest.skip("the recipe is for MNIST-5k")
    split = images.split_images(data.labels)
    labels = data.labels[split.test]
    seeds = []
    for seed in range(3):
        models = {}
        train_seed(seed, Recipe(), data, split, lambda model, models=models: models.__setitem__(model.name, model))
        seeds.append(evaluate.evaluate_seed(seed, models, labels))
    summary = evaluate.summarise(seeds)
    plain, distilled, bct = (summary[name] for name in evaluate.SUCCESSORS[1:])
    assert distilled["nfr"]["mean"] < 0.85 * plain["nfr"]["mean"]
    assert distilled["accuracy"]["mean"] > plain["accuracy"]["mean"] - 0.005
    assert plain["compatible"] == 0
    assert plain["new/old"]["max"] < 0.5
    assert bct["compatible"] == 3
    assert bct["accuracy"]["mean"] > plain["accuracy"]["mean"] - 0.005


def test_published_pair_names_the_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(published, "find_spec", lambda module: None if module == "dotenv" else object())
    with pytest.raises(published.Unavailable, match=r"needs python-dotenv: pip install 'graceful-fast\[demo\]'"):
        published.run(lambda line: None)


def test_published_pair_says_when_it_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(published.Unavailable, match=r"^magika 0\.5\.1 cannot be downloaded: .+") as reason:
        published.obtain(published.OLD, tmp_path)
    assert "\n" not in str(reason.value)


def test_published_pair_skipped_is_no_failure(monkeypatch, tmp_path, capsys):
    from rich.console import Console

    import graceful_fast.demo as demo

    def refuse(say):
        raise published.Unavailable("no network")

    monkeypatch.setattr(published, "run", refuse)
    assert demo._run_published(tmp_path, False, Console()) == {"skipped": "no network"}
    assert "published pair skipped: no network" in capsys.readouterr().out


def test_published_pair_says_when_there_is_no_cache_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(published, "missing_packages", list)
    with pytest.raises(published.Unavailable, match="cannot be used as cache: Not a directory"):
        published.run(lambda line: None)


def test_wheel_of_another_hash_is_never_unpacked(monkeypatch, tmp_path):
    (tmp_path / "magika-0.5.1-py3-none-any.whl").write_bytes(b"not the wheel")
    monkeypatch.setattr(published, "_download", lambda release, cache: None)
    with pytest.raises(published.Unavailable, match="pinned hash"):
        published.obtain(published.OLD, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["magika-0.5.1-py3-none-any.whl"]


def test_release_that_does_not_run_is_unavailable(tmp_path):
    (tmp_path / "magika.py").write_text("raise ImportError('no such runtime')\n", encoding="utf-8")
    with pytest.raises(published.Unavailable, match="does not run here: ImportError: no such runtime"):
        published.predict(tmp_path, [Path("a.py")])


def test_labels_of_both_releases_are_read(tmp_path):
    (tmp_path / "magika.py").write_text(
        "from types import SimpleNamespace as N\n"
        "class Magika:\n"
        "    def identify_paths(self, paths):\n"
        "        return [N(output=N(ct_label='python')), N(output=N(label='cpp')), N()][: len(paths)]\n",
        encoding="utf-8",
    )
    assert published.predict(tmp_path, [Path("a"), Path("b"), Path("c")]) == ["python", "c", "unknown"]


def test_published_report_compares_both_releases_with_the_extension():
    found = [files.LabelledFile(Path(f"{i}.x"), kind) for i, kind in enumerate(["python", "python", "c", "toml"])]
    report = published.report_of(found, ["python", "python", "txt", "txt"], ["python", "perl", "c", "toml"])
    assert (report.flips.negative_indices.tolist(), report.flips.positive) == ([1], 2)
    assert {group.name: group.flips.total for group in report.per_group} == {
        "types that both know": 3,
        "types new in 1.0": 1,
    }
    text = printed(tables.published(report))
    assert re.search(r"python .* 2 . +1 . +0 . perl 1 ", text)
    assert not re.search("toml|txt", text)  # nothing of theirs broke
    assert "4 files: accuracy 50.0% before, 75.0% after; negative flips 25.00%" in tables.published_in_words(report)
    assert tables.facts(report)["classes"]["python"] == {"files": 2, "broken": 1, "fixed": 0}


def test_files_are_chosen_evenly_and_the_same_each_time(tmp_path):
    for folder in "abcd":
        (tmp_path / folder).mkdir()
        for i in range(5):
            (tmp_path / folder / f"{i}.py").write_text("x" * files.SMALLEST_FILE, encoding="utf-8")
    (tmp_path / "a" / "tiny.py").write_text("x", encoding="utf-8")
    (tmp_path / "a" / "page.HTML").write_text("x" * files.SMALLEST_FILE, encoding="utf-8")
    (tmp_path / "a" / "unknown.xyz").write_text("x" * files.SMALLEST_FILE, encoding="utf-8")
    (tmp_path / "a" / "link.py").symlink_to(tmp_path / "b" / "0.py")
    chosen = files.choose_files([tmp_path], 4)
    assert chosen == files.choose_files([tmp_path], 4)
    assert [file.kind for file in chosen] == ["html"] + 4 * ["python"]
    assert len({file.path.parent for file in chosen[1:]}) >= 3
    assert len(files.choose_files([tmp_path], 1000)) == 21


def test_split_is_disjoint_and_balanced():
    labels = torch.arange(10).repeat(50)
    split = images.split_images(labels)
    assert len(set(split.train.tolist()) & set(split.test.tolist())) == 0
    assert torch.bincount(labels[split.test]).tolist() == 10 * [20]


def test_shift_moves_each_image_by_whole_pixels():
    pixels = torch.zeros(64, 1, images.SIDE, images.SIDE)
    pixels[:, 0, 10, 10] = 1
    shifted = images.shift_randomly(pixels, torch.Generator().manual_seed(0))
    places = shifted[:, 0].nonzero()
    assert len(places) == 64
    assert {tuple(place) for place in places[:, 1:].tolist()} == {(9 + i, 9 + j) for i in range(3) for j in range(3)}


def test_training_is_the_same_for_the_same_seed():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(40, 1, images.SIDE, images.SIDE, generator=generator)
    data = images.Images(pixels, torch.arange(40) % 10, "noise")
    before = torch.random.get_rng_state()
    one, two = (
        digits.train(digits.new_body, digits.QUICK, data, torch.arange(40), 3, digits.cross_entropy, seed=7)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


def test_png_is_read_back(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    image = torch.zeros(1, 4, 5)
    image[0, 1, 2] = 1
    images.write_png(image, tmp_path / "a.png", enlarge=2)
    with image_module.open(tmp_path / "a.png") as read:
        pixels = np.asarray(read)
    assert pixels.shape == (8, 10)
    assert (pixels[2:4, 4:6] == 0).all()
    assert (pixels == 0).sum() == 4
