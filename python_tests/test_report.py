"""compare_classifiers: what broke and how bad, the JSON schema, the page, the words."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graceful_fast as gf
from graceful_fast.update import words
from graceful_fast.update.statistics import clopper_pearson

# Rows 0 and 3 break: row 3 by 4.0, row 0 by 0.5. Row 1 is fixed, row 2 stays right, row 4 stays wrong.
OLD = np.array([[3, 1, 0], [2, 1, 0], [0, 1, 2], [0, 5, 1], [1, 0, 0]], np.float32)
NEW = np.array([[1.5, 0, 2], [0, 1, 0], [0, 1, 2], [4, 0, 1], [1, 0, 0]], np.float32)
TARGET = np.array([0, 1, 2, 1, 2])
NAMES = ["cat", "dog", "owl"]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Tags and text of a page, and every address that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_broken_samples_come_worst_first_with_what_they_were_and_are() -> None:
    report = gf.compare_classifiers(OLD, NEW, TARGET, classes=NAMES, inputs=[f"photo {i}" for i in range(5)])
    assert [tuple(sample) for sample in report.broken] == [
        (3, "photo 3", 1, 1, 0, -4.0),
        (0, "photo 0", 0, 0, 2, -0.5),
    ]
    assert report.flips.negative_indices.tolist() == [0, 3]


def test_predicted_classes_break_in_the_order_of_the_rows() -> None:
    report = gf.compare_classifiers(OLD.argmax(1), NEW.argmax(1), TARGET)
    assert [(sample.row, sample.new, sample.margin) for sample in report.broken] == [(0, 2, None), (3, 0, None)]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda a: a[:, ::-1].copy()[:, ::-1]])
def test_every_kind_of_scores_gives_the_same_report(kind: Any) -> None:
    assert (
        gf.compare_classifiers(kind(OLD), kind(NEW), TARGET).to_json()
        == gf.compare_classifiers(OLD, NEW, TARGET).to_json()
    )


def test_top_k_samples_say_what_was_first_before() -> None:
    old, new = np.array([[3.0, 2, 1, 0]]), np.array([[3.0, 0, 1, 2]])
    (sample,) = gf.compare_classifiers(old, new, np.array([1]), topk=2).broken
    assert (sample.target, sample.old, sample.new, sample.margin) == (1, 0, 0, -3.0)


def test_margins_of_ties_infinities_and_unknown_classes() -> None:
    inf = np.inf
    old = np.eye(4)[[1, 1, 1, 3]]
    new = np.array([[inf, inf, 0], [0, -inf, 1], [-inf, -inf, -inf], [0, 1, 0]])
    report = gf.compare_classifiers(old, new, np.array([1, 1, 1, 3]))
    assert [(sample.row, sample.margin) for sample in report.broken] == [(1, -inf), (3, -inf), (0, 0.0), (2, 0.0)]
    written = json.loads(report.to_json())
    assert [sample["margin"] for sample in written["broken"]] == [None, None, 0.0, 0.0]
    assert "−∞" in report.to_html()


def test_fewer_examples_are_the_worst_ones() -> None:
    report = gf.compare_classifiers(OLD, NEW, TARGET, max_examples=1)
    assert [sample.row for sample in report.broken] == [3]
    assert report.flips.negative_indices.tolist() == [0, 3]
    assert "The first 1 of 2." in report.to_html()


def test_blocks_of_broken_samples_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gf.compare_classifiers(OLD, NEW, TARGET).to_json()
    monkeypatch.setattr("graceful_fast.update.report._BLOCK", 3)  # one row of three classes
    assert gf.compare_classifiers(OLD, NEW, TARGET).to_json() == whole


def test_predicted_classes_need_a_name_for_the_largest_of_predictions_and_labels() -> None:
    for arrays in (([0, 2], [0, 1], [0, 1]), ([0, 1], [0, 2], [0, 1]), ([0, 1], [0, 1], [0, 2])):
        with pytest.raises(ValueError, match="classes: expected a name for each of 3 classes, got 2"):
            gf.compare_classifiers(*map(np.array, arrays), classes=["cat", "dog"])


def test_an_abstention_has_no_name() -> None:
    report = gf.compare_classifiers(np.array([1]), np.array([-1]), np.array([1]), classes=["cat", "dog"])
    assert report.class_name(report.broken[0].new) == "-1"


def test_classes_are_counted_apart_most_broken_first() -> None:
    target = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    old = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    new = np.array([1, 0, 0, 0, 2, 1, 0, 0, 2])
    report = gf.compare_classifiers(old, new, target, classes=[*NAMES, "never"])
    rows = [(part.name, part.flips.total, part.flips.negative, part.flips.positive) for part in report.per_class]
    assert rows == [("owl", 3, 2, 0), ("dog", 2, 1, 0), ("cat", 4, 1, 1)]
    assert [tuple(pair) for pair in report.confusions] == [(2, 0, 2), (0, 1, 1), (1, 2, 1)]


def test_interval_and_p_value_are_those_of_the_counts() -> None:
    rng = np.random.default_rng(0)
    target, old, new = (rng.integers(0, 3, 400) for _ in range(3))
    report = gf.compare_classifiers(old, new, target, confidence=0.9)
    assert report.nfr_interval == clopper_pearson(report.flips.negative, 400, confidence=0.9)
    assert report.mcnemar_p == gf.update.statistics.mcnemar(report.flips.negative, report.flips.positive)


def test_json_is_the_versioned_schema_without_nan() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = gf.compare_classifiers(OLD, NEW, TARGET, classes=NAMES, groups=["a", "b", "a", "b", "a"])
    written = json.loads(report.to_json(), parse_constant=refuse)
    assert written["schema"] == "graceful_fast.update_report/1"
    assert written["accuracy"] == {"old": pytest.approx(0.6), "new": pytest.approx(0.4)}
    flips = written["flips"]
    assert [flips[name] for name in ("total", "both_correct", "negative", "positive", "both_wrong")] == [5, 1, 2, 1, 1]
    assert flips["nfr"] == 0.4
    assert written["per_class"][0]["relative_nfr"] is not None
    assert {row["group"]: row["negative"] for row in written["per_group"]} == {"a": 1, "b": 1}
    assert written["broken"][0] == {
        "row": 3,
        "name": None,
        "target": 1,
        "old": 1,
        "new": 0,
        "margin": -4.0,
        "target_name": "dog",
        "old_name": "dog",
        "new_name": "cat",
    }
    assert written["negative_indices"] == [0, 3]
    empty = gf.compare_classifiers(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))
    assert json.loads(empty.to_json(), parse_constant=refuse)["flips"]["nfr"] is None
    assert "There was nothing to compare." in empty.to_html()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat", "dog"]}, "classes: expected a name for each of 3 classes, got 2"),
        ({"inputs": ["a"]}, "inputs: expected 5 names as target, got 1"),
        ({"max_examples": True}, "max_examples: expected 0 or more, got True"),
        ({"max_examples": -1}, "max_examples: expected 0 or more, got -1"),
        ({"confidence": 1.0}, "confidence: expected above 0 and below 1"),
        ({"groups": [1]}, r"groups: expected shape \(5,\)"),
        ({"topk": 4}, "topk: expected at most the 3 classes"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gf.compare_classifiers(OLD, NEW, TARGET, **options)


def test_a_fraction_of_an_example_is_refused() -> None:
    with pytest.raises(TypeError, match="max_examples: expected an integer, got float"):
        gf.compare_classifiers(OLD, NEW, TARGET, max_examples=1.5)  # type: ignore[arg-type]


def test_page_is_whole_and_loads_nothing() -> None:
    html = gf.compare_classifiers(OLD, NEW, TARGET, classes=NAMES, groups=[1, 1, 2, 2, 2]).to_html()
    assert re.findall(r'class="(\w+)" style="flex:([\d.]+)', html) == [
        ("right", "20.0000"),
        ("broken", "40.0000"),
        ("fixed", "20.0000"),
        ("wrong", "20.0000"),
    ]
    assert re.findall(r'class="fill (\w+)" style="width:([\d.]+)', html.partition("By group")[0]) == [
        *(("broken", "100.00"), ("fixed", "0.00")),  # cat
        *(("broken", "100.00"), ("fixed", "100.00")),  # dog; the owl did not move
    ]
    page = Page(html)
    assert page.open == []
    assert page.loads == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in html
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert "1 class without any change is left out." in page.text
    assert "Accuracy fell from 60.0\u00a0% to 40.0\u00a0%, and 40.0\u00a0% of all answers broke." in page.text
    assert page.text.index("row 3") < page.text.index("row 0")


def test_everything_that_comes_from_outside_is_escaped() -> None:
    evil = ["<script>alert(1)</script>", "\"><img src=x onerror='x()'>", "{{ 7 * 7 }}"]
    report = gf.compare_classifiers(
        OLD, NEW, TARGET, classes=evil, groups=[evil[0]] * 5, inputs=[f"{evil[1]} {i}" for i in range(5)]
    )
    page = Page(report.to_html(title=evil[0]))
    assert "script" not in page.tags
    assert "img" not in page.tags
    for name in evil:
        assert name in page.text


def test_small_images_are_shown_and_other_inputs_named(tmp_path: Path) -> None:
    picture, broken, missing = tmp_path / "a.png", tmp_path / "b.PNG", tmp_path / "c.png"
    picture.write_bytes(PIXEL)
    broken.write_bytes(b"not a picture" * 10_000)
    inputs = [str(picture), "", "", str(broken), ""]
    page = Page(gf.compare_classifiers(OLD, NEW, TARGET, inputs=inputs).to_html())
    assert page.loads == ["data:image/png;base64," + base64.b64encode(PIXEL).decode()]
    assert str(broken) in page.text
    page = Page(gf.compare_classifiers(OLD, NEW, TARGET, inputs=[missing] * 5).to_html())
    assert page.loads == []
    assert str(missing) in page.text


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 4), np.uint8)  # JPEG has no transparency
    path = tmp_path / "noise.png"
    image.fromarray(noise).save(path)
    assert path.stat().st_size > 500_000
    (address,) = Page(gf.compare_classifiers(OLD, NEW, TARGET, inputs=[str(path)] + [""] * 4).to_html()).loads
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < 100_000


def test_a_thousand_classes_stay_a_page_of_readable_size() -> None:
    rng = np.random.default_rng(0)
    target, old, new = (rng.integers(0, 1000, 20_000) for _ in range(3))
    old[:9000], new[9000:] = target[:9000], target[9000:]
    html = gf.compare_classifiers(old, new, target).to_html()
    assert len(html) < 500_000
    text = Page(html).text
    (more,), (other,) = re.findall(r"(\d+) more", text), re.findall(r"The other (\d+) are in the JSON report", text)
    assert (int(more), int(other)) == (1000 - 15, 1000 - 300)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((80, 5, 10, 5), "Accuracy rose from 85.0 % to 90.0 %, yet 5.0 % of all answers broke."),
        ((80, 10, 5, 5), "Accuracy fell from 90.0 % to 85.0 %, and 10.0 % of all answers broke."),
        ((80, 5, 5, 10), "Accuracy stayed at 85.0 %, yet 5.0 % of all answers broke."),
        ((80, 0, 10, 10), "Accuracy rose from 80.0 % to 90.0 %, and no answer broke."),
        ((90_000, 1, 3, 9996), "Accuracy rose from 90.001 % to 90.003 %, yet 0.001 % of all answers broke."),
        ((0, 0, 0, 0), "There was nothing to compare."),
    ],
)
def test_headline_says_what_accuracy_hides(counts: tuple[int, int, int, int], sentence: str) -> None:
    outcomes = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0)
    report = gf.compare_classifiers(outcomes[:, 0], outcomes[:, 1], np.ones(len(outcomes), int))
    assert words.headline(report).replace("\u00a0", " ") == sentence


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((1998, 1, 1, 0), "1 of 2,000 samples was right before and is wrong now; 1 was fixed."),
        ((8, 2, 0, 0), "2 of 10 samples were right before and are wrong now; 0 were fixed."),
        ((0, 0, 1234, 0), "0 of 1,234 samples were right before and are wrong now; 1,234 were fixed."),
    ],
)
def test_explanation_counts_what_broke(counts: tuple[int, int, int, int], sentence: str) -> None:
    outcomes = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0)
    report = gf.compare_classifiers(outcomes[:, 0], outcomes[:, 1], np.ones(len(outcomes), int))
    lower, upper, _ = clopper_pearson(counts[1], sum(counts))
    said = words.explanation(report)
    assert said.startswith(sentence)
    assert f"between {words.percent(lower)} and {words.percent(upper)} would break (95\u00a0% confidence)" in said


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1.000"), (0.05, "0.050"), (0.001, "0.001"), (4.4e-37, "4e-37"), (0.0, "below 1e-300")]
)
def test_small_probabilities_are_powers_of_ten(p: float, text: str) -> None:
    assert words.probability(p) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.065, "6.5 %"), (0.0004, "0.04 %"), (0.99999, "99.999 %"), (math.nan, "–")],
)
def test_percent_never_calls_something_nothing(share: float, text: str) -> None:
    assert words.percent(share).replace("\u00a0", " ") == text


def test_report_is_frozen() -> None:
    report = gf.compare_classifiers(OLD, NEW, TARGET)
    with pytest.raises(AttributeError):
        report.topk = 3  # type: ignore[misc]
