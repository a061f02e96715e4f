"""Retrieval metrics are those of the full ranking by float64 scores, whatever the data and the machine."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from cases import SCAN_CASES, ScanCase
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score
from torchmetrics.functional import retrieval as torch_retrieval

import graceful_fast as gf
from graceful_fast import _rank_counts, reference_metrics

METRICS = ("cosine", "ip", "l2")
BY_K = ("recall", "cmc", "ndcg")
PLAIN = ("map", "mrr", "r_precision", "first_rank")
# Every case but those whose float64 definitions by sorting take long.
CASES = [case for case in SCAN_CASES if case.name not in ("D above a chunk", "one query", "k = N")]
RUNS = [pytest.param(case, metric, id=f"{case.name}-{metric}") for case in CASES for metric in case.metrics]


def assert_same(found: gf.RetrievalMetrics, expected: list[dict[str, Any] | None], ks: tuple[int, ...]) -> None:
    """Every per-query value within 1e-12 of the definition, ranks equal, and the means those of the values."""
    per_query = found.per_query
    missing = np.array([row is None for row in expected], dtype=bool)
    assert found.queries == len(expected)
    assert found.without_positive == missing.sum()
    evaluated = [row for row in expected if row is not None]

    def compare(mean: float | None, values: Any, theirs: list[float]) -> None:
        ours = np.asarray(values)
        assert ours.dtype == np.float64
        np.testing.assert_array_equal(np.isnan(ours), missing)
        np.testing.assert_allclose(ours[~missing], theirs, rtol=0, atol=1e-12)
        if mean is not None:
            np.testing.assert_allclose(mean, np.mean(theirs) if theirs else np.nan, rtol=0, atol=1e-12)

    for name in PLAIN:
        compare(getattr(found, name, None), getattr(per_query, name), [row[name] for row in evaluated])
    for side in (0, 1):
        compare(found.map_bounds[side], per_query.map_bounds[side], [row["map_bounds"][side] for row in evaluated])
    for name in BY_K:
        assert tuple(getattr(found, name)) == ks
        for k in ks:
            compare(getattr(found, name)[k], getattr(per_query, name)[k], [row[name][k] for row in evaluated])
    np.testing.assert_array_equal(
        np.asarray(per_query.first_rank)[~missing], [row["first_rank"] for row in evaluated]
    )  # ranks are whole numbers


def check(
    queries: Any, gallery: Any, labels: tuple[Any, Any], ks: tuple[int, ...] = (1, 5, 10), **options: Any
) -> None:
    found = gf.retrieval_metrics(queries, gallery, *labels, k=ks, **options)
    assert_same(found, reference_metrics.retrieval_metrics(queries, gallery, *labels, k=ks, **options), ks)


def random_labels(queries: int, rows: int, classes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.integers(0, classes, queries), rng.integers(0, classes, rows)


# --- the answer is the definition's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "metric"), RUNS)
def test_metrics_are_those_of_the_definition(case: ScanCase, metric: str) -> None:
    queries, gallery = case.build(np.random.default_rng(7))
    check(queries, gallery, random_labels(len(queries), len(gallery)), metric=metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("classes", [1, 3, 60])  # positives of a query: all rows, a third, some 30
@pytest.mark.parametrize("count", [3, 33])
def test_any_number_of_positives_is_counted(classes: int, count: int, metric: str) -> None:
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((count, 24)).astype(np.float32)
    gallery = np.round(rng.standard_normal((1700, 24)), 1).astype(np.float32)
    gallery[900:1200] = gallery[:300]  # ties, far apart
    check(queries, gallery, random_labels(count, 1700, classes), ks=(1, 2, 100, 1700, 5000), metric=metric)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(0, 17),
    rows=st.integers(1, 200),
    dim=st.integers(1, 20),
    levels=st.sampled_from([1, 2, 5, 1000]),
    classes=st.sampled_from([1, 3, 12, 100]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(["none", "ids", "groups", "s"]),  # "s": both
)
def test_any_small_evaluation_is_exact(seed, queries, rows, dim, levels, classes, dtype, metric, kind) -> None:
    rng = np.random.default_rng(seed)
    shift = levels / 2 + 0.25 if metric == "cosine" else levels // 2  # cosine: no zero vector
    q = ((rng.integers(0, levels, (queries, dim)) - shift) / 8).astype(dtype)
    x = ((rng.integers(0, levels, (rows, dim)) - shift) / 8).astype(dtype)
    sides = {"query_ids": rng.integers(0, 9, queries), "gallery_ids": rng.integers(0, 9, rows)}
    sides |= {"query_groups": rng.integers(0, 4, queries), "gallery_groups": rng.integers(0, 4, rows)}
    used = {name: values for name, values in sides.items() if name.endswith(kind)}
    check(q, x, (rng.integers(0, classes, queries), rng.integers(0, classes, rows)), metric=metric, **used)


def test_blocks_of_queries_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((50, 8)), rng.standard_normal((300, 8))
    labels = random_labels(50, 300, 6)
    ids = {"query_ids": rng.integers(0, 99, 50), "gallery_ids": rng.integers(0, 99, 300)}
    whole = gf.retrieval_metrics(queries, gallery, *labels, **ids)
    monkeypatch.setattr(_rank_counts, "_PAIRS", 130)
    parts = gf.retrieval_metrics(queries, gallery, *labels, **ids)
    assert parts == whole
    np.testing.assert_array_equal(parts.per_query.map, whole.per_query.map)
    queries[37, 2] = np.nan
    with pytest.raises(ValueError, match="queries: row 37: expected finite numbers"):
        gf.retrieval_metrics(queries, gallery, *labels)


# --- exclusions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_same_id_and_same_group_of_the_same_label_are_junk(metric: str) -> None:
    rng = np.random.default_rng(4)
    gallery = rng.standard_normal((400, 16)).astype(np.float32)
    labels, cameras = rng.integers(0, 15, 400), rng.integers(0, 4, 400)
    sides = (labels[:60], labels)
    ids = {"query_ids": np.arange(60), "gallery_ids": np.arange(400)}
    groups = {"query_groups": cameras[:60], "gallery_groups": cameras}
    for options in (ids, groups, ids | groups):
        check(gallery[:60], gallery, sides, metric=metric, **options)
    with_itself = gf.retrieval_metrics(gallery[:60], gallery, *sides, metric=metric)
    without = gf.retrieval_metrics(gallery[:60], gallery, *sides, metric=metric, **ids)
    assert without.map < with_itself.map
    if metric != "ip":
        assert with_itself.cmc[1] == 1


def test_rows_of_the_group_but_another_label_stay() -> None:
    gallery = np.array([[1.0], [2.0], [3.0]])
    labels = {"query_labels": [5], "gallery_labels": [6, 5, 5]}
    groups = {"query_groups": [1], "gallery_groups": [1, 1, 2]}
    found = gf.retrieval_metrics(np.array([[0.0]]), gallery, **labels, **groups, metric="l2")
    assert found.per_query.first_rank.tolist() == [2]  # row 0 before it, row 1 is junk


def test_queries_without_an_allowed_positive_are_counted_and_in_no_mean() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((4, 5)), rng.standard_normal((9, 5))
    labels = ([0, 1, 7, 2], [0, 1, 2] * 3)
    found = gf.retrieval_metrics(queries, gallery, *labels, query_ids=[0, 1, 2, 3], gallery_ids=[0, 1, 3] * 3)
    assert found.without_positive == 4  # label 7 is not there, the others exclude their own label by id
    assert np.isnan([found.map, found.mrr, found.r_precision, *found.map_bounds, *found.cmc.values()]).all()
    found = gf.retrieval_metrics(queries, gallery, *labels)
    assert found.without_positive == 1
    assert np.isnan(found.per_query.map).tolist() == [False, False, True, False]
    assert found.map == pytest.approx(np.nanmean(found.per_query.map))


def test_everything_excluded_is_no_error() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 4))
    found = gf.retrieval_metrics(rows, rows, [1] * 30, [1] * 30, query_ids=[0] * 30, gallery_ids=[0] * 30)
    assert (found.queries, found.without_positive) == (30, 30)


# --- ties -------------------------------------------------------------------------------------------------------------


def test_bounds_enclose_the_map_and_meet_without_ties() -> None:
    rng = np.random.default_rng(2)
    queries, gallery = rng.standard_normal((20, 6)), rng.standard_normal((200, 6))
    labels = random_labels(20, 200, 5)
    found = gf.retrieval_metrics(queries, gallery, *labels)
    assert found.map_bounds == pytest.approx((found.map, found.map), abs=1e-15)
    tied = gf.retrieval_metrics(np.sign(queries), np.sign(gallery), *labels)
    assert tied.map_bounds[0] < tied.map < tied.map_bounds[1]


def test_equal_scores_rank_by_index() -> None:
    rows = np.ones((6, 3), np.float32)
    found = gf.retrieval_metrics(rows[:2], rows, [1, 2], [2, 0, 0, 1, 0, 1])
    assert found.per_query.first_rank.tolist() == [4, 1]
    assert found.per_query.map.tolist() == [(1 / 4 + 2 / 6) / 2, 1.0]
    assert found.per_query.map_bounds[0].tolist() == [(1 / 5 + 2 / 6) / 2, 1 / 6]
    assert found.per_query.map_bounds[1].tolist() == [1.0, 1.0]


# --- peers ------------------------------------------------------------------------------------------------------------


def ranked_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((12, 16))
    query_labels, gallery_labels = rng.integers(0, 12, 40), rng.integers(0, 12, 500)
    queries = centres[query_labels] + rng.standard_normal((40, 16))
    gallery = centres[gallery_labels] + rng.standard_normal((500, 16))
    return queries, gallery, query_labels, gallery_labels, queries @ gallery.T


def test_sklearn_agrees() -> None:
    queries, gallery, query_labels, gallery_labels, scores = ranked_data()
    found = gf.retrieval_metrics(queries, gallery, query_labels, gallery_labels, metric="ip")
    relevant = query_labels[:, None] == gallery_labels
    precision = [average_precision_score(*pair) for pair in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(found.per_query.map, precision, atol=1e-9)
    for k in (1, 5, 10):
        gain = [ndcg_score(r[None], s[None], k=k) for r, s in zip(relevant, scores, strict=True)]
        np.testing.assert_allclose(found.per_query.ndcg[k], gain, atol=1e-9)


def test_torchmetrics_agrees() -> None:
    queries, gallery, query_labels, gallery_labels, scores = ranked_data()
    found = gf.retrieval_metrics(queries, gallery, query_labels, gallery_labels, metric="ip").per_query
    for i, row in enumerate(torch.from_numpy(scores - scores.min() + 1)):  # it takes scores up to 0 for misses
        relevant = torch.from_numpy(gallery_labels == query_labels[i])
        for ours, theirs in (
            (found.map[i], torch_retrieval.retrieval_average_precision(row, relevant)),
            (found.mrr[i], torch_retrieval.retrieval_reciprocal_rank(row, relevant)),
            (found.r_precision[i], torch_retrieval.retrieval_r_precision(row, relevant)),
            (found.recall[10][i], torch_retrieval.retrieval_recall(row, relevant, top_k=10)),
            (found.cmc[5][i], torch_retrieval.retrieval_hit_rate(row, relevant, top_k=5)),
        ):
            assert ours == pytest.approx(float(theirs), abs=1e-6)  # theirs is float32


def test_trec_eval_agrees() -> None:
    queries, gallery, query_labels, gallery_labels, scores = ranked_data()
    found = gf.retrieval_metrics(queries, gallery, query_labels, gallery_labels, metric="ip").per_query
    run = {str(i): {str(j): float(s) for j, s in enumerate(row)} for i, row in enumerate(scores)}
    relevant = {
        str(i): {str(j): int(label == other) for j, other in enumerate(gallery_labels)}
        for i, label in enumerate(query_labels)
    }
    measures = {"map", "recip_rank", "Rprec", "recall.5,10", "ndcg_cut.5,10", "success.1,5,10"}
    theirs = pytrec_eval.RelevanceEvaluator(relevant, measures).evaluate(run)
    for name, ours in {
        "map": found.map,
        "recip_rank": found.mrr,
        "Rprec": found.r_precision,
        "recall_5": found.recall[5],
        "recall_10": found.recall[10],
        "ndcg_cut_10": found.ndcg[10],
        "success_5": found.cmc[5],
    }.items():
        np.testing.assert_allclose(ours, [theirs[str(i)][name] for i in range(40)], atol=1e-9)


def test_pytorch_metric_learning_agrees() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    queries, gallery, query_labels, gallery_labels, _ = ranked_data()
    calculator = AccuracyCalculator(include=("precision_at_1", "mean_reciprocal_rank", "r_precision"), k=None)
    theirs = calculator.get_accuracy(
        torch.from_numpy(queries).float(),
        torch.from_numpy(query_labels),
        torch.from_numpy(gallery).float(),
        torch.from_numpy(gallery_labels),
    )
    found = gf.retrieval_metrics(queries, gallery, query_labels, gallery_labels, metric="l2")
    assert found.cmc[1] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert found.r_precision == pytest.approx(theirs["r_precision"], abs=1e-6)


# --- kinds and dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8])
def test_values_of_every_dtype_are_taken_as_they_are(dtype: torch.dtype, metric: str) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.rand((9, 33), generator=generator) * 100 + 1
    gallery = (torch.rand((500, 33), generator=generator) * 100 + 1).to(dtype)
    labels = random_labels(9, 500, 10)
    found = gf.retrieval_metrics(queries, gallery, *map(torch.from_numpy, labels), metric=metric)
    assert isinstance(found.per_query.map, torch.Tensor)
    expected = reference_metrics.retrieval_metrics(queries.numpy(), gallery.double().numpy(), *labels, metric=metric)
    assert_same(found, expected, (1, 5, 10))


def test_no_queries_give_no_means() -> None:
    found = gf.retrieval_metrics(np.zeros((0, 3)), np.ones((5, 3)), [], np.arange(5))
    assert (found.queries, found.without_positive, found.per_query.map.shape) == (0, 0, (0,))
    assert np.isnan(found.map)


def test_an_empty_gallery_leaves_every_query_without_a_positive() -> None:
    found = gf.retrieval_metrics(np.ones((2, 3)), np.ones((0, 3)), [1, 2], np.zeros(0, int))
    assert found.without_positive == 2


# --- flips ------------------------------------------------------------------------------------------------------------


def test_retrieval_flips_are_hits_that_became_misses() -> None:
    queries, gallery, query_labels, gallery_labels, _ = ranked_data()
    query_labels[3] = 99  # no positive
    noise = np.random.default_rng(0).standard_normal(queries.shape)
    old = gf.retrieval_metrics(queries, gallery, query_labels, gallery_labels)
    new = gf.retrieval_metrics(queries + noise, gallery, query_labels, gallery_labels)
    for k in (1, 3):
        before, after = (np.asarray(m.per_query.first_rank) <= k for m in (old, new))
        flips = gf.count_retrieval_flips(old, new, k)
        assert flips.total == 39
        assert flips.negative_indices.tolist() == np.flatnonzero(before & ~after).tolist()
        assert (flips.negative, flips.positive) == ((before & ~after).sum(), (after & ~before).sum())
        assert flips.nfr - flips.pfr == pytest.approx(before.sum() / 39 - after.sum() / 39)
    assert gf.count_retrieval_flips(old, new).negative > 0


def test_flips_need_the_same_queries() -> None:
    rows = np.eye(3)
    full = gf.retrieval_metrics(rows, rows, [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="new: expected metrics of as many queries as old, 3, got 2"):
        gf.count_retrieval_flips(full, gf.retrieval_metrics(rows[:2], rows, [0, 1], [0, 1, 2]))
    with pytest.raises(ValueError, match=r"new: .* got one for 1 in old alone"):
        gf.count_retrieval_flips(full, gf.retrieval_metrics(rows, rows, [0, 9, 2], [0, 1, 2]))
    with pytest.raises(ValueError, match="k: expected depths of 1 or more, got 0"):
        gf.count_retrieval_flips(full, full, 0)


# --- what is wrong is said --------------------------------------------------------------------------------------------

GOOD = np.ones((8, 3), np.float32)
LABELS = np.arange(8)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"metric: expected one of 'cosine', 'ip', 'l2', got 'dot'", {"metric": "dot"}),
        (ValueError, r"k: expected depths of 1 or more, got 0", {"k": (1, 0)}),
        (ValueError, r"k: expected at least one depth, got none", {"k": ()}),
        (TypeError, r"k: expected integers, got float", {"k": (1.0,)}),
        (TypeError, r"queries: expected an array, got a path: gf.Gallery.open\('q.npy'\).load", {"queries": "q.npy"}),
        (TypeError, r"gallery: expected .* got a path: gf.Gallery.open\('g.npy'\)$", {"gallery": Path("g.npy")}),
        (ValueError, r"gallery: expected the dim of the queries, got queries \(8, 3\)", {"gallery": GOOD[:, :2]}),
        (ValueError, r"query_labels: expected shape \(8,\), got \(7,\)", {"query_labels": LABELS[:7]}),
        (TypeError, r"gallery_labels: expected integers, got torch.float64", {"gallery_labels": LABELS * 1.0}),
        (ValueError, r"gallery_groups: expected together with query_groups", {"query_groups": LABELS}),
        (
            ValueError,
            r"gallery: row 2: expected finite numbers",
            {"gallery": np.where(LABELS[:, None] == 2, np.nan, GOOD)},
        ),
        (ValueError, r"queries: row 1: cosine of a zero", {"queries": np.where(LABELS[:, None] == 1, 0, GOOD)}),
    ],
)
def test_what_is_wrong_is_named(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    good = {"queries": GOOD, "gallery": GOOD, "query_labels": LABELS, "gallery_labels": LABELS}
    with pytest.raises(error, match=message):
        gf.retrieval_metrics(**(good | arguments))
