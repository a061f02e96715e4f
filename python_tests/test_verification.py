"""Verification and open-set identification: thresholds are exact, whichever way they were found."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import SCAN_CASES, ScanCase
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

import graceful_fast as gf
from graceful_fast import _brackets, _pairs, reference_metrics

METRICS = ("cosine", "ip", "l2")
FARS = (0.5, 0.1, 0.03, 0.001)
CASES = [case for case in SCAN_CASES if case.name not in ("D above a chunk", "one query", "k = N", "k near N")]
RUNS = [pytest.param(case, metric, id=f"{case.name}-{metric}") for case in CASES for metric in case.metrics]

# How thresholds are found: all scores kept; few of them by a good sample; a bad one, so that brackets miss; none, so
# that the range of exact scores is narrowed pass by pass.
WAYS = {
    "all": {},
    "brackets": {"_FEW": 0, "_SAMPLE": 20_000},
    "bad brackets": {"_FEW": 0, "_SAMPLE": 60},
    "narrowing": {"_FEW": 0, "_SAMPLE": 300, "_KEPT": 3},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    set_way(request.param, monkeypatch)
    return request.param


def set_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in WAYS[name].items():
        module = _brackets if constant == "_SAMPLE" else _pairs
        monkeypatch.setattr(module, constant, value)


def check(a: Any, b: Any, a_labels: Any, b_labels: Any, *, metric: str, exact_curve: bool = True, **ids: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rates below one pair
        found = gf.verification_metrics(a, b, a_labels, b_labels, metric=metric, far=FARS, **ids)
    genuine, impostor = reference_metrics.pairs(a, b, a_labels, b_labels, metric=metric, **ids)
    assert (found.genuine, found.impostor) == (len(genuine), len(impostor))
    sign = -1 if metric == "l2" else 1
    for far in FARS:
        tau = reference_metrics.threshold(impostor, far)
        np.testing.assert_array_equal(found.threshold[far], sign * tau)
        np.testing.assert_array_equal(found.tar[far], reference_metrics.accepted(genuine, tau))
    if not len(genuine) or not len(impostor):
        assert math.isnan(found.eer)
        assert math.isnan(found.auc)
        return
    assert found.eer == pytest.approx(reference_metrics.equal_error_rate(genuine, impostor), abs=1e-12)
    if exact_curve:
        assert found.auc == pytest.approx(reference_metrics.area_under_roc(genuine, impostor), abs=1e-12)
        far, frr = reference_metrics.roc(genuine, impostor)
        exact = {(round(x, 12), round(y, 12)) for x, y in zip(far, frr, strict=True)}
        assert {(round(x, 12), round(y, 12)) for x, y in zip(*found.det, strict=True)} <= exact
    assert found.det.far[-1] == 1
    assert found.det.frr[-1] == pytest.approx(0)
    assert (np.diff(found.det.far) >= 0).all()
    assert (np.diff(found.det.frr) <= 0).all()


def identities(count: int, classes: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count)


# --- the answer is the definition's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "metric"), RUNS)
def test_metrics_are_those_of_the_definition(case: ScanCase, metric: str) -> None:
    a, b = case.build(np.random.default_rng(7))
    a, b = a[:12], b[:300]
    check(a, b, identities(len(a), 5), identities(len(b), 5), metric=metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "name", ["random", "duplicated rows", "near-duplicates", "constant", "clustered", "large offset"]
)
def test_every_way_to_a_threshold_gives_the_same(name: str, metric: str, way: str) -> None:
    case = next(case for case in SCAN_CASES if case.name == name)
    a, b = case.build(np.random.default_rng(7))
    a, b = a[:12], b[:300]
    check(a, b, identities(len(a), 4), identities(len(b), 4), metric=metric, exact_curve=way == "all")


@pytest.mark.parametrize("metric", METRICS)
def test_magnitudes_no_scan_can_hold_are_narrowed_in_float64(metric: str, way: str) -> None:
    for name in ("magnitudes 1e-30 to 1e30", "float64, 1e140", "one row of 1e30, one query of 1e-30"):
        case = next(case for case in SCAN_CASES if case.name == name)
        a, b = case.build(np.random.default_rng(7))
        b = b[500:800]
        check(a, b, identities(len(a), 4), identities(len(b), 4), metric=metric, exact_curve=way == "all")


def test_scores_too_close_for_bins_of_a_width_are_narrowed(way: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 4, (60, 1)) * 1e-161  # scores of some hundred times the smallest number
    labels = rng.integers(0, 3, 60)
    check(rows, rows[::-1].copy(), labels, labels, metric="ip", exact_curve=way == "all")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 2, 3, 40, 90])
def test_one_set_pairs_every_two_rows_once(count: int, metric: str, way: str) -> None:
    rng = np.random.default_rng(count)
    rows = np.round(rng.standard_normal((count, 12)), 1).astype(np.float32)
    labels = identities(count, 9)
    check(rows, None, labels, None, metric=metric, exact_curve=way == "all")


def test_equal_sets_are_one_set_unless_labels_or_ids_differ() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 4))
    labels = identities(30, 3)

    def pairs(*arguments: Any, **options: Any) -> int:
        found = gf.verification_metrics(*arguments, far=0.1, **options)
        return found.genuine + found.impostor

    assert pairs(rows, rows, labels, labels) == 30 * 29 // 2
    assert pairs(rows, rows.copy(), labels, labels.copy()) == 30 * 29 // 2
    assert pairs(rows, torch.from_numpy(rows), labels, labels, a_ids=labels, b_ids=labels) < 30 * 29 // 2
    assert pairs(rows, rows, labels, labels[::-1].copy()) == 900
    assert pairs(rows, rows, labels, labels, a_ids=np.arange(30), b_ids=np.arange(30) + 30) == 900
    assert pairs(rows, rows + 1, labels, labels) == 900
    assert pairs(rows, rows + 1, labels, labels, a_ids=np.arange(30), b_ids=np.arange(30)) == 870


@settings(derandomize=True, deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(0, 17), st.integers(0, 90)),
    dim=st.integers(1, 12),
    levels=st.sampled_from([1, 2, 5, 1000]),
    classes=st.sampled_from([1, 3, 12]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    metric=st.sampled_from(METRICS),
    with_ids=st.booleans(),
    name=st.sampled_from(list(WAYS)),
)
def test_any_small_evaluation_is_exact(seed, sizes, dim, levels, classes, dtype, metric, with_ids, name) -> None:
    rng = np.random.default_rng(seed)
    shift = levels / 2 + 0.25 if metric == "cosine" else levels // 2  # cosine: no zero vector
    a, b = (((rng.integers(0, levels, (n, dim)) - shift) / 8).astype(dtype) for n in sizes)
    assume(not np.array_equal(a, b))  # one set is another test's
    labels = [rng.integers(0, classes, n) for n in sizes]
    ids = {"a_ids": rng.integers(0, 9, sizes[0]), "b_ids": rng.integers(0, 9, sizes[1])} if with_ids else {}
    with pytest.MonkeyPatch.context() as patch:
        set_way(name, patch)
        check(a, b, *labels, metric=metric, exact_curve=name == "all", **ids)


# --- the curve of many pairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.01])  # of an identity's rows: random, clustered, tight
def test_area_from_bins_is_within_a_millionth(spread: float) -> None:
    rng = np.random.default_rng(1)
    labels = identities(1500, 300)
    rows = (rng.standard_normal((300, 32))[labels] + spread * rng.standard_normal((1500, 32))).astype(np.float32)
    found = gf.verification_metrics(rows, None, labels, None, far=(1e-2, 1e-4))
    assert found.genuine + found.impostor > 2**20
    scores = (rows.astype(float) @ rows.T.astype(float)) / np.linalg.norm(rows.astype(float), axis=1)
    scores /= np.linalg.norm(rows.astype(float), axis=1)[:, None]
    upper = np.triu_indices(1500, 1)
    same = (labels[:, None] == labels)[upper]
    assert found.auc == pytest.approx(roc_auc_score(same, scores[upper]), abs=1e-6)
    far, tar, _ = roc_curve(same, scores[upper], drop_intermediate=False)
    at = np.argmax(far >= 1 - tar)
    before, after = 1 - tar[at - 1] - far[at - 1], 1 - tar[at] - far[at]
    assert found.eer == pytest.approx(far[at - 1] + (far[at] - far[at - 1]) * before / (before - after), abs=1e-9)
    for rate, tau in found.threshold.items():
        impostors = np.sort(scores[upper][~same])[::-1]
        assert tau == pytest.approx(impostors[math.floor(rate * len(impostors))], abs=1e-12)


# --- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_is_the_decimal_it_is_written_as() -> None:
    # 0.29 * 100 is 28.999999999999996 in float64; as a decimal it is 29 impostors.
    a, b = np.zeros((1, 1)), np.arange(1, 102.0)[:, None]
    found = gf.verification_metrics(a, b, [0], [0] + [1] * 100, metric="l2", far=0.29)
    assert found.threshold == {0.29: 31.0**2}  # impostors are 2, 3, ...: the 30th best


def test_rates_below_one_pair_warn_and_are_nan() -> None:
    rows = np.random.default_rng(0).standard_normal((10, 3))
    with pytest.warns(UserWarning, match=r"far: 0\.001 of 40 impostor pairs is less than one pair"):
        found = gf.verification_metrics(rows[:4], rows, [0] * 4, [1] * 10, far=(0.1, 0.001))
    assert math.isnan(found.tar[0.001])
    assert math.isnan(found.threshold[0.001])
    assert not math.isnan(found.threshold[0.1])
    assert math.isnan(found.tar[0.1])  # no genuine pairs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_values_of_every_dtype_are_taken_as_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand((60, 33), generator=generator) * 100 + 1).to(dtype)
    labels = torch.arange(60) % 7
    found = gf.verification_metrics(rows, None, labels, None, far=0.1)
    genuine, impostor = reference_metrics.pairs(rows.double().numpy(), None, labels.numpy(), None)
    tau = reference_metrics.threshold(impostor, 0.1)
    assert found.threshold[0.1] == tau
    assert found.tar[0.1] == reference_metrics.accepted(genuine, tau)


# --- open-set identification ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("with_ids", [False, True])
def test_identification_is_that_of_the_definition(metric: str, rank: int, with_ids: bool) -> None:
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((40, 12))
    probe_labels, gallery_labels = identities(150, 40), identities(90, 20, seed=4)
    probes = (centres[probe_labels] + rng.standard_normal((150, 12))).astype(np.float32)
    gallery = (centres[gallery_labels] + rng.standard_normal((90, 12))).astype(np.float32)
    ids = {"probe_ids": np.arange(150) % 50, "gallery_ids": np.arange(90)} if with_ids else {}
    rates = (0.2, 0.05, 0.03)
    arguments = (probes, gallery, probe_labels, gallery_labels)
    found = gf.identification_metrics(*arguments, metric=metric, rank=rank, fpir=rates, **ids)
    assert found.mated + found.non_mated == 150
    for rate in rates:
        tpir, tau = reference_metrics.identification_rates(*arguments, rate, metric=metric, rank=rank, **ids)
        assert found.tpir[rate] == tpir
        assert found.threshold[rate] == (-tau if metric == "l2" else tau)
        assert found.fnir[rate] == 1 - tpir


def test_only_probes_without_a_mate_raise_false_alarms() -> None:
    gallery = np.eye(3, dtype=np.float32)
    probes = np.concatenate([gallery, gallery])  # a mated probe that finds another's row is a miss, no false alarm
    with pytest.warns(UserWarning, match="fpir: 0.1 of 0 non-mated probes"):
        found = gf.identification_metrics(probes, gallery, [0, 1, 2, 1, 2, 0], [0, 1, 2], fpir=0.1)
    assert (found.mated, found.non_mated) == (6, 0)


def test_a_probe_whose_only_mate_is_itself_is_not_mated() -> None:
    gallery = np.eye(3, dtype=np.float32)
    with pytest.warns(UserWarning, match="of 1 non-mated"):
        found = gf.identification_metrics(
            gallery, gallery, [0, 1, 1], [0, 1, 1], fpir=0.5, probe_ids=[0, 1, 2], gallery_ids=[0, 1, 2]
        )
    assert (found.mated, found.non_mated) == (2, 1)


# --- what is wrong is said --------------------------------------------------------------------------------------------

GOOD = np.ones((8, 3), np.float32)
LABELS = np.arange(8)
BAD = np.where(LABELS[:, None] == 2, np.nan, GOOD)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"metric: expected one of 'cosine', 'ip', 'l2', got 'dot'", {"metric": "dot"}),
        (ValueError, r"far: expected rates above 0 and below 1, got 1", {"far": (0.1, 1)}),
        (ValueError, r"far: expected rates above 0 and below 1, got 0\.0", {"far": 0.0}),
        (TypeError, r"far: expected numbers, got 'x'", {"far": ["x"]}),
        (ValueError, r"b: expected the dim of a, got a \(8, 3\) and b \(8, 2\)", {"b": GOOD[:, :2]}),
        (ValueError, r"a_labels: expected shape \(8,\), got \(7,\)", {"a_labels": LABELS[:7]}),
        (ValueError, r"b_ids: expected together with a_ids, got None", {"a_ids": LABELS}),
        (ValueError, r"b_labels: expected None as b is None", {"b": None}),
        (ValueError, r"b: row 2: expected finite numbers.*\(a \(8, 3\), b \(8, 3\)\)", {"b": BAD}),
        (ValueError, r"a: row 2: expected finite numbers", {"a": BAD}),
        (ValueError, r"a: row 0: cosine of a zero", {"a": GOOD * 0}),
        (TypeError, r"a: expected an array or a Gallery, got a path: gf.Gallery.open\('a.npy'\)$", {"a": "a.npy"}),
        (TypeError, r"b: expected an array or a Gallery, got a path: gf.Gallery.open", {"b": Path("b.npy")}),
        (TypeError, r"b: expected a torch tensor, .*, got dict", {"b": {}}),
    ],
)
def test_what_is_wrong_is_named(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    good = {"a": GOOD, "b": 2 * GOOD, "a_labels": LABELS, "b_labels": LABELS, "far": 0.1}
    with pytest.raises(error, match=message):
        gf.verification_metrics(**(good | arguments))


def test_bad_data_among_many_pairs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    set_way("brackets", monkeypatch)
    with pytest.raises(ValueError, match=r"b: row 2: expected finite numbers"):
        gf.verification_metrics(GOOD, BAD, LABELS, LABELS, far=0.1)
    with pytest.raises(ValueError, match=r"rank: expected 1 to 8, .* got 9 with probes \(8, 3\)"):
        gf.identification_metrics(GOOD, GOOD, LABELS, LABELS, rank=9)
    with pytest.raises(ValueError, match=r"probes: row 2: expected finite numbers"):
        gf.identification_metrics(BAD, GOOD, LABELS, LABELS)


# --- the same bits, whatever the circumstances ------------------------------------------------------------------------

ANSWER = """
import json, numpy as np, torch, graceful_fast as gf
from graceful_fast import _brackets, _pairs
_pairs._FEW, _brackets._SAMPLE = 0, 20_000
answers = []
for threads in (1, 3):
    torch.set_num_threads(threads)
    rng = np.random.default_rng(3)
    rows = np.round(rng.standard_normal((5000, 40)), 1).astype(np.float32)
    labels = rng.integers(0, 150, 5000)
    for metric in ("cosine", "ip", "l2"):
        pairs = gf.verification_metrics(rows[:900], None, labels[:900], None, metric=metric, far=(0.1, 0.001))
        ranks = gf.retrieval_metrics(rows[:70] + np.float32(0.5), rows, labels[:70], labels, metric=metric)
        answers.append([*pairs.tar.values(), *pairs.threshold.values(), pairs.eer, ranks.per_query.map.tolist()])
print(json.dumps(answers))
"""


def test_instruction_sets_and_threads_change_no_bit() -> None:
    answers = []
    for isa in ("baseline", "avx2", "avx512", "neon"):
        run = subprocess.run(
            [sys.executable, "-c", ANSWER],
            env={**os.environ, "GRACEFUL_FAST_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        if "GRACEFUL_FAST_ISA: expected one of" not in run.stderr:
            assert run.returncode == 0, run.stderr
            answers += json.loads(run.stdout)
    assert len(answers) >= 6
    assert all(answer == answers[i % 3] for i, answer in enumerate(answers))
