"""Kinds of arrays: results are of the kind that went in, and no array is copied on its way to an op."""

import importlib.util
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import graceful_fast as gf
from graceful_fast import _arrays, _ops

GPU = importlib.util.find_spec("cupy") is not None and torch.cuda.is_available() and torch.version.cuda is not None


class Exported:
    """An array that offers nothing but DLPack: no numpy interface, no torch."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    @property
    def address(self) -> int:
        return int(self._array.ctypes.data)


class Standard(Exported):
    """The same with an array namespace."""

    def __array_namespace__(self) -> Any:
        return types.SimpleNamespace(from_dlpack=lambda other: Standard(np.from_dlpack(other)))

    def tolist(self) -> list[Any]:
        values: list[Any] = self._array.tolist()
        return values


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Addresses of the first two tensors that the ops of searches and flips were called with."""
    addresses: list[int] = []

    def spy(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: torch.Tensor, second: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            addresses.extend([first.data_ptr(), second.data_ptr()])
            return op(first, second, *arguments, **options)

        return call

    for name in ("scan_collect", "scan_count", "scan_between", "flips"):
        monkeypatch.setattr(_ops, name, spy(getattr(_ops, name)))
    return addresses


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 8), np.float32)


@pytest.mark.parametrize("kind", [Exported, Standard])
def test_knn_scans_dlpack_memory_in_place(kind: type[Exported], seen: list[int]) -> None:
    q, x = vectors(5, 1), vectors(70, 2)
    queries, gallery = kind(q), kind(x)
    found = gf.knn(queries, gallery, 3)
    assert seen == [queries.address, gallery.address]
    expected = gf.knn(q, x, 3)
    assert isinstance(found.indices, kind if kind is Standard else np.ndarray)
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.scores.tolist() == expected.scores.tolist()


@pytest.mark.parametrize("kind", [Exported, Standard])
def test_count_flips_reads_dlpack_memory_in_place(kind: type[Exported], seen: list[int]) -> None:
    scores = vectors(30, 1), vectors(30, 2)
    old, new = map(kind, scores)
    target = np.arange(30) % 8
    counts = gf.count_flips(old, new, kind(target), groups=kind(target % 2))
    assert seen == [old.address, new.address]
    expected = gf.count_flips(*scores, target, groups=target % 2)
    assert counts == expected
    assert isinstance(counts.negative_indices, kind if kind is Standard else np.ndarray)
    assert counts.negative_indices.tolist() == expected.negative_indices.tolist()
    assert isinstance(counts.by_group[0].negative_indices, type(counts.negative_indices))


def test_metrics_scan_dlpack_memory_in_place(seen: list[int]) -> None:
    q, x, labels = vectors(6, 1), vectors(40, 2), np.arange(40) % 3
    queries, gallery = Standard(q), Standard(x)
    metrics = gf.retrieval_metrics(queries, gallery, Standard(labels[:6]), Standard(labels))
    assert seen[:2] == [queries.address, gallery.address]
    assert metrics.map == gf.retrieval_metrics(q, x, labels[:6], labels).map
    assert isinstance(metrics.per_query.first_rank, Standard)
    seen.clear()
    verified = gf.verification_metrics(queries, gallery, Standard(labels[:6]), Standard(labels), far=(0.1,))
    assert seen[:2] == [queries.address, gallery.address]
    assert verified.tar == gf.verification_metrics(q, x, labels[:6], labels, far=(0.1,)).tar


def test_reversed_dlpack_is_taken() -> None:
    x = vectors(10, 1)
    np.testing.assert_array_equal(gf.knn(x, Exported(x[::-1]), 1).indices[:, 0], np.arange(10)[::-1])


def test_arrays_on_a_gpu_need_a_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"queries: expected an array on the CPU, as torch .* is without CUDA"):
        gf.knn(OnGpu(), vectors(3, 1), 1)


def test_cupy_has_what_its_arrays_are_made_with() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (extra `cupy`)", exc_type=ImportError)
    assert hasattr(cupy.ndarray, "__dlpack_device__")
    assert _arrays._namespace(cupy.ndarray.__new__(cupy.ndarray, ()) if GPU else _unmade(cupy)) is cupy


def _unmade(cupy: Any) -> Any:
    """An object of a class in CuPy's module, without the memory that only a GPU has."""
    return type("ndarray", (), {"__module__": cupy.ndarray.__module__})()


@pytest.mark.skipif(not GPU, reason="needs CuPy, a GPU and a torch with CUDA")
@pytest.mark.parametrize("engine", ["cuda"])
def test_cupy_arrays_come_back_as_cupy(engine: str) -> None:
    cupy = importlib.import_module("cupy")
    q, x = vectors(5, 1), vectors(70, 2)
    found, expected = gf.knn(cupy.asarray(q), cupy.asarray(x), 3), gf.knn(q, x, 3)
    assert isinstance(found.indices, cupy.ndarray)
    np.testing.assert_array_equal(found.indices.get(), expected.indices)
    np.testing.assert_array_equal(found.scores.get(), expected.scores)
    counts = gf.count_flips(cupy.asarray(x), cupy.asarray(x[::-1]), cupy.arange(70) % 8)
    assert isinstance(counts.negative_indices, cupy.ndarray)
    assert _arrays.as_tensor(cupy_x := cupy.asarray(x), "x").data_ptr() == cupy_x.data.ptr
