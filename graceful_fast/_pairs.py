"""All pairs of rows of two galleries, a block of each side at a time: their histograms, some pairs, exact scores."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _ops
from ._brackets import BINS
from ._progress import Progress, progress_of
from ._rank_counts import exact_keys
from ._search_blocks import fewest_rows, float_bytes, most_rows
from .search import as_scanned, raise_fault

if TYPE_CHECKING:
    import torch

    from .gallery import Gallery

_FEW = 1 << 20  # pairs whose scores are simply all kept
_KEPT = 1 << 24  # pairs kept at most: 220 MB


class PairPlan(NamedTuple):
    """How much is in memory at once."""

    rows: tuple[int, ...]  # of a and of b
    kept: int  # pairs that a scan keeps


def plan_pairs(a: "Gallery", b: "Gallery", within: bool, memory_limit: int | None, *, whole: bool) -> PairPlan:
    """The largest blocks within the limit; ValueError if it has no room for the labels and the smallest blocks.

    `whole`: `b` is one block if it is an array, as `a` is in any case.
    """
    sides = (a, b)
    if memory_limit is None:
        once = a.array is not None, b.array is not None and whole
        blocks = (
            even(len(side), max(1, len(side)) if one else most_rows(side))
            for side, one in zip(sides, once, strict=True)
        )
        return PairPlan(tuple(blocks), _KEPT)
    row_bytes = [2 * side.dim * side.dtype.itemsize + float_bytes(side) for side in sides]  # two blocks, one being read
    # Labels, ids and what finds the pairs of one label; the scores of few pairs or of a sample; for each thread its
    # counters, queries and panels.
    fixed = 120 * (len(a) + len(b)) + 60 * min(count_pairs(len(a), len(b), within), _FEW)
    fixed += _ops.threads() * (8 * BINS + _ops.QUERIES_A_TASK * (4 * a.dim + 100) + (2 << 20))
    fewest = [fewest_rows(side) for side in sides]
    needed = fixed + sum(rows * size for rows, size in zip(fewest, row_bytes, strict=True))
    if memory_limit < needed:
        raise ValueError(
            f"memory_limit: expected at least {needed} bytes for pairs of {len(a)} and {len(b)} rows of dim {a.dim} "
            f"and their labels, got {memory_limit}"
        )
    spare = memory_limit - needed
    kept = min(_KEPT, spare // 3 // 48)
    blocks = (
        even(len(side), max(1, min(least + spare // 3 // size, most_rows(side))))
        for side, least, size in zip(sides, fewest, row_bytes, strict=True)
    )
    return PairPlan(tuple(blocks), kept)


def even(total: int, rows: int) -> int:
    """Rows of a block so that no block is much smaller than the others, and none larger than `rows`."""
    blocks = max(1, -(-total // rows))
    return max(1, -(-total // blocks))


class Binned(NamedTuple):
    """All pairs by bins of their scan scores, and some of them."""

    counts: np.ndarray  # (2, bins) int64: impostors, genuine
    places: np.ndarray  # (kept,) float32, in bins
    kinds: np.ndarray  # (kept,) uint8: 1 genuine, 0 impostor
    numbers: np.ndarray  # (kept,) int64: row of a * rows of b + row of b
    complete: bool  # whether all pairs to be kept are there
    margin: float  # how far a place may be from that of the exact score


class Scores(NamedTuple):
    """All pairs by bins of their exact scores, and some of these."""

    counts: np.ndarray  # (2, bins) int64: impostors, genuine
    keys: np.ndarray  # (kept,) float64
    kinds: np.ndarray  # (kept,) uint8: 1 genuine, 0 impostor
    complete: bool  # whether all scores to be kept are there


class Tile(NamedTuple):
    """A block of each side."""

    sides: "tuple[torch.Tensor, torch.Tensor]"
    first: tuple[int, int]
    within: bool  # one block with itself


@dataclass(frozen=True)
class Pairs:
    """Rows of `a` with rows of `b`, or every two rows of `a` once where `within`; pairs of one id are left out."""

    a: "Gallery"
    b: "Gallery"
    metric: str
    labels: tuple[Any, Any]  # int32 tensors
    ids: tuple[Any, Any]  # the same, or None
    within: bool
    plan: PairPlan
    progress: bool | Progress

    @property
    def number(self) -> int:
        """Pairs, those of one id included."""
        return count_pairs(len(self.a), len(self.b), self.within)

    @property
    def few(self) -> bool:
        """Whether all scores can be held."""
        return self.number <= _FEW

    def histogram(self, origin: float, width: float, keep: np.ndarray) -> Binned:
        """By bins of scan scores; `keep`: (ranges, 2) int64 bins whose pairs are kept."""
        import torch

        total = np.zeros((2, BINS), np.int64)
        kept, number, margin = [], 0, 0.0
        ranges = torch.from_numpy(keep)
        with closing(self._tiles()) as tiles:
            for tile in tiles:
                room = max(0, self.plan.kept - number)
                found = _ops.scan_histogram(
                    *self._arguments(tile), origin=origin, width=width, bins=BINS, keep=ranges, capacity=room
                )
                self._check(found.status, tile)
                total += found.counts.numpy()
                number, margin = number + found.kept, max(margin, found.margin)
                numbers = found.pairs.numpy()
                if tile.first != (0, 0) or len(tile.sides[1]) != len(self.b):
                    row, column = np.divmod(numbers, len(tile.sides[1]))
                    numbers = (row + tile.first[0]) * len(self.b) + column + tile.first[1]
                kept.append(_compact(found.places.numpy(), found.kinds.numpy(), numbers))
        places, kinds, numbers = _joined(kept, np.float32, np.uint8, np.int64)
        return Binned(total, places, kinds, numbers, number <= self.plan.kept, margin)

    def between(self, lowest: int, shift: int, bins: int, capacity: int) -> Scores:
        """By bins of exact scores, 2^shift of them from `lowest` on; kept: all but those of the first and last bin."""
        total = np.zeros((2, bins), np.int64)
        kept, number = [], 0
        with closing(self._tiles()) as tiles:
            for tile in tiles:
                room = max(0, capacity - number)
                arguments = self._arguments(tile)
                found = _ops.scan_between(*arguments, lowest=lowest, shift=shift, bins=bins, capacity=room)
                self._check(found.status, tile)
                total += found.counts.numpy()
                number += found.kept
                kept.append(_compact(found.keys.numpy(), found.kinds.numpy()))
        keys, kinds = _joined(kept, np.float64, np.uint8)
        return Scores(total, keys, kinds, number <= capacity)

    def keys(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(pairs,) float64 scores, larger is better; the galleries' rows are taken in ascending order."""
        of_a, of_b = self.plan.rows
        if self.a.array is not None and of_a >= len(self.a):
            return exact_keys(as_scanned(self.a.array), self.b, self.metric, rows, columns, of_b)
        keys = np.zeros(len(rows))
        wanted, place = np.unique(rows, return_inverse=True)
        for first in range(0, len(wanted), of_a):
            taken = as_scanned(self.a.take(wanted[first : first + of_a]))
            some = np.flatnonzero((place >= first) & (place < first + len(taken)))
            keys[some] = exact_keys(taken, self.b, self.metric, place[some] - first, columns[some], of_b)
        return keys

    def _tiles(self) -> Generator[Tile, None, None]:
        """A reading of `b` for each block of `a`: of what follows it, where both are one set."""
        starts = range(0, len(self.a), self.plan.rows[0])
        done, total = 0, sum(len(self.b) - first if self.within else len(self.b) for first in starts)
        shown = progress_of(self.progress, "paired")
        shown(done, total)
        with closing(self.a.blocks(self.plan.rows[0])) as outer:
            for first, block in outer:
                a = as_scanned(block)
                start = first + len(a) if self.within else 0
                if self.within:
                    yield Tile((a, a), (first, first), True)
                    done += len(a)
                    shown(done, total)
                if start == len(self.b):
                    continue
                with closing(self.b.blocks(self.plan.rows[1], start)) as inner:
                    for column, other in inner:
                        yield Tile((a, as_scanned(other)), (first, column), False)
                        done += len(other)
                        shown(done, total)
        for side in (self.a, self.b):
            side.check_unchanged()  # rows of a file that was being changed are nobody's answer

    def _arguments(self, tile: Tile) -> tuple[Any, ...]:
        """Of a scan."""

        def of(values: tuple[Any, Any]) -> tuple[Any, ...]:
            parts = zip(values, tile.first, tile.sides, strict=True)
            return tuple(None if side is None else side[first : first + len(rows)] for side, first, rows in parts)

        return (*tile.sides, self.metric, of(self.labels), of(self.ids), tile.within)

    def _check(self, status: _ops.ScanStatus, tile: Tile) -> None:
        """ValueError for what is wrong with the data."""
        if not status.bad:
            return
        row = status.row + tile.first[status.bad - 1]
        status = status._replace(row=row, bad=1 if self.within else status.bad)
        raise_fault(status, self.a, self.b, names=("a", "b"))


def count_pairs(a: int, b: int, within: bool) -> int:
    """Of so many rows of each side."""
    return a * (a - 1) // 2 if within else a * b


def _joined(parts: list[tuple[np.ndarray, ...]], *dtypes: Any) -> tuple[np.ndarray, ...]:
    """The columns of all tiles."""
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate([np.zeros(0, dtype), *(part[i] for part in parts)]) for i, dtype in enumerate(dtypes))


def _compact(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Copies of few values that are views of memory with room for all."""
    return tuple(column.copy() for column in columns) if columns[0].size < 1 << 20 else columns
