"""scan: exact search against faiss, torch and the machine's own matrix product."""

from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import torch
from cases import SCAN_TIMED

import graceful_fast as gf

from .contest import Contest


def contests(quick: bool = False) -> Iterator[Contest]:
    """k = 10 and 100 of 1,000 queries in 200,000 rows (a tenth when quick), and one query in a million rows."""
    share = 10 if quick else 1
    for count, rows, dim, k in SCAN_TIMED:
        yield search_contest(count, rows // share, dim, k)
    yield sgemm_contest(200_000 // share)


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def search_contest(count: int, rows: int, dim: int, k: int) -> Contest:
    queries, gallery = unit_vectors(count, dim, 1), unit_vectors(rows, dim, 2)
    index = faiss.IndexFlatIP(dim)
    index.add(gallery)
    torch_queries, torch_gallery = torch.from_numpy(queries), torch.from_numpy(gallery)
    entries: dict[str, Callable[[], Any]] = {
        "graceful_fast ip": lambda: gf.knn(queries, gallery, k, metric="ip"),
        "faiss IndexFlatIP": lambda: index.search(queries, k),
        "torch matmul+topk": lambda: (torch_queries @ torch_gallery.T).topk(k),
        "graceful_fast cosine": lambda: gf.knn(queries, gallery, k, metric="cosine"),
        "graceful_fast l2": lambda: gf.knn(queries, gallery, k, metric="l2"),
    }

    def check() -> None:
        ours = gf.knn(queries, gallery, k, metric="ip")
        np.testing.assert_allclose(ours.scores, index.search(queries, k)[0], rtol=1e-4, atol=1e-5)

    return Contest("scan", f"{count} x {rows} x {dim}, k={k}", entries, check, 2.0 * count * rows * dim, "op/s")


def sgemm_contest(rows: int) -> Contest:
    """A yardstick: queries chosen so that the search does as many operations as a matrix product of 2048 cubed."""
    size, dim = 2048, 128
    count = round(size**3 / (rows * dim))
    queries, gallery = unit_vectors(count, dim, 1), unit_vectors(rows, dim, 2)
    a, b = torch.from_numpy(unit_vectors(size, size, 3)), torch.from_numpy(unit_vectors(size, size, 4))
    out = torch.empty(size, size)
    entries: dict[str, Callable[[], Any]] = {
        "graceful_fast ip": lambda: gf.knn(queries, gallery, 10, metric="ip"),
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
