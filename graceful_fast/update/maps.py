"""Linear maps between the embeddings of two models, for those who cannot retrain: Procrustes and ridge regression."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._arrays import as_numpy

Method = Literal["procrustes", "ridge"]


@dataclass(frozen=True)
class LinearMap:
    """``(x - source_mean) @ matrix + target_mean``, from one named space into another."""

    source: str
    target: str
    matrix: np.ndarray
    """(D_source, D_target) float64."""
    source_mean: np.ndarray
    target_mean: np.ndarray

    def __call__(self, embeddings: Any, *, source: str, target: str) -> np.ndarray:
        """Embeddings of the source space in the target space, (N, D_target) float32.

        Args:
            embeddings: (N, D_source).
            source: Where they come from; must be the map's own.
            target: Where they go; must be the map's own. Two spaces of one width cannot be told apart by their shapes,
                and a map taken the wrong way gives answers that look like any others.

        Raises:
            ValueError: The direction or the width is another one.
        """
        if (source, target) != (self.source, self.target):
            raise ValueError(
                f"source, target: expected the map's {self.source!r} to {self.target!r}, got {source!r} to {target!r}"
            )
        rows = _rows(embeddings, "embeddings")
        if rows.shape[1] != len(self.matrix):
            raise ValueError(f"embeddings: expected {len(self.matrix)} columns, got {rows.shape[1]}")
        moved: np.ndarray = (rows - self.source_mean) @ self.matrix + self.target_mean
        return moved.astype(np.float32)


def fit_map(
    source_embeddings: Any,
    target_embeddings: Any,
    *,
    source: str,
    target: str,
    method: Method = "procrustes",
    ridge: float = 0.1,
) -> LinearMap:
    """The map that takes each source embedding nearest to the target embedding of the same item, in least squares.

    Both sides are centred. "procrustes": a rotation (or reflection) times one factor, ``c U V'`` from the singular
    value decomposition ``X'Y = U diag(s) V'``, with ``c = sum(s) / |X U V'|^2``; of unequal widths, the rectangular
    part of one. It keeps angles. "ridge": any matrix, ``(X'X + ridge * mean eigenvalue * I)^-1 X'Y``.

    Args:
        source_embeddings: (N, D_source) float; of unit length where the search is by cosine.
        target_embeddings: (N, D_target), of the same items in the same order.
        source: Name of the space that the map takes, such as "new" for the queries of a new model.
        target: Name of the space that it gives, such as "old" for the old gallery's.
        method: "procrustes" or "ridge".
        ridge: Of "ridge" only, positive.

    Returns:
        LinearMap, computed in float64.

    Raises:
        ValueError: Shapes that do not match, fewer than 2 rows, values that are not finite, equal names, a source
            without any spread, an unknown method or a bad ridge.

    Source: Schönemann, A generalized solution of the orthogonal Procrustes problem, Psychometrika 1966.

    Example:
        >>> import numpy as np
        >>> old = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> new = old @ [[0.0, 1.0], [-1.0, 0.0]] + [5.0, 5.0]
        >>> to_old = fit_map(new, old, source="new", target="old")
        >>> np.abs(to_old(new, source="new", target="old") - old).max() < 1e-6
        np.True_
        >>> to_old(old, source="old", target="new")
        Traceback (most recent call last):
        ValueError: source, target: expected the map's 'new' to 'old', got 'old' to 'new'
    """
    x, y = _rows(source_embeddings, "source_embeddings"), _rows(target_embeddings, "target_embeddings")
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"target_embeddings: expected the same 2 rows or more on both sides, got {len(x)} and {len(y)}"
        )
    if source == target:
        raise ValueError(f"target: expected another name than the source's, got {target!r} twice")
    if method not in ("procrustes", "ridge"):
        raise ValueError(f"method: expected procrustes or ridge, got {method!r}")
    if not 0 < ridge < np.inf:
        raise ValueError(f"ridge: expected a positive number, got {ridge}")
    source_mean, target_mean = x.mean(0), y.mean(0)
    x, y = x - source_mean, y - target_mean
    energy = float((x * x).sum())
    if energy == 0:
        raise ValueError("source_embeddings: expected rows that differ, got the same row throughout")
    if method == "procrustes":
        left, singular, right = np.linalg.svd(x.T @ y, full_matrices=False)
        rotation = left @ right
        matrix = rotation * (singular.sum() / float(((x @ rotation) ** 2).sum()))
    else:
        width = x.shape[1]
        matrix = np.linalg.solve(x.T @ x + ridge * energy / width * np.eye(width), x.T @ y)
    return LinearMap(source, target, matrix, source_mean, target_mean)


def _rows(embeddings: Any, name: str) -> np.ndarray:
    rows = as_numpy(embeddings, name).astype(np.float64)
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected shape (N, D), got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: expected finite numbers, got {rows[~np.isfinite(rows)][0]}")
    return rows
