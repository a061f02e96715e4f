"""metrics: exact ranks of all positives beside a search, all pairs beside the bare matrix product."""

from collections.abc import Iterator

import numpy as np
import torch

import graceful_fast as gf

from .bench_scan import unit_vectors
from .contest import Contest


def contests(quick: bool = False) -> Iterator[Contest]:
    """mAP and CMC of 2,000 queries in 200,000 rows, TAR@FAR of 20,000 x 20,000 (smaller when quick)."""
    yield retrieval_contest(200 if quick else 2000, 20_000 if quick else 200_000)
    yield verification_contest(2000 if quick else 20_000)


def retrieval_contest(count: int, rows: int, dim: int = 128, positives: int = 20) -> Contest:
    """Random labels: the positives rank anywhere, which is the hardest case."""
    rng = np.random.default_rng(0)
    queries, gallery = unit_vectors(count, dim, 1), unit_vectors(rows, dim, 2)
    labels = rng.integers(0, rows // positives, count), rng.integers(0, rows // positives, rows)

    def check() -> None:
        found = gf.retrieval_metrics(queries[:20], gallery, labels[0][:20], labels[1], metric="ip").per_query
        order = np.argsort(-(queries[:20].astype(float) @ gallery.T.astype(float)), axis=1)
        for i, ranking in enumerate(order):
            ranks = np.flatnonzero(labels[1][ranking] == labels[0][i]) + 1
            expected = np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else np.nan
            np.testing.assert_allclose(found.map[i], expected, atol=1e-9)

    return Contest(
        "metrics",
        f"mAP, CMC: {count} x {rows} x {dim}, {positives} positives",
        {
            "graceful_fast retrieval_metrics": lambda: gf.retrieval_metrics(queries, gallery, *labels),
            "graceful_fast knn float32, k=10": lambda: gf.knn(queries, gallery, 10, scan="float32"),
        },
        check,
        2.0 * count * rows * dim,
        "op/s",
    )


def verification_contest(rows: int, dim: int = 128, identities: int = 1000) -> Contest:
    """Two embeddings of each row, clustered by identity."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, identities, rows)
    a = unit_vectors(identities, dim, 1)[labels] + 0.1 * rng.standard_normal((rows, dim), dtype=np.float32)
    b = a + 0.05 * rng.standard_normal((rows, dim), dtype=np.float32)
    left, right, out = torch.from_numpy(a), torch.from_numpy(b).T.contiguous(), torch.empty(rows, rows)
    rates = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if rows < 5000 else (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

    def check() -> None:
        some = slice(0, 1500)
        found = gf.verification_metrics(a[some], b[some], labels[some], labels[some], metric="ip", far=1e-3)
        scores = a[some].astype(float) @ b[some].T.astype(float)
        same = labels[some, None] == labels[some]
        impostors = np.sort(scores[~same])[::-1]
        assert np.isclose(found.threshold[1e-3], impostors[len(impostors) // 1000], rtol=1e-12)

    return Contest(
        "metrics",
        f"TAR@FAR, EER, AUC: {rows} x {rows} x {dim}",
        {
            "graceful_fast verification_metrics": lambda: gf.verification_metrics(a, b, labels, labels, far=rates),
            "sgemm": lambda: torch.mm(left, right, out=out),
            "graceful_fast within one set": lambda: gf.verification_metrics(a, None, labels, None, far=rates),
        },
        check,
        2.0 * rows * rows * dim,
        "op/s",
    )
