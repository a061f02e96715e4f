"""The one list of cases, shared by the tests of every engine and by bench/."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# --- scan -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanCase:
    """Queries and a gallery for a search; `build` gets a generator and returns both."""

    name: str
    k: int
    build: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
    metrics: tuple[str, ...] = ("cosine", "ip", "l2")


def _normal(queries: int, rows: int, dim: int) -> Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    def build(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return (
            rng.standard_normal((queries, dim)).astype(np.float32),
            rng.standard_normal((rows, dim)).astype(np.float32),
        )

    return build


def _duplicated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = rng.standard_normal((30, 24)).astype(np.float32)
    return rng.standard_normal((20, 24)).astype(np.float32), rows[rng.integers(0, 30, 3000)]


def _near_duplicates(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    row = rng.standard_normal(40)
    rows = (row * (1 + 1e-7 * rng.standard_normal((1500, 40)))).astype(np.float32)
    return (row + 0.01 * rng.standard_normal((9, 40))).astype(np.float32), rows


def _constant(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return np.full((8, 16), 0.3, dtype=np.float32), np.full((2500, 16), 0.7, dtype=np.float32)


def _each_better(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every row beats all before it, for every query and metric."""
    query = rng.random((1, 20)) + 1
    rows = (
        query * np.linspace(0.1, 0.9, 2500)[:, None] + rng.standard_normal((1, 20)) * np.linspace(1, 0, 2500)[:, None]
    )
    return np.repeat(query, 7, 0).astype(np.float32), rows.astype(np.float32)


def _clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centres = rng.standard_normal((12, 48))
    rows = centres[rng.integers(0, 12, 3000)] + 1e-3 * rng.standard_normal((3000, 48))
    return (centres + 1e-3 * rng.standard_normal((12, 48))).astype(np.float32), rows.astype(np.float32)


def _offset(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(10, 1500, 24)(rng)
    return queries + np.float32(4096), rows + np.float32(4096)


def _mixed_magnitudes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(12, 1500, 24)(rng)
    return (
        (queries * 10.0 ** rng.uniform(-12, 12, (12, 1))).astype(np.float32),
        (rows * 10.0 ** rng.uniform(-30, 30, (1500, 1))).astype(np.float32),
    )


def _scaled(factor: float, dtype: type = np.float32) -> Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    def build(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        queries, rows = _normal(9, 1200, 20)(rng)
        return queries.astype(dtype) * dtype(factor), rows.astype(dtype) * dtype(factor)

    return build


def _one_outlier(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(9, 1200, 20)(rng)
    rows[700] *= np.float32(1e30)
    queries[3] *= np.float32(1e-30)
    return queries, rows


def _with_zero_rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(9, 1200, 20)(rng)
    rows[::3] = 0
    queries[2] = 0
    return queries, rows


SCAN_CASES = [
    ScanCase("random", 10, _normal(40, 3000, 64)),
    ScanCase("one query", 10, _normal(1, 5000, 64)),
    ScanCase("four queries", 7, _normal(4, 2001, 37)),
    ScanCase("five queries", 7, _normal(5, 2001, 37)),
    ScanCase("k = 1", 1, _normal(13, 2000, 32)),
    ScanCase("k = N", 777, _normal(7, 777, 16)),
    ScanCase("k = N, one query", 777, _normal(1, 777, 16)),
    ScanCase("k near N", 1900, _normal(6, 2000, 16)),
    ScanCase("N = 1", 1, _normal(5, 1, 16)),
    *(ScanCase(f"D = {dim}", 5, _normal(6, 700, dim)) for dim in (1, 2, 7, 8, 9, 127, 128, 129)),
    *(ScanCase(f"D = {dim}, one query", 5, _normal(1, 700, dim)) for dim in (1, 7, 8, 9, 127, 128, 129)),
    *(ScanCase(f"N = {rows}", 3, _normal(6, rows, 12)) for rows in (3, 7, 8, 15, 16, 17, 31, 32, 33, 1023, 1025)),
    *(ScanCase(f"Q = {queries}", 3, _normal(queries, 300, 12)) for queries in (0, 6, 7, 12, 13, 14, 15, 300)),
    ScanCase("D above a chunk", 3, _normal(6, 70, 9000)),
    ScanCase("duplicated rows", 250, _duplicated),
    ScanCase("near-duplicates", 20, _near_duplicates),
    ScanCase("constant", 10, _constant),
    ScanCase("each row better", 10, _each_better),
    ScanCase("clustered", 30, _clustered),
    ScanCase("large offset", 10, _offset),
    ScanCase("magnitudes 1e-30 to 1e30", 10, _mixed_magnitudes),
    ScanCase("magnitude 1e30", 10, _scaled(1e30)),
    ScanCase("magnitude 1e-30", 10, _scaled(1e-30)),
    ScanCase("float32 subnormals", 10, _scaled(1e-41)),
    ScanCase("float64", 10, _scaled(1.0 / 3, np.float64)),
    ScanCase("float64, 1e140", 10, _scaled(1e140, np.float64)),
    ScanCase("float64, 1e-140", 10, _scaled(1e-140, np.float64)),
    ScanCase("one row of 1e30, one query of 1e-30", 10, _one_outlier),
    ScanCase("zero rows and a zero query", 500, _with_zero_rows, ("ip", "l2")),
]
