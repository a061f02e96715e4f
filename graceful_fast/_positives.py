"""Which gallery rows are a query's positives, and which are excluded: found through labels and ids, never as (Q, N)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_PAIRS = 1 << 20  # positives and excluded rows of a block of queries: 100 MB of rows, scores, counts and edges


class Relevance(NamedTuple):
    """Of queries from `first` on: rows `positive_rows[positive_start[i] : positive_start[i + 1]]`, ascending; the same
    of the excluded ones."""

    first: int
    positive_start: np.ndarray  # [Q + 1]
    positive_rows: np.ndarray
    excluded_start: np.ndarray  # [Q + 1]
    excluded_rows: np.ndarray


def relevance(
    labels: tuple[np.ndarray, np.ndarray],
    ids: tuple[np.ndarray, np.ndarray] | None,
    groups: tuple[np.ndarray, np.ndarray] | None,
) -> Iterator[Relevance]:
    """Positives and exclusions of blocks of queries, in order. Each argument: of the queries, of the gallery.

    Positive: the query's label. Excluded: the query's id, or its label and its group.
    """
    same_label = Matches(*labels)
    same_id = None if ids is None else Matches(*ids)
    count = same_label.counts + (0 if same_id is None else same_id.counts)
    for first, last in _blocks(count):
        query, row = same_label.pairs(first, last)
        junk = np.zeros(len(row), dtype=bool)
        for sides in (ids, groups):
            if sides is not None:
                junk |= sides[0][query] == sides[1][row]
        excluded_query, excluded_row = query[junk], row[junk]
        if same_id is not None:
            other_query, other_row = same_id.pairs(first, last)
            other = labels[0][other_query] != labels[1][other_row]
            excluded_query = np.concatenate([excluded_query, other_query[other]])
            excluded_row = np.concatenate([excluded_row, other_row[other]])
        order = np.argsort(excluded_query, kind="stable")
        yield Relevance(
            first,
            _starts(query[~junk], first, last),
            row[~junk],
            _starts(excluded_query, first, last),
            excluded_row[order],
        )


class Matches:
    """The gallery rows whose value is that of a query."""

    def __init__(self, of_queries: np.ndarray, of_gallery: np.ndarray) -> None:
        self.order = np.argsort(of_gallery, kind="stable")
        sorted_values = of_gallery[self.order]
        self.begin = np.searchsorted(sorted_values, of_queries, "left")
        self.counts = np.searchsorted(sorted_values, of_queries, "right") - self.begin

    def pairs(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """(query, gallery row), by query, then by row."""
        counts = self.counts[first:last]
        query = np.repeat(np.arange(first, last), counts)
        place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        return query, self.order[self.begin[query] + place]


def _starts(query: np.ndarray, first: int, last: int) -> np.ndarray:
    """Where each query's entries start once they are sorted by query."""
    return np.concatenate([[0], np.cumsum(np.bincount(query - first, minlength=last - first))]).astype(np.int64)


def _blocks(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of queries of about `_PAIRS` counts together; a query stays whole."""
    before = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(counts):
        last = max(first + 1, int(np.searchsorted(before, before[first] + _PAIRS, "right")) - 1)
        yield first, last
        first = last
