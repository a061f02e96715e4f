"""scan: the k nearest neighbours are exactly those of the float64 definition, whatever the data and the machine."""

import doctest
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from cases import SCAN_CASES, ScanCase
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

import graceful_fast as gf
from graceful_fast import _ops, _search_blocks, reference, search

METRICS = ("cosine", "ip", "l2")
WAYS = ("float32", "int8", "codes", "shortlist")  # scans; one of codes made before; one with the originals elsewhere
RUNS = [pytest.param(case, metric, id=f"{case.name}-{metric}") for case in SCAN_CASES for metric in case.metrics]


def build(case: ScanCase) -> tuple[np.ndarray, np.ndarray]:
    return case.build(np.random.default_rng(7))


def assert_same(found: gf.Neighbors, expected: tuple[np.ndarray, np.ndarray]) -> None:
    scores, indices = np.asarray(found.scores), np.asarray(found.indices)
    assert scores.dtype == np.float32
    assert indices.dtype == np.int64
    assert not np.isnan(scores).any()
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores.view(np.int32), expected[0].view(np.int32))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find(queries: np.ndarray, gallery: np.ndarray, k: int, metric: str, way: str, blocks: int = 1) -> gf.Neighbors:
    """gf.knn by one of WAYS, the gallery cut into blocks of rows."""
    if way in ("float32", "int8") and blocks == 1:
        return gf.knn(queries, gallery, k, metric=metric, scan=way)
    q, x = search.as_embeddings(queries, "queries"), search.as_embeddings(gallery, "gallery")
    keys, rows = search.no_neighbors(len(q), k)
    edges = [len(x) * part // blocks for part in range(blocks + 1)]
    for first, end in pairwise(edges):
        block = x[first:end]
        codes = _ops.scan_quantize(block)[:2] if way in ("codes", "shortlist") else None
        if way == "shortlist":
            offsets, listed, status = _ops.scan_shortlist(q, codes, keys, rows, metric)
            if not status.gave_up:
                taken, places = listed.unique(return_inverse=True)
                _ops.scan_settle(q, block[taken], taken + first, offsets, places, keys, rows, metric)
                continue
        _ops.scan_collect(q, block, keys, rows, metric, first_row=first, codes=codes, coded=way == "int8")
    return gf.Neighbors((-keys if metric == "l2" else keys).float(), rows)


# --- the answer is the definition's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("case", "metric"), RUNS)
def test_neighbours_are_those_of_the_definition(case: ScanCase, metric: str, way: str) -> None:
    queries, gallery = build(case)
    expected = reference.knn(queries, gallery, case.k, metric=metric)
    for count in (1, 2, 5):
        with threads(count):
            assert_same(find(queries, gallery, case.k, metric, way), expected)


def test_the_definition_is_a_plain_sum_up_to_rounding() -> None:
    queries, gallery = build(SCAN_CASES[0])
    q, x = queries.astype(np.float64), gallery.astype(np.float64)
    for metric, expected in {
        "ip": q @ x.T,
        "cosine": (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1),
        "l2": -((q[:, None] - x) ** 2).sum(-1),
    }.items():
        got = np.stack([reference.similarity(query, gallery, metric) for query in queries])
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["float32", "int8"])
def test_floors_known_before_the_first_rows_are_scanned_change_nothing(way: str, monkeypatch) -> None:
    # Queries of group 0 meet their first rows in the second block, where all others know a floor already; with several
    # threads, a task learns another's floor while it looks for its own. All scores are below 0: fresh memory holds 0.
    rng = np.random.default_rng(3)
    gallery = (np.abs(rng.standard_normal((16_000, 16))) + 0.1).astype(np.float32)
    queries = (-np.abs(rng.standard_normal((40, 16))) - 0.1).astype(np.float32)
    groups = {"query_groups": np.arange(40) // 14, "gallery_groups": np.where(np.arange(16_000) < 4_000, 0, 9)}
    expected = reference.knn(queries, gallery, 5, metric="ip", **groups)
    assert_same(gf.knn(queries, gallery, 5, metric="ip", scan=way, **groups), expected)
    monkeypatch.setattr(_search_blocks, "_BLOCK_BYTES", 4_000 * 16 * 4)
    assert_same(
        gf.knn(queries, gallery, 5, metric="ip", scan=way, progress=lambda done, total: None, **groups), expected
    )


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(0, 17),
    rows=st.integers(1, 200),
    dim=st.integers(1, 20),
    levels=st.sampled_from([1, 2, 5, 1000]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    metric=st.sampled_from(METRICS),
    scan=st.sampled_from(["float32", "int8"]),
    data=st.data(),
)
def test_any_small_search_is_exact(seed, queries, rows, dim, levels, dtype, metric, scan, data) -> None:
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, rows))
    shift = levels / 2 + 0.25 if metric == "cosine" else levels // 2  # cosine: no zero vector
    q = ((rng.integers(0, levels, (queries, dim)) - shift) / 8).astype(dtype)
    x = ((rng.integers(0, levels, (rows, dim)) - shift) / 8).astype(dtype)
    labels = {"query_ids": rng.integers(0, 9, queries), "gallery_ids": rng.integers(0, 9, rows)}
    labels |= {"query_groups": rng.integers(0, 4, queries), "gallery_groups": rng.integers(0, 4, rows)}
    kind = data.draw(st.sampled_from(["none", "ids", "groups", "s"]))  # "s": both
    used = {name: values for name, values in labels.items() if name.endswith(kind)}
    assert_same(gf.knn(q, x, k, metric=metric, scan=scan, **used), reference.knn(q, x, k, metric=metric, **used))


def random_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim))


def clustered_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    centres = rng.standard_normal((4, dim))
    return centres[rng.integers(0, 4, rows)] + 10.0 ** rng.uniform(-9, 0) * rng.standard_normal((rows, dim))


def duplicated_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((3, dim))[rng.integers(0, 3, rows)]


def sorted_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Each one nearer to one point than the one before, or farther."""
    centre, away = rng.standard_normal((2, dim))
    return centre + away * np.linspace(*rng.permutation([1.0, 0.0]), rows)[:, None]


def constant_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return np.broadcast_to(rng.standard_normal(dim), (rows, dim))


def spiked_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """One coordinate of each row far above the rest: codes of 8 bits hold nothing else."""
    values = rng.standard_normal((rows, dim))
    values[np.arange(rows), rng.integers(0, dim, rows)] = 1000.0
    return values


def uneven_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim)) * 10.0 ** rng.uniform(-3, 1, (rows, 1))


KINDS = [random_rows, clustered_rows, duplicated_rows, sorted_rows, constant_rows, spiked_rows, uneven_rows]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    of_queries=st.sampled_from(KINDS),
    queries=st.integers(1, 40),
    rows=st.integers(1, 3000),
    dim=st.sampled_from([1, 3, 15, 16, 17, 48, 64, 65, 130]),
    dtype=st.sampled_from(DTYPES),
    metric=st.sampled_from(METRICS),
    data=st.data(),
)
def test_any_data_any_way_gives_the_same_bits(seed, kind, of_queries, queries, rows, dim, dtype, metric, data) -> None:
    """Whatever the scan, the threads, the blocks of the gallery and the order of the queries."""
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, min(rows, 50)) | st.just(rows))
    factor = 20 if dtype == torch.int8 else 1
    x = torch.tensor(kind(rng, rows, dim) * factor).clamp(-100, 2000 / factor).to(dtype)
    q = torch.tensor(of_queries(rng, queries, dim) * factor).clamp(-100, 2000 / factor).to(dtype)
    if metric == "cosine":
        x[(x == 0).all(1)], q[(q == 0).all(1)] = 1, 1
    expected = reference.knn(q.double().numpy(), x.double().numpy(), k, metric=metric)
    order = rng.permutation(queries)
    for way in WAYS:
        blocks, count = data.draw(st.integers(1, min(rows, 5))), data.draw(st.sampled_from([1, 2, 3]))
        with threads(count):
            found = find(q[order], x, k, metric, way, blocks)
        assert_same(found, (expected[0][order], expected[1][order]))


@pytest.mark.parametrize("metric", METRICS)
def test_faiss_and_sklearn_agree_on_well_separated_data(metric: str) -> None:
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((400, 256)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = gallery[:50] + 0.01 * rng.standard_normal((50, 256)).astype(np.float32)
    found = gf.knn(queries, gallery, 1, metric=metric)
    index = faiss.IndexFlatL2(256) if metric == "l2" else faiss.IndexFlatIP(256)
    index.add(gallery)
    scores, indices = index.search(queries, 1)
    np.testing.assert_array_equal(found.indices, indices)
    if metric != "cosine":
        np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-5)
    peer = NearestNeighbors(n_neighbors=1, algorithm="brute", metric="cosine" if metric == "cosine" else "euclidean")
    distances, indices = peer.fit(gallery).kneighbors(queries)
    np.testing.assert_array_equal(found.indices, indices)
    ours = {"cosine": 1 - found.scores, "l2": np.sqrt(found.scores)}
    if metric in ours:
        np.testing.assert_allclose(ours[metric], distances, rtol=1e-4, atol=1e-6)


# --- the same bits, whatever the circumstances ------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_threads_and_order_of_queries_change_nothing(metric: str) -> None:
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((300, 32)).astype(np.float32)
    gallery = np.round(rng.standard_normal((20_000, 32)), 1).astype(np.float32)
    with threads(1):
        one = gf.knn(queries, gallery, 20, metric=metric)
    with threads(2):
        assert_same(gf.knn(queries, gallery, 20, metric=metric), one)
    with threads(7):
        assert_same(gf.knn(queries[:2], gallery, 20, metric=metric), (one.scores[:2], one.indices[:2]))
    order = rng.permutation(300)
    permuted = gf.knn(queries[order], gallery, 20, metric=metric)
    assert_same(permuted, (one.scores[order], one.indices[order]))


ALL_ANSWERS = """
import sys, cases, numpy as np, graceful_fast as gf
answers = []
for case in cases.SCAN_CASES:
    for metric in case.metrics:
        for scan in ("float32", "int8"):
            answers += map(np.asarray, gf.knn(*case.build(np.random.default_rng(7)), case.k, metric=metric, scan=scan))
np.savez(sys.argv[1], *answers)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
def test_every_instruction_set_gives_the_same_bits(isa: str, tmp_path: Path) -> None:
    target = tmp_path / "answers.npz"
    run = subprocess.run(
        [sys.executable, "-c", ALL_ANSWERS, str(target)],
        env={**os.environ, "GRACEFUL_FAST_ISA": isa, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "GRACEFUL_FAST_ISA: expected one of" in run.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert run.returncode == 0, run.stderr
    with np.load(target) as answers:
        theirs = iter(answers.values())
        for case in SCAN_CASES:
            for metric in case.metrics:
                expected = gf.knn(*build(case), case.k, metric=metric)
                for ours in (*expected, *expected):
                    np.testing.assert_array_equal(ours, next(theirs))
        assert next(theirs, None) is None


def test_autocast_precision_and_denormal_settings_of_the_caller_change_nothing() -> None:
    case = next(case for case in SCAN_CASES if case.name == "float32 subnormals")
    searches = [build(SCAN_CASES[0]), build(case)]
    expected = [reference.knn(q, x, 10, metric="ip") for q, x in searches]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.set_flush_denormal(True)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = [gf.knn(q, x, 10, metric="ip") for q, x in searches]
    finally:
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision(before)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


# --- kinds, dtypes, memory layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8]
)
@pytest.mark.parametrize("count", [3, 11])
def test_values_of_every_dtype_are_taken_as_they_are(dtype: torch.dtype, metric: str, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.rand((count, 33), generator=generator) * 100 + 1
    gallery = (torch.rand((900, 33), generator=generator) * 100 + 1).to(dtype)
    found = gf.knn(queries, gallery, 9, metric=metric)
    assert isinstance(found.scores, torch.Tensor)
    assert_same(found, reference.knn(queries.numpy(), gallery.double().numpy(), 9, metric=metric))
    found = gf.knn(gallery[:count], queries, 3, metric=metric)
    assert_same(found, reference.knn(gallery[:count].double().numpy(), queries.numpy(), 3, metric=metric))


@pytest.mark.parametrize("count", [2, 9])
def test_views_with_strides_and_odd_addresses_are_read_in_place(count: int) -> None:
    rng = np.random.default_rng(2)
    wide = rng.standard_normal((count + 500, 41)).astype(np.float32)
    odd = np.frombuffer(b"x" + wide.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(wide.shape)
    fortran = np.asfortranarray(wide)
    for whole in (wide, odd, fortran, wide[::-1][::-1]):
        for columns in (slice(3, 30), slice(0, 41, 2)):
            queries, gallery = whole[:count, columns], whole[count::2, columns]
            expected = reference.knn(queries, gallery, 4, metric="l2")
            assert_same(gf.knn(queries, gallery, 4, metric="l2"), expected)
            torches = gf.knn(torch.tensor(wide)[:count, columns], torch.tensor(wide)[count::2, columns], 4, metric="l2")
            assert_same(torches, expected)


def test_no_queries_give_an_empty_answer() -> None:
    found = gf.knn(np.zeros((0, 3), np.float32), np.ones((5, 3), np.float32), 2)
    assert found.scores.shape == found.indices.shape == (0, 2)


def test_the_example_in_the_docstring_runs() -> None:
    assert doctest.testmod(search) == doctest.TestResults(failed=0, attempted=4)


def test_the_answer_unpacks_and_says_more_when_asked() -> None:
    queries, gallery = build(SCAN_CASES[0])
    scores, indices = found = gf.knn(queries, gallery, 10, info=True)
    assert scores is found.scores
    assert indices is found.indices
    assert found.info is not None
    assert found.info["scan"] == "float32"
    assert len(queries) * 10 <= found.info["settled"] <= len(queries) * 30
    assert gf.knn(queries, gallery, 10).info is None


# --- exclusions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [3, 20])
def test_a_query_never_finds_its_own_id_or_group(metric: str, count: int) -> None:
    rng = np.random.default_rng(4)
    gallery = rng.standard_normal((3000, 16)).astype(np.float32)
    queries = gallery[:count]
    ids = {"query_ids": np.arange(count), "gallery_ids": np.arange(3000)}
    groups = {"query_groups": rng.integers(0, 3, count), "gallery_groups": rng.integers(0, 3, 3000)}
    for labels in (ids, groups, ids | groups):
        found = gf.knn(queries, gallery, 12, metric=metric, **labels)
        assert_same(found, reference.knn(queries, gallery, 12, metric=metric, **labels))
    assert not (gf.knn(queries, gallery, 12, metric=metric, **ids).indices == np.arange(count)[:, None]).any()


@pytest.mark.parametrize(("metric", "worst"), [("cosine", -np.inf), ("ip", -np.inf), ("l2", np.inf)])
def test_missing_neighbours_are_marked(metric: str, worst: float) -> None:
    gallery = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    groups = np.array([1] * 38 + [2, 3])
    found = gf.knn(gallery[:8], gallery, 5, metric=metric, query_groups=np.ones(8, int), gallery_groups=groups)
    assert (np.sort(found.indices, 1) == [-1, -1, -1, 38, 39]).all()
    assert (found.scores[:, 2:] == worst).all()
    assert np.isfinite(found.scores[:, :2]).all()
    nothing = gf.knn(gallery[:8], gallery, 5, metric=metric, query_ids=[7] * 8, gallery_ids=[7] * 40)
    assert (nothing.indices == -1).all()
    assert (nothing.scores == worst).all()


# --- what is wrong is said --------------------------------------------------------------------------------------------

GOOD = np.ones((8, 3), np.float32)


def spoiled(row: int, value: float, dtype: type = np.float32, rows: int = 8) -> np.ndarray:
    array = np.ones((rows, 3), dtype)
    array[row:] = value
    return array


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"metric: expected one of 'cosine', 'ip', 'l2', got 'dot'", {"metric": "dot"}),
        (ValueError, r"scan: expected one of 'auto', 'int8', 'float32', got 'int4'", {"scan": "int4"}),
        (ValueError, r"queries: expected shape \(rows, dim\), got \(3,\)", {"queries": GOOD[0]}),
        (ValueError, r"gallery: expected shape \(rows, dim\), got \(1, 8, 3\)", {"gallery": GOOD[None]}),
        (ValueError, r"dim of the queries, got queries \(8, 3\) and gallery \(8, 2\)", {"gallery": GOOD[:, :2]}),
        (ValueError, r"queries: expected a dim of at least 1", {"queries": GOOD[:, :0], "gallery": GOOD[:, :0]}),
        (ValueError, r"k: expected 1 to 8, .*, got 9 with queries \(8, 3\) and gallery \(8, 3\)", {"k": 9}),
        (ValueError, r"k: expected 1 to 8, .*, got 0", {"k": 0}),
        (ValueError, r"k: expected 1 to 0", {"gallery": GOOD[:0], "k": 1}),
        (TypeError, r"k: expected an integer, got float", {"k": 2.0}),
        (TypeError, r"k: expected an integer, got ndarray", {"k": np.array([2])}),
        (TypeError, r"queries: expected an array, got a path: gf.Gallery.open\('q.npy'\).load", {"queries": "q.npy"}),
        (
            TypeError,
            r"queries: expected an array, got a Gallery: .* in .load\(\).array",
            {"queries": gf.Gallery.open(GOOD)},
        ),
        (TypeError, r"gallery: expected .* got a path: gf.Gallery.open\('g.npy'\)$", {"gallery": Path("g.npy")}),
        (TypeError, r"queries: expected a torch tensor, .*, got dict", {"queries": {}}),
        (
            TypeError,
            r"queries: expected real numbers of at most 64 bits, got dtype <U4",
            {"queries": np.array([["text"]])},
        ),
        (
            TypeError,
            r"gallery: expected a floating dtype, int8 or uint8, got torch.int64",
            {"gallery": GOOD.astype(int)},
        ),
        (TypeError, r"queries: expected a dense tensor", {"queries": torch.ones(8, 3).to_sparse()}),
        (
            ValueError,
            r"queries: expected an array on the CPU, got one on meta",
            {"queries": torch.ones(8, 3, device="meta")},
        ),
        (ValueError, r"queries: row 2: expected finite numbers, .* \(8, 3\)", {"queries": spoiled(2, np.nan)}),
        (ValueError, r"gallery: row 5: expected finite numbers", {"gallery": spoiled(5, -np.inf)}),
        (ValueError, r"gallery: row 5: expected finite numbers", {"gallery": spoiled(5, np.nan, np.float16)}),
        (ValueError, r"gallery: row 5: expected finite numbers", {"gallery": spoiled(5, np.nan), "queries": GOOD[:1]}),
        (
            ValueError,
            r"gallery: row 7000: expected finite",
            {"gallery": spoiled(7000, np.nan, rows=9000), "queries": GOOD[:1]},
        ),
        (ValueError, r"gallery: row 4: cosine of a zero vector", {"gallery": spoiled(4, 0), "metric": "cosine"}),
        (ValueError, r"queries: row 1: cosine of a zero vector", {"queries": spoiled(1, 0), "metric": "cosine"}),
        (ValueError, r"queries: row 6: expected a norm below", {"queries": spoiled(6, 1e200, np.float64)}),
        (ValueError, r"gallery_ids: expected together with query_ids, got None", {"query_ids": range(8)}),
        (ValueError, r"query_groups: expected together with gallery_groups", {"gallery_groups": np.arange(8)}),
        (
            ValueError,
            r"query_ids: expected shape \(8,\), got \(7,\)",
            {"query_ids": np.arange(7), "gallery_ids": np.arange(8)},
        ),
        (TypeError, r"gallery_ids: expected integers", {"query_ids": np.arange(8), "gallery_ids": np.ones(8)}),
    ],
)
def test_what_is_wrong_is_said(error: type[Exception], message: str, arguments: dict) -> None:
    if isinstance(arguments.get("query_ids"), range):
        arguments = {"query_ids": np.arange(8)}
    with pytest.raises(error, match=message):
        gf.knn(**({"queries": GOOD, "gallery": GOOD, "k": 1, "metric": "l2"} | arguments))


def test_rows_too_wide_for_codes_are_refused_as_such() -> None:
    wide = np.ones((1, 2**17 + 1), np.float32)
    with pytest.raises(ValueError, match="scan: expected 'auto' or 'float32' for a dim above 131072, got 'int8'"):
        gf.knn(wide, wide, 1, scan="int8")
    assert gf.knn(np.repeat(wide, 300, 0), wide, 1, info=True).info["scan"] == "float32"


@pytest.mark.parametrize(("checkpoint", "error"), [("", ValueError), (3, TypeError), (False, TypeError)])
def test_a_checkpoint_that_is_no_directory_is_refused(checkpoint: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="checkpoint: expected a directory, got"):
        gf.knn(GOOD, GOOD, 1, checkpoint=checkpoint)


# --- registration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("coded", [False, True])
def test_the_ops_are_registered_correctly(labels: bool, coded: bool) -> None:
    gallery = torch.randn(90, 12)
    some = [torch.arange(5), torch.arange(90)] if labels else [None, None]
    codes = torch.ops.graceful_fast.scan_quantize(gallery)[:2] if coded else (None, None)
    state = search.no_neighbors(5, 4)
    arguments = (torch.randn(5, 12), gallery, *codes, *state, 7, 2, *some, *some, coded, 1 << 20)
    torch.library.opcheck(torch.ops.graceful_fast.scan_collect.default, arguments)
    torch.library.opcheck(torch.ops.graceful_fast.scan_quantize.default, (gallery,))
    if coded:
        arguments = (arguments[0], *codes, *state, 2, *some, *some, 1 << 20)
        torch.library.opcheck(torch.ops.graceful_fast.scan_shortlist.default, arguments)
        taken = (arguments[0], gallery[:3], torch.arange(3), torch.tensor([0, 1, 1, 1, 2, 3]), torch.tensor([2, 1, 0]))
        torch.library.opcheck(torch.ops.graceful_fast.scan_settle.default, (*taken, *state, 2))


# --- memory layouts and labels that torch does not take ---------------------------------------------------------------


def test_fields_of_records_and_misaligned_arrays_are_searched() -> None:
    rows = np.random.default_rng(0).standard_normal((70, 12)).astype(np.float32)
    expected = gf.knn(rows, rows, 3)
    records = np.zeros(70, dtype=[("id", "u1"), ("embedding", "f4", (12,))])  # rows 49 bytes apart
    records["embedding"] = rows
    shifted = np.zeros(rows.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(rows.shape)
    shifted[:] = rows
    for odd in (records["embedding"], shifted):
        assert_same(gf.knn(odd, odd, 3), tuple(expected))


def test_unsigned_ids_never_meet_negative_ones() -> None:
    rows = np.eye(3, dtype=np.float32)
    large = np.array([1, 2**64 - 1, 2], np.uint64)
    with pytest.raises(
        ValueError, match=r"query_ids: expected integers below 2\^63, got 18446744073709551615 in row 1"
    ):
        gf.knn(rows, rows, 1, query_ids=large, gallery_ids=np.array([-1, -1, -1]))
    small = gf.knn(rows, rows, 1, query_ids=np.arange(3, dtype=np.uint64), gallery_ids=np.arange(3)).indices
    assert (small[:, 0] != np.arange(3)).all()


def test_numbers_wider_than_float64_are_named() -> None:
    with pytest.raises(TypeError, match="gallery: expected real numbers of at most 64 bits, got dtype"):
        gf.knn(GOOD, GOOD.astype(np.longdouble), 1)
