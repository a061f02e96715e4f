"""The recipe of compatible training: every part runs and resumes, measures what it says, its page is true."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from graceful_fast.demo.images import load_images
from graceful_fast.training import bct
from graceful_fast.training.recipes import (
    bct_backfill,
    bct_digits,
    bct_glosses,
    bct_report,
    bct_sweep,
    chain_digits,
    cross_version,
    digits,
    glosses,
)

rich = pytest.importorskip("rich.console")
from graceful_fast.training.recipes import bct_run  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs/recipes/bct.md"
COMMITTED = PAGE.with_suffix("")
needs_docs = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    try:
        load_images()
    except ValueError as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def few_glosses() -> glosses.Glosses:
    """Three topics, 160 glosses each, as two encoders might see them."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.arange(3 * glosses.PER_TOPIC) % 3
    old = F.one_hot(topics, 256) + 0.2 * torch.randn(len(topics), 256, generator=generator)
    new = F.one_hot(topics + 5, 384) + 0.1 * torch.randn(len(topics), 384, generator=generator)
    return glosses.Glosses(old, new, topics)


@pytest.mark.parametrize("part", ["images", "images-sweep", "text", "text-sweep", "chain", "backfill"])
def test_every_part_runs_and_a_second_run_measures_nothing(
    part: bct_run.Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bct_run, "load_glosses", few_glosses)
    monkeypatch.setattr(bct_glosses, "SHORTLISTS", (10, 50))
    if part.endswith("sweep"):
        monkeypatch.setattr(bct_sweep, "GRID", {"plain": {}, "BCT": {"scale": (4.0,), "weight": (1.0,)}})
    screen = io.StringIO()
    summary = bct_run.run(tmp_path, part=part, quick=True, console=rich.Console(file=screen, width=200))
    json.dumps(summary, allow_nan=False)
    assert screen.getvalue().count(" s\n") >= 2
    assert all(Path(name).stat().st_size for name in summary["files"])
    written = (tmp_path / f"{part}.json").read_bytes()
    again = io.StringIO()
    assert bct_run.run(tmp_path, part=part, quick=True, console=rich.Console(file=again, width=200)) == summary
    assert (tmp_path / f"{part}.json").read_bytes() == written
    assert " s\n" not in again.getvalue()


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"part: expected one of images, images-sweep, .*, got 'everything'"):
        bct_run.run(tmp_path, part="everything")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seeds: expected 1 or more, got 0"):
        bct_run.run(tmp_path, seeds=0)


@cache
def few_digits() -> digits.Digits:
    return digits.load_digits(200, 20)


def small(seed: int = 0) -> bct_digits.Models:
    recipe = bct_digits.Recipe(train=200, validation=20, steps=4, batch=8)
    return bct_digits.Models(few_digits(), recipe, seed, few_digits().test[:100])


def test_a_generation_trains_on_its_own_images_and_classes() -> None:
    models = small()
    labels = models.digits.images.labels
    five = models.rows(bct_digits.Generation(images=30, channels=4, classes=5))
    assert (len(five), set(labels[five].tolist())) == (30, set(range(5)))
    assert torch.equal(models.rows(bct_digits.Generation(50, 4)), models.digits.train[:50])
    assert models.plain(bct_digits.FEW) is models.plain(bct_digits.FEW)
    same = small().plain(bct_digits.FEW).model
    assert torch.equal(same.head.weight, models.plain(bct_digits.FEW).model.head.weight)
    assert not torch.equal(small(1).plain(bct_digits.FEW).model.head.weight, same.head.weight)


def test_the_old_head_gets_rows_for_new_classes_or_a_map_without_them() -> None:
    models = small()
    setting = bct_digits.SETTINGS["more classes"]
    old = models.plain(setting.old).model
    known = models.influence(old, setting.new, True, {})
    assert known.old_weight.shape == (5, 32)
    assert known.class_map.tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]
    full = models.influence(old, setting.new, False, {"scale": 4.0})
    assert torch.equal(full.old_weight[:5], known.old_weight)
    rows = models.rows(setting.new)
    embeddings, labels = models.outputs(old, rows)[0], models.digits.images.labels[rows]
    for label in range(5, 10):
        assert torch.allclose(full.old_weight[label], embeddings[labels == label].mean(0), atol=1e-6)
    entry = bct_digits.measure(models, "more classes", bct_digits.KNOWN_ONLY, {})
    assert entry["share"] == pytest.approx(0.5)


def test_every_objective_is_what_its_name_says() -> None:
    models = small()
    old = models.plain(bct_digits.FEW).model
    made = {name: models.objective(name, old, bct_digits.MANY, {"weight": 3.0}) for name in bct_digits.TRAINED[2:]}
    assert isinstance(made["L2"], bct.L2Compatible)
    assert [made[name].new_negatives for name in ("hot-refresh", "hot-refresh, old negatives")] == [True, False]
    margins = [
        (made[name].heads[0].options["margin"], made[name].heads[0].options["margin_type"])
        for name in ("BCT", "BCT, cosine margin", "BCT, arc margin")
    ]
    assert margins == [(0.0, "cosine"), (0.2, "cosine"), (0.2, "arc")]
    assert {objective.weight for objective in made.values()} == {3.0}
    assert models.objective("plain", old, bct_digits.MANY, {}) is bct_digits.plain


def test_a_plain_update_is_its_own_paragon_and_a_wider_one_is_searched_by_its_first_columns() -> None:
    models = small()
    entry = bct_digits.measure(models, "wider", "plain", {})
    assert entry["new/new"] == entry["paragon"]
    setting = bct_digits.SETTINGS["wider"]
    old, new = (models.plain(*key).embeddings for key in ((setting.old, 0), (setting.new, 1)))
    assert new.shape[1] == 64
    assert entry["new/old"]["map"] == cross_version.quality(new[:, :32], old, models.labels).map
    assert entry["compatible"] == (entry["new/old"]["map"] > entry["old/old"]["map"])
    tie = cross_version.Quality(0.5, 0.5)
    assert not cross_version.update_entry(tie, tie, tie, tie)["compatible"]
    assert cross_version.update_entry(tie, tie, tie, tie)["gain"] is None


@pytest.mark.parametrize("name", cross_version.MAPPED)
def test_maps_go_the_way_their_name_says(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    old = torch.randn(300, 6, generator=generator)
    new = old @ turn + 1
    queries, gallery = cross_version.mapped(name, old[:200], new[:200], new[200:], old[200:])
    expected = new[200:] if name.endswith("gallery") else old[200:]
    assert bool((queries - expected).norm() <= 0.15 * expected.norm())
    assert bool((gallery - expected).norm() <= 0.15 * expected.norm())


def test_a_chain_fits_the_versions_of_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    models = small()
    heads: list[int] = []
    trained = bct.BackwardCompatible.__init__

    def noting(self: bct.BackwardCompatible, *given: torch.nn.Module, **options: float) -> None:
        heads.append(len(given))
        trained(self, *given, **options)

    monkeypatch.setattr(bct.BackwardCompatible, "__init__", noting)
    for policy, expected in (("none", []), ("previous", [1, 1, 1]), ("last", [3]), ("all", [1, 2, 3])):
        heads.clear()
        entry = chain_digits.measure(models, policy, {})
        assert heads == expected
        assert [len(row) for row in entry["map"]] == [1, 2, 3, 4]


def some_galleries() -> bct_backfill.Galleries:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    old, plain, compatible, mapped = (torch.randn(60, 5, generator=generator) for _ in range(4))
    return bct_backfill.Galleries(old, plain, compatible, mapped, torch.randn(60, 3, generator=generator), labels)


def test_a_backfill_begins_with_the_old_gallery_and_ends_with_the_new_one() -> None:
    found = some_galleries()
    quality = cross_version.quality
    begin = {
        "BCT, one space": quality(found.compatible, found.old, found.labels),
        "plain, old rows mapped": quality(found.plain, found.mapped, found.labels),
        "plain, one space": quality(found.plain, found.old, found.labels),
    }
    for variant in bct_backfill.SEARCHES:
        ends = set()
        for order in bct_backfill.ORDERS:
            entry = bct_backfill.measure(found, variant, order, 0)
            ends.add((entry["map"][0], entry["map"][-1]))
        new = found.compatible if variant.startswith("BCT") else found.plain
        first = begin.get(variant, quality(found.old, found.old, found.labels))
        assert len(ends) == 1
        assert next(iter(ends)) == pytest.approx((first.map, quality(new, new, found.labels).map), abs=1e-6)


def test_orders_do_not_look_at_the_labels() -> None:
    found = some_galleries()
    blind = found._replace(labels=torch.zeros_like(found.labels))
    for order in bct_backfill.ORDERS:
        rows = bct_backfill.order_of(order, found, 3)
        assert torch.equal(rows, bct_backfill.order_of(order, blind, 3))
        assert torch.equal(rows.sort().values, torch.arange(60))


def test_clusters_of_well_parted_identities_are_the_identities() -> None:
    found = some_galleries()
    found = found._replace(compatible=F.one_hot(found.labels, 5) + 0.01 * found.compatible)
    entry = bct_backfill.measure_clusters(found, 0)
    assert entry["BCT, new"]["bcubed_f"] == entry["BCT, new"]["pairwise_f"] == 1.0
    assert entry["old"]["bcubed_f_with_old"] == 1.0
    assert entry["old"]["bcubed_f"] < 0.9


def test_glosses_lose_their_examples_and_topics_are_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glosses, "PER_TOPIC", 2)
    lines = ["  1 licence | not this"]
    for topic, count in ((4, 3), (5, 1), (29, 2)):
        lines += [f'0000 {topic:02} n 01 word 0 000 | meaning {topic} {i}; "an example; of it"  ' for i in range(count)]
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text("\n".join(lines if name == "noun" else lines[:1]) + "\n")
    texts, topics = glosses.read_glosses(tmp_path)
    assert topics == [0, 1, 0, 1]
    assert [text.split()[:2] for text in texts] == [["meaning", "4"], ["meaning", "29"]] * 2
    assert all(";" not in text for text in texts)


def test_without_a_head_every_row_is_a_mean_of_old_embeddings() -> None:
    recipe = replace(bct_glosses.Recipe(), epochs=1)
    parts = bct_glosses.Parts(few_glosses(), recipe)
    objective = bct_glosses.objective_of("BCT", parts, recipe, {"scale": 4.0})
    both, topics = parts.train.tensors
    assert len(topics) == 3 * recipe.train
    for topic in range(3):
        mean = both[topics == topic][:, :256].mean(0)
        assert torch.allclose(objective.heads[0].old_weight[topic], mean, atol=1e-6)


def test_options_are_chosen_by_what_new_queries_find_in_the_old_gallery() -> None:
    def entry(across: float) -> dict[str, dict[str, float]]:
        return {"new/old": {"map": across}, "new/new": {"map": 1 - across}}

    weights = bct_sweep.GRID["L2"]["weight"]
    entries = {f"L2, weight {weight:g}/{seed}": entry(0.3) for weight in weights for seed in (100, 101)}
    entries |= {"L2, weight 3/100": entry(0.2), "L2, weight 3/101": entry(0.5), "L2, weight 1/100": entry(0.35)}
    assert bct_sweep.choose(entries, "L2") == {"weight": 3.0}


def test_a_table_counts_seeds_and_leaves_undefined_gains_out() -> None:
    def entry(across: float, gain: float | None) -> dict[str, object]:
        pairs = {"old/old": 0.5, "new/old": across, "new/new": 0.8, "paragon": 0.9}
        maps = {pair: {"map": value, "hit": 0.0} for pair, value in pairs.items()}
        return {**maps, "compatible": across > 0.5, "gain": gain, "accuracy": 0.97}

    columns, rows = bct_report.update_table({"BCT": [entry(0.6, 0.25), entry(0.4, -0.25)], "L2": [entry(0.4, None)]})
    assert len(columns) == len(rows[0])
    assert rows[0] == [
        "BCT",
        "50.0 ± 0.0",
        "50.0 ± 14.1",
        "80.0 ± 0.0",
        "1 of 2",
        "0 ± 35",
        "-10.0 ± 0.0",
        "97.0 ± 0.0",
    ]
    assert rows[1][4:6] == ["0 of 1", "-"]


SEEDS = {"images": 3, "text": 1, "chain": 5, "backfill": 5, "images-sweep": 2, "text-sweep": 2}


@needs_docs
@pytest.mark.parametrize("part", SEEDS)
def test_the_page_shows_the_committed_results(part: str) -> None:
    found = json.loads((COMMITTED / f"{part}.json").read_text())
    assert found["command"].startswith("graceful-fast train bct")
    groups: dict[str, set[str]] = {}
    for name in found["entries"]:
        group, _, seed = name.rpartition("/")
        groups.setdefault(group, set()).add(seed)
    seeds = {"100", "101"} if part.endswith("sweep") else {str(seed) for seed in range(SEEDS[part])}
    assert all(numbers == ({"0"} if group.startswith("cascade") else seeds) for group, numbers in groups.items())
    assert len(seeds) == SEEDS[part]
    tables, _ = bct_run.report(part, found["entries"])
    text = "\n".join(f"### {title}\n\n{bct_run.markdown(*table)}" for title, table in tables.items())
    assert (COMMITTED / f"tables-{part}.md").read_text() == text
    if not part.endswith("sweep"):
        page = PAGE.read_text()
        assert all(bct_run.markdown(*table) in page for table in tables.values())


@needs_docs
@pytest.mark.parametrize(("part", "recipe"), [("images", bct_digits.Recipe()), ("text", bct_glosses.Recipe())])
def test_the_recipes_options_are_those_that_the_sweep_chose(part: str, recipe: bct_digits.Recipe) -> None:
    sweep = json.loads((COMMITTED / f"{part}-sweep.json").read_text())
    for objective in ("L2", "BCT", "hot-refresh"):
        assert recipe.options[objective] == bct_sweep.choose(sweep["entries"], objective), objective
    for name in ("images", "chain", "backfill") if part == "images" else ("text",):
        assert json.loads((COMMITTED / f"{name}.json").read_text())["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert sweep["recipe"] == json.loads(json.dumps(asdict(replace(recipe, options={}))))
