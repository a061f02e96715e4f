"""scan on a GPU: the kernels of csrc/kernels find what the float64 definition says, bit for bit, as on the CPU."""

import ctypes
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import engines
import numpy as np
import pytest
import torch
from cases import SCAN_CASES, ScanCase
from engines import Engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graceful_fast as gf
from graceful_fast import _brackets, _ops, _pairs, reference, search
from graceful_fast._devices import on_device
from graceful_fast._error_rates import ordered

METRICS = ("cosine", "ip", "l2")
# Two runs a case, metrics in turn: all of them on the emulator would take minutes.
RUNS = [
    (case, case.metrics[(i + j) % len(case.metrics)], scan)
    for i, case in enumerate(SCAN_CASES)
    for j, scan in enumerate(("int8", "float16"))
]
BUILDS = [pytest.param(*run, id=f"{run[0].name}-{run[1]}-{run[2]}") for run in RUNS]


@pytest.fixture(params=["simt", "cuda"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return engines.use(request.param, monkeypatch)


def assert_same(found: Any, expected: Any) -> None:
    scores, indices = (torch.as_tensor(side).cpu().numpy() for side in found)
    assert not np.isnan(scores).any()
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores.view(np.int32), np.asarray(expected[0]).view(np.int32))


@pytest.mark.parametrize(("case", "metric", "scan"), BUILDS)
def test_neighbours_are_those_of_the_definition(case: ScanCase, metric: str, scan: str, gpu: Engine) -> None:
    queries, gallery = case.build(np.random.default_rng(7))
    expected = reference.knn(queries, gallery, case.k, metric=metric)
    q, x = gpu.tensors(torch.from_numpy(queries), torch.from_numpy(gallery))
    found = gf.knn(q, x, case.k, metric=metric, scan=scan)
    assert found.indices.device.type == gpu.device
    assert_same(found, expected)


@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(0, 140),
    rows=st.integers(1, 200),
    dim=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 5, 1000]),
    dtypes=st.tuples(*2 * [st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8])]),
    metric=st.sampled_from(METRICS),
    scan=st.sampled_from(["float16", "int8"]),
    data=st.data(),
)
def test_any_small_search_is_exact(seed, queries, rows, dim, levels, dtypes, metric, scan, data, gpu: Engine) -> None:
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, rows))

    def embeddings(count: int, dtype: torch.dtype) -> torch.Tensor:
        values = rng.integers(0, levels, (count, dim)) - levels // 2 + (0.25 if dtype.is_floating_point else 1)
        values[(values == 0).all(1)] = 1
        return torch.from_numpy(values if dtype.is_floating_point else values.clip(1, 127)).to(dtype)

    q, x = embeddings(queries, dtypes[0]), embeddings(rows, dtypes[1])
    labels = {"query_ids": rng.integers(0, 9, queries), "gallery_ids": rng.integers(0, 9, rows)}
    labels |= {"query_groups": rng.integers(0, 4, queries), "gallery_groups": rng.integers(0, 4, rows)}
    kind = data.draw(st.sampled_from(["none", "ids", "groups", "s"]))  # "s": both
    used = {name: values for name, values in labels.items() if name.endswith(kind)}
    expected = reference.knn(q.double().numpy(), x.double().numpy(), k, metric=metric, **used)
    assert_same(gf.knn(*gpu.tensors(q, x), k, metric=metric, scan=scan, **used), expected)


# --- lists without room, blocks, codes made before --------------------------------------------------------------------


def find(q: torch.Tensor, x: torch.Tensor, k: int, metric: str, way: str, blocks: int, candidate_bytes: int) -> Any:
    """The neighbours, block after block of the gallery, by float16, codes made on the way or before, or a shortlist."""
    keys, rows = search.no_neighbors(len(q), k, q.device)
    statuses = []
    for first, end in itertools.pairwise(len(x) * part // blocks for part in range(blocks + 1)):
        block = x[first:end]
        codes = _ops.scan_quantize(block)[:2] if way in ("codes", "shortlist") else None
        if way == "shortlist":
            offsets, listed, status = _ops.scan_shortlist(q, codes, keys, rows, metric, candidate_bytes=candidate_bytes)
            statuses.append(status)
            if not status.gave_up:
                taken, places = listed.unique(return_inverse=True)
                _ops.scan_settle(q, block[taken], taken + first, offsets, places, keys, rows, metric)
                continue
        options = {"codes": codes, "coded": way == "int8", "candidate_bytes": candidate_bytes}
        statuses.append(_ops.scan_collect(q, block, keys, rows, metric, first_row=first, **options))
    return ((-keys if metric == "l2" else keys).float(), rows), statuses


def constant(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.full((rows, 24), 0.7)


def near_duplicates(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.standard_normal(24) * (1 + 1e-9 * rng.standard_normal((rows, 24)))


def each_better(rng: np.random.Generator, rows: int) -> np.ndarray:
    return (
        np.ones(24) * np.linspace(0.1, 0.9, rows)[:, None] + rng.standard_normal(24) * np.linspace(1, 0, rows)[:, None]
    )


def uneven(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.standard_normal((rows, 24)) * 10.0 ** rng.uniform(-3, 1, (rows, 1))


SMALL_LISTS = [
    pytest.param(make, METRICS[(i + j) % 3], way, id=f"{make.__name__}-{way}")
    for i, make in enumerate((constant, near_duplicates, each_better, uneven))
    for j, way in enumerate(("float16", "int8", "codes", "shortlist"))
]


@pytest.mark.parametrize(("make", "metric", "way"), SMALL_LISTS)
def test_lists_too_small_for_the_data_change_nothing(
    make: Callable[..., Any], metric: str, way: str, gpu: Engine
) -> None:
    rng = np.random.default_rng(5)
    q, x = np.abs(rng.standard_normal((3, 24))), make(rng, 900)
    expected = reference.knn(q, x, 4, metric=metric)
    for blocks, candidate_bytes in ((1, 1), (2, 1), (1, 1 << 20)):
        found, statuses = find(
            *gpu.tensors(torch.from_numpy(q), torch.from_numpy(x)), 4, metric, way, blocks, candidate_bytes
        )
        assert_same(found, expected)
        if make is constant and candidate_bytes == 1:
            assert any(status.cuts or status.gave_up for status in statuses)


def test_codes_and_facts_are_those_of_the_cpu(gpu: Engine) -> None:
    rng = np.random.default_rng(2)
    for dim in (1, 15, 16, 17, 100):
        rows = rng.standard_normal((50, dim)) * 10.0 ** rng.uniform(-30, 30, (50, 1))
        rows[:2] = 0
        rows[2:4] *= 1e-10
        for dtype in (torch.float32, torch.float64):
            x = torch.from_numpy(rows).to(dtype)
            codes, facts, status = (side.cpu() for side in torch.ops.graceful_fast.scan_quantize(x))
            ours = _ops.scan_quantize(*gpu.tensors(x))
            assert torch.equal(ours[0].cpu(), codes)
            assert torch.equal(ours[1].cpu()[:, ::2], facts[:, ::2])  # the residual's sum has the vectors' order
            torch.testing.assert_close(ours[1].cpu(), facts, rtol=1e-5, atol=0)
            assert ours[2] == tuple(status.tolist())


# --- bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", ["int8", "float16"])
def test_the_first_bad_row_is_named_queries_first(scan: str, gpu: Engine) -> None:
    rng = np.random.default_rng(0)
    q, x = torch.from_numpy(rng.standard_normal((20, 9))), torch.from_numpy(rng.standard_normal((300, 9)))
    x[200, 3], x[100, 8], x[250] = torch.nan, -torch.inf, 0
    with pytest.raises(ValueError, match="gallery: row 100: expected finite numbers"):
        gf.knn(*gpu.tensors(q, x), 3, scan=scan)
    x[100] = 1e300
    with pytest.raises(ValueError, match="gallery: row 100: expected a norm below"):
        gf.knn(*gpu.tensors(q, x), 3, scan=scan)
    x[:240] = 1
    with pytest.raises(ValueError, match="gallery: row 250: cosine of a zero vector"):
        gf.knn(*gpu.tensors(q, x), 3, scan=scan)
    q[7] = 0
    with pytest.raises(ValueError, match="queries: row 7: cosine of a zero vector"):
        gf.knn(*gpu.tensors(q, x), 3, scan=scan)


def test_a_bad_row_leaves_what_was_found_before(gpu: Engine) -> None:
    q, x = gpu.tensors(torch.rand(5, 8), torch.rand(400, 8))
    keys, rows = search.no_neighbors(5, 3, q.device)
    _ops.scan_collect(q, x, keys, rows, "ip")
    before = keys.clone(), rows.clone()
    x[399, 0] = torch.nan
    assert _ops.scan_collect(q, x * 2, keys, rows, "ip", first_row=400).bad == 2
    assert torch.equal(keys, before[0])
    assert torch.equal(rows, before[1])


def test_a_scan_that_the_device_lacks_is_refused(gpu: Engine) -> None:
    q, x = gpu.tensors(torch.rand(2, 4), torch.rand(3, 4))
    with pytest.raises(ValueError, match="scan: expected one of 'auto', 'int8', 'float16' on c"):
        gf.knn(q, x, 1, scan="float32")


def test_float16_is_for_gpus() -> None:
    with pytest.raises(ValueError, match="scan: expected one of 'auto', 'int8', 'float32' on cpu, got 'float16'"):
        gf.knn(torch.rand(2, 4), torch.rand(3, 4), 1, scan="float16")


# --- counts and pairs -------------------------------------------------------------------------------------------------


@contextmanager
def cpu_kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ops, "_ops", torch.ops.graceful_fast)
        yield


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [2, 50, 100_000])
def test_retrieval_metrics_are_those_of_the_cpu(metric: str, levels: int, gpu: Engine) -> None:
    rng = np.random.default_rng(levels)
    q, x = (torch.from_numpy((rng.integers(0, levels, (n, 6)) + 0.5) / levels).float() for n in (30, 700))
    labels = rng.integers(0, 9, 30), rng.integers(0, 10, 700)
    others = {"query_ids": rng.integers(0, 20, 30), "gallery_ids": rng.integers(0, 20, 700)}
    others |= {"query_groups": rng.integers(0, 3, 30), "gallery_groups": rng.integers(0, 3, 700)}
    with cpu_kernels():
        expected = gf.retrieval_metrics(q, x, *labels, metric=metric, **others)
    found = gf.retrieval_metrics(*gpu.tensors(q, x), *labels, metric=metric, **others)
    for name in ("recall", "cmc", "ndcg", "map", "map_bounds", "mrr", "r_precision", "queries", "without_positive"):
        np.testing.assert_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.per_query.map.device.type == gpu.device


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("data", ["random", "ties", "constant", "huge"])
@pytest.mark.parametrize("all_scores", [True, False])
def test_verification_metrics_are_those_of_the_cpu(
    metric: str, data: str, all_scores: bool, gpu: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not all_scores:
        monkeypatch.setattr(_pairs, "_FEW", 10)  # by histograms, as of many pairs
        monkeypatch.setattr(_brackets, "_SAMPLE", 2_000)
    rng = np.random.default_rng(3)
    make = {
        "random": lambda n: rng.standard_normal((n, 10)),
        "ties": lambda n: rng.integers(1, 3, (n, 10)),
        "constant": lambda n: np.full((n, 10), 0.3),
        "huge": lambda n: rng.standard_normal((n, 10)) * 10.0 ** rng.uniform(-25, 25, (n, 1)),
    }[data]
    a, b = (torch.from_numpy(make(n)).float() for n in (60, 150))
    for other in (b, None):
        labels = rng.integers(0, 5, 60), None if other is None else rng.integers(0, 5, 150)
        ids = {"a_ids": rng.integers(0, 30, 60), "b_ids": None if other is None else rng.integers(0, 30, 150)}
        with cpu_kernels():
            expected = gf.verification_metrics(a, other, *labels, metric=metric, far=(0.1, 0.01), **ids)
        found = gf.verification_metrics(*gpu.tensors(a, other), *labels, metric=metric, far=(0.1, 0.01), **ids)
        for name in ("tar", "threshold", "eer", "genuine", "impostor"):
            np.testing.assert_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        if all_scores:
            np.testing.assert_equal(vars(found), vars(expected))
        else:
            assert found.auc == pytest.approx(expected.auc, abs=2e-3)  # of bins of scan scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("within", [False, True])
def test_a_histogram_has_every_pair_within_its_margin_of_its_bin(metric: str, within: bool, gpu: Engine) -> None:
    rng = np.random.default_rng(4)
    a = torch.from_numpy(rng.standard_normal((140, 70)) * 10.0 ** rng.uniform(-1, 1, (140, 1))).float()
    b = a if within else torch.from_numpy(rng.standard_normal((150, 70))).float()
    labels = torch.arange(140, dtype=torch.int32) % 7, torch.arange(len(b), dtype=torch.int32) % 7
    ids = torch.arange(140, dtype=torch.int32) // 2, torch.arange(len(b), dtype=torch.int32) // 2
    keys = torch.from_numpy(
        np.stack([reference.similarity(row, b.double().numpy(), metric) for row in a.double().numpy()])
    )
    pairs = ids[0][:, None] != ids[1]
    if within:
        pairs &= torch.arange(140)[:, None] < torch.arange(140)
    low, high = float(keys[pairs].min()), float(keys[pairs].max())
    grid = {"origin": low, "width": (high - low) / 1000, "bins": 1001}
    keep = torch.tensor([[0, 1000]])
    found = _ops.scan_histogram(*gpu.tensors(a, b), metric, labels, ids, within, **grid, keep=keep, capacity=30_000)
    same = labels[0][:, None] == labels[1]
    assert found.counts.sum(1).tolist() == [int((pairs & ~same).sum()), int((pairs & same).sum())]
    assert found.kept == int(pairs.sum())
    assert sorted(found.pairs.tolist()) == pairs.flatten().nonzero().flatten().tolist()
    assert torch.equal(found.kinds.bool(), same.flatten()[found.pairs])
    exact = (keys.flatten()[found.pairs] - low) / grid["width"]
    assert not (found.margin > 8)
    assert (exact - found.places.double()).abs().max() <= found.margin
    bins = found.places.clamp(0, 1000).int()
    assert torch.equal(torch.bincount(bins[found.kinds == 1], minlength=1001), found.counts[1])
    few = _ops.scan_histogram(*gpu.tensors(a, b), metric, labels, ids, within, **grid, keep=keep[:0], capacity=0)
    assert few.kept == 0
    assert torch.equal(few.counts, found.counts)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0, 40, 50])
def test_exact_scores_are_binned_and_kept(metric: str, shift: int, gpu: Engine) -> None:
    rng = np.random.default_rng(6)
    a, b = (torch.from_numpy(rng.integers(1, 4, (n, 5))).float() for n in (50, 170))  # many scores on the bins' edges
    labels = torch.arange(50, dtype=torch.int32) % 3, torch.arange(170, dtype=torch.int32) % 3
    rows = b.double().numpy()
    keys = np.stack([reference.similarity(row, rows, metric) for row in a.double().numpy()]).ravel()
    genuine = (labels[0][:, None] == labels[1]).numpy().ravel()
    lowest = int(ordered(np.sort(keys)[len(keys) // 3]))
    bins = ((ordered(keys) - lowest) >> shift) + 1
    bins = np.where(ordered(keys) < lowest, 0, np.minimum(bins, 5))
    arguments = (*gpu.tensors(a, b), metric, labels, (None, None), False)
    found = _ops.scan_between(*arguments, lowest=lowest, shift=shift, bins=6, capacity=9000)
    expected = [np.bincount(bins[kind], minlength=6).tolist() for kind in (~genuine, genuine)]
    assert found.counts.tolist() == expected
    kept = (bins > 0) & (bins < 5)
    assert found.kept == kept.sum()
    for kind in (0, 1):
        np.testing.assert_array_equal(np.sort(found.keys[found.kinds == kind]), np.sort(keys[kept & (genuine == kind)]))


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_scan(rows: int, gpu: Engine) -> None:
    q, x = gpu.tensors(torch.zeros(0, 4), torch.ones(rows, 4))
    labels = torch.zeros(0, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    grid = {"origin": 0.0, "width": 1.0, "bins": 4, "keep": torch.zeros(0, 2, dtype=torch.int64), "capacity": 3}
    found = _ops.scan_histogram(q, x, "ip", labels, (None, None), False, **grid)
    assert found.counts.sum() == found.kept == found.margin == 0
    if rows:
        assert gf.knn(q, x, 1).indices.shape == (0, 1)


@pytest.mark.parametrize("metric", METRICS)
def test_warps_that_race_ahead_change_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    q, x = (torch.from_numpy(np.round(rng.standard_normal((n, 30)), 1)).float() for n in (20, 400))
    labels = rng.integers(0, 3, 20), rng.integers(0, 3, 400)
    expected = gf.knn(q, x, 20, metric=metric), gf.retrieval_metrics(q, x, *labels, metric=metric)
    verified = gf.verification_metrics(q, x, *labels, metric=metric, far=0.1)
    engines.use("simt-random", monkeypatch)
    for scan in ("int8", "float16"):
        assert_same(gf.knn(q, x, 20, metric=metric, scan=scan), expected[0])
    assert gf.retrieval_metrics(q, x, *labels, metric=metric) == expected[1]
    np.testing.assert_equal(vars(gf.verification_metrics(q, x, *labels, metric=metric, far=0.1)), vars(verified))


# --- traffic ----------------------------------------------------------------------------------------------------------


def launches() -> dict[str, list[tuple[int, int, int]]]:
    """Bytes that each launch since the last call has read, written, added to: by kernel."""
    text = ctypes.create_string_buffer(1 << 20)
    engines.simt().graceful_fast_simt_counts(text, ctypes.c_size_t(len(text)))
    found: dict[str, list[tuple[int, int, int]]] = {}
    for line in text.value.decode().splitlines():
        kernel, *counts = line.split()
        found.setdefault(kernel, []).append(tuple(map(int, counts)))
    return found


@pytest.mark.parametrize("scan", ["int8", "float16"])
def test_kernels_move_the_bytes_that_their_heads_say(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engines.use("simt", monkeypatch)
    queries, rows, dim, k = 130, 300, 50, 3
    rng = np.random.default_rng(0)
    q, x = (torch.from_numpy(rng.standard_normal((n, dim))).float() for n in (queries, rows))
    launches()
    gf.knn(q, x, k, metric="ip", scan=scan)
    found = launches()
    stride = 64 if scan == "int8" else 112
    readings = 2 if scan == "int8" else 1
    assert found["scan_measure"] == [
        (2 * queries * dim * 4, queries * (8 + 56 * 8), 0),
        (rows * dim * 4, rows * 8, 0),
    ]
    # Each of the 16 threads of a row reads its squared norm.
    assert found["scan_encode"] == [(n * (readings * dim * 4 + 16 * 8), n * (stride + 12), 0) for n in (queries, rows)]
    tiles = [(min(128, queries - a), min(128, rows - b)) for a in range(0, queries, 128) for b in range(0, rows, 128)]
    # A limit: by two threads of each tile, then by the 128 that take a query's scores.
    of_tiles = sum((some + others) * (stride + 16) + some * 4 * (2 + 128) for some, others in tiles)
    (read, written, added), *_ = found["scan_collect"]
    assert read == of_tiles
    assert written * 4 == added * 16 > 0


class FakeStream:
    def record_event(self) -> None:
        pass

    def wait_event(self, event: None) -> None:
        pass


def test_a_block_is_on_its_way_while_the_one_before_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    log = []

    def read() -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for first in range(3):
            log.append(f"read {first}")
            yield first, torch.ones(2), torch.zeros(1)

    for first, *tensors in on_device(read(), torch.device("meta")):
        log.append(f"scan {first}")
        assert [tensor.device.type for tensor in tensors] == ["meta", "meta"]
    assert log == ["read 0", "read 1", "scan 0", "read 2", "scan 1", "scan 2"]
    assert [first for first, *_ in on_device(read(), torch.device("cpu"))] == [0, 1, 2]
