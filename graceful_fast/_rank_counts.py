"""How many gallery rows rank before each positive: counts that add up over blocks of a gallery, in bounded memory."""

from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._checkpoint import Checkpoint
from ._devices import on_device
from ._positives import Relevance, Relevant
from ._progress import Progress, progress_of
from ._search_blocks import fewest_rows, float_bytes, most_rows
from .search import as_scanned, raise_fault

if TYPE_CHECKING:
    import torch

    from ._ops import Positives, ScanStatus
    from .gallery import Gallery

_PAIRS = 1 << 22  # positives and excluded rows counted in one pass where no limit is given: about 1.5 GB


class RankCounts(NamedTuple):
    """Of each positive, best first for each query, how many allowed rows are better in which way."""

    start: np.ndarray  # [Q + 1] where each query's positives start
    greater: np.ndarray  # a greater score
    equal: np.ndarray  # an equal one, its own included
    before: np.ndarray  # an equal one and a smaller index


class CountPlan(NamedTuple):
    """How much is in memory at once."""

    rows: int  # of the gallery
    pairs: int  # of a query and a row that is a positive of it, or excluded


def plan_counts(
    queries: "torch.Tensor", gallery: "Gallery", relevant: Relevant, memory_limit: int | None, *, whole: bool
) -> CountPlan:
    """The fewest passes within the limit; ValueError if it has no room for the queries and the smallest block.

    `whole`: rows in memory are one block.
    """
    from ._ops import QUERIES_A_TASK, threads

    if memory_limit is None:
        whole = whole and gallery.array is not None and gallery.array.device == queries.device
        rows = max(1, len(gallery)) if whole else most_rows(gallery)
        return CountPlan(rows, _PAIRS)
    count, dim = queries.shape
    row_bytes = 2 * dim * gallery.dtype.itemsize + float_bytes(gallery)  # two blocks, one being read
    # Of a pair: its query, row and key, their order, what is made of the counts; for each thread tallies and edges.
    pair_bytes = 256 + threads() * (24 + 40)
    # The queries, should they be a copy, and their metrics; packed for each thread that scans, with the edges that any
    # number of positives has; the scan's panels. Of a gallery row, labels as int64 and their order.
    packed = min(count, QUERIES_A_TASK) * (4 * dim + 1600)
    fixed = count * (queries.element_size() * dim + 512) + threads() * (packed + (2 << 20)) + 56 * len(gallery)
    largest, fewest = int(relevant.counts.max(initial=0)), fewest_rows(gallery)
    needed = fixed + largest * pair_bytes + fewest * row_bytes
    if memory_limit < needed:
        raise ValueError(
            f"memory_limit: expected at least {needed} bytes for {count} queries of dim {dim}, up to {largest} "
            f"positives and excluded rows of one, and {len(gallery)} labels, got {memory_limit}"
        )
    free = memory_limit - fixed
    pairs = max(largest, min(int(relevant.counts.sum()), free // 2 // pair_bytes))
    return CountPlan(max(fewest, min((free - pairs * pair_bytes) // row_bytes, most_rows(gallery))), pairs)


def count_better(
    queries: "torch.Tensor",
    gallery: "Gallery",
    metric: str,
    relevant: Relevant,
    plan: CountPlan,
    progress: bool | Progress,
    table: np.ndarray,
    saved: Checkpoint | None,
) -> Iterator[tuple[slice, RankCounts]]:
    """Queries and their counts, in order; for each such block of queries the gallery is read once.

    `table`: what has become of the counts by the time the next ones are asked for: saved with those that are not whole.
    """
    import torch

    from . import _ops

    ranges, rows = relevant.ranges(plan.pairs), len(gallery)
    total = len(ranges) * rows
    most = max((int(relevant.counts[first:last].sum()) for first, last in ranges), default=0)
    tallies = torch.zeros(3 * most, dtype=torch.int64)
    state = [tallies, torch.from_numpy(table)]
    gallery.check_unchanged()
    with saved or nullcontext():
        done = saved.load(state) if saved else 0
        shown = progress_of(progress, "ranked", done)
        shown(done, total)
        for first_query, last_query in ranges[done // max(1, rows) :]:
            some = queries[first_query:last_query]
            pairs, keys = ranked(some, gallery, metric, relevant.of(first_query, last_query), plan.rows)
            wanted = ~pairs.excluded
            start = np.concatenate([[0], np.cumsum(np.bincount(pairs.query[wanted], minlength=len(some)))])
            positives = _ops.Positives(*map(torch.from_numpy, (start, keys[wanted], pairs.row[wanted])))
            first_row = done % max(1, rows)
            if first_row == 0:
                tallies.zero_()
            counts = tallies[: 3 * len(positives.rows)].view(3, len(positives.rows))
            with closing(scans(some, gallery, metric, positives, counts, plan.rows, first_row)) as blocks:
                for first, count, status in blocks:
                    if status.bad == 1:
                        status = status._replace(row=status.row + first_query)
                    done += 0 if status.bad else count
                    if saved and done % rows and (status.bad or saved.due):
                        gallery.check_unchanged()
                        saved.save(done, state)
                    raise_fault(status, queries, gallery, first)
                    if done < total:
                        shown(done, total)
            gallery.check_unchanged()  # rows of a file that was being changed are nobody's answer
            if len(counts[0]) < len(keys):
                counts -= torch.from_numpy(excluded_before(pairs, keys)[:, wanted])
            del pairs, keys, wanted, positives
            yield slice(first_query, last_query), RankCounts(start, *counts.numpy())
            if saved and (saved.due or done == total):
                saved.save(done, state)
    if total:
        shown(total, total)


def scans(
    queries: "torch.Tensor",
    gallery: "Gallery",
    metric: str,
    positives: "Positives",
    counts: "torch.Tensor",
    rows: int,
    start: int,
) -> "Generator[tuple[int, int, ScanStatus], None, None]":
    """Add the rows from `start` on to `counts`; (first row, rows, status) of each block."""
    from . import _ops

    with closing(on_device(gallery.blocks(rows, start), queries.device)) as blocks:
        for first, block in blocks:
            yield first, len(block), _ops.scan_count(queries, as_scanned(block), metric, positives, counts, first)


def ranked(
    queries: "torch.Tensor", gallery: "Gallery", metric: str, pairs: Relevance, rows_at_once: int
) -> tuple[Relevance, np.ndarray]:
    """The pairs by query, from the best down, and their keys; equal keys by row."""
    keys = exact_keys(queries, gallery, metric, pairs.query, pairs.row, rows_at_once)
    order = np.lexsort((pairs.row, -keys, pairs.query))
    return Relevance(pairs.query[order], pairs.row[order], pairs.excluded[order]), keys[order]


def exact_keys(
    queries: "torch.Tensor", gallery: "Gallery", metric: str, query: np.ndarray, row: np.ndarray, rows_at_once: int
) -> np.ndarray:
    """The float64 score of each pair; rows are taken in ascending order. 0 of bad data, which is the scan's to tell."""
    import torch

    from . import _ops

    if gallery.array is not None and rows_at_once >= len(gallery):
        whole = as_scanned(gallery.array)
        keys = _ops.scan_pairs(queries, whole, metric, torch.from_numpy(query), torch.from_numpy(row)).numpy()
        return np.where(np.isnan(keys), 0, keys)
    rows_at_once = min(rows_at_once, most_rows(gallery))
    wanted, place = np.unique(row, return_inverse=True)
    order = np.argsort(place, kind="stable")
    keys = np.zeros(len(order))
    for first in range(0, len(wanted), rows_at_once):
        taken = as_scanned(gallery.take(wanted[first : first + rows_at_once]))
        low, high = np.searchsorted(place, (first, first + len(taken)), sorter=order)
        some = np.sort(order[low:high])  # by query again
        sides = (torch.from_numpy(side) for side in (query[some], place[some] - first))
        keys[some] = _ops.scan_pairs(queries, taken, metric, *sides).numpy()
    return np.where(np.isnan(keys), 0, keys)


def excluded_before(pairs: Relevance, keys: np.ndarray) -> np.ndarray:
    """(3, pairs): of ranked pairs, how many excluded ones of the query are greater, equal, equal and before."""
    query, _, excluded = pairs
    before = np.cumsum(excluded) - excluded
    first = np.ones(len(query), dtype=bool)  # of its key
    first[1:] = (query[1:] != query[:-1]) | (keys[1:] != keys[:-1])
    tie = np.cumsum(first) - 1
    better = before[first][tie]
    equal = np.bincount(tie, excluded)[tie].astype(np.int64)
    return np.stack([better - before[np.searchsorted(query, query)], equal, before - better])
