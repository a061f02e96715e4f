"""scan: exact search against faiss, torch and the machine's own matrix product; streamed against in memory."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from cases import SCAN_TIMED

import graceful_fast as gf

from .contest import Contest


def contests(quick: bool = False) -> Iterator[Contest]:
    """Searches of random and, where GRACEFUL_FAST_SENTENCES names a file (bench/sentences.py), of real embeddings."""
    share = 10 if quick else 1
    for count, rows, dim, k in SCAN_TIMED:
        queries, gallery = unit_vectors(count, dim, 1), unit_vectors(rows // share, dim, 2)
        yield search_contest(f"{count} x {rows // share} x {dim}, k={k}", queries, gallery, k)
    if path := os.environ.get("GRACEFUL_FAST_SENTENCES"):
        sentences = np.load(path)[::share]
        count = len(sentences) // 30
        case = f"{count} x {len(sentences) - count} x {sentences.shape[1]} real sentences"
        for k in (10, 100):
            yield search_contest(f"{case}, k={k}", sentences[:count], sentences[count:], k)
    yield sgemm_contest(200_000 // share)
    yield stream_contest(1000, 1_000_000 // share, 128, 10)


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def prepared(gallery: np.ndarray) -> gf.Gallery:
    """The gallery with codes of 8 bits made before, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        return gf.Gallery.open(gallery).prepare(Path(folder) / "prepared").load()


def search_contest(case: str, queries: np.ndarray, gallery: np.ndarray, k: int) -> Contest:
    (count, dim), rows = queries.shape, len(gallery)
    index = faiss.IndexFlatIP(dim)
    index.add(gallery)
    coded = prepared(gallery)
    torch_queries, torch_gallery = torch.from_numpy(queries), torch.from_numpy(gallery)
    entries: dict[str, Callable[[], Any]] = {
        "float32": lambda: gf.knn(queries, gallery, k, metric="ip", scan="float32"),
        "int8, gallery prepared": lambda: gf.knn(queries, coded, k, metric="ip"),
        "int8, codes made on the way": lambda: gf.knn(queries, gallery, k, metric="ip", scan="int8"),
        "faiss IndexFlatIP": lambda: index.search(queries, k),
        "torch matmul+topk": lambda: (torch_queries @ torch_gallery.T).topk(k),
        "float32, cosine": lambda: gf.knn(queries, gallery, k, metric="cosine", scan="float32"),
        "float32, l2": lambda: gf.knn(queries, gallery, k, metric="l2", scan="float32"),
    }
    if count < 16:
        del entries["int8, codes made on the way"]
    settled = gf.knn(queries, coded, k, metric="ip", info=True).info

    def check() -> None:
        ours = gf.knn(queries, gallery, k, metric="ip", scan="float32")
        np.testing.assert_allclose(ours.scores, index.search(queries, k)[0], rtol=1e-4, atol=1e-5)
        for other in (gf.knn(queries, coded, k, metric="ip"), gf.knn(queries, gallery, k, metric="ip", scan="int8")):
            np.testing.assert_array_equal(other.indices, ours.indices)
            np.testing.assert_array_equal(other.scores, ours.scores)

    assert settled is not None
    case += f"; int8 settles {settled['settled'] / count:.0f} a query"
    return Contest("scan", case, entries, check, 2.0 * count * rows * dim, "op/s")


def stream_contest(count: int, rows: int, dim: int, k: int) -> Contest:
    """A gallery of ten times the memory limit (float32), its file in the system's cache, against one in memory."""
    queries, gallery = unit_vectors(count, dim, 1), unit_vectors(rows, dim, 2)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "gallery.npy"
    np.save(path, gallery)
    limit = max(gallery.nbytes // 10, 40 << 20)
    coded_files = gf.Gallery.open(path).prepare(Path(folder.name) / "prepared")
    coded = coded_files.load()

    def stream() -> gf.Neighbors:
        assert folder.name  # the files live as long as this function
        return gf.knn(queries, gf.Gallery.open(path), k, scan="float32", memory_limit=limit)

    def check() -> None:
        ours = gf.knn(queries, gallery, k, scan="float32")
        for other in (stream(), gf.knn(queries, coded_files, k, memory_limit=limit)):
            np.testing.assert_array_equal(other.indices, ours.indices)
            np.testing.assert_array_equal(other.scores, ours.scores)

    entries: dict[str, Callable[[], Any]] = {
        "in memory, float32": lambda: gf.knn(queries, gallery, k, scan="float32"),
        "streamed, float32": stream,
        "in memory, int8 prepared": lambda: gf.knn(queries, coded, k),
        "streamed, int8 prepared": lambda: gf.knn(queries, coded_files, k, memory_limit=limit),
    }
    case = f"{count} x {rows} x {dim}, k={k}, cosine, {gallery.nbytes >> 20} MiB within {limit >> 20} MiB"
    return Contest("scan", case, entries, check, 2.0 * count * rows * dim, "op/s")


def sgemm_contest(rows: int) -> Contest:
    """A yardstick: queries chosen so that the search does as many operations as a matrix product of 2048 cubed."""
    size, dim = 2048, 128
    count = round(size**3 / (rows * dim))
    queries, gallery = unit_vectors(count, dim, 1), unit_vectors(rows, dim, 2)
    a, b = torch.from_numpy(unit_vectors(size, size, 3)), torch.from_numpy(unit_vectors(size, size, 4))
    out = torch.empty(size, size)
    entries: dict[str, Callable[[], Any]] = {
        "float32": lambda: gf.knn(queries, gallery, 10, metric="ip", scan="float32"),
        "sgemm 2048": lambda: torch.mm(a, b, out=out),
    }
    return Contest(
        "scan",
        f"{count} x {rows} x {dim}, k=10, as many operations as sgemm",
        entries,
        lambda: None,
        2.0 * size**3,
        "op/s",
    )
