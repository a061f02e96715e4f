"""Which gallery rows are a query's positives, and which are excluded: found through labels and ids, never as (Q, N)."""

from typing import Any, NamedTuple

import numpy as np

Sides = tuple[Any, Any]  # labels, ids or groups as int64 tensors, of the queries and of the gallery, or None of both


class Relevance(NamedTuple):
    """Queries, and rows that are positives of them or excluded."""

    query: np.ndarray  # from 0 on
    row: np.ndarray
    excluded: np.ndarray  # bool; else a positive


class Relevant:
    """Positives (rows of the query's label) and excluded rows (of its id, or of its label and its group)."""

    def __init__(self, labels: Sides, ids: Sides, groups: Sides) -> None:
        self._labels, self._ids, self._groups = (_as_numpy(sides) for sides in (labels, ids, groups))
        self._same_label = Matches(*self._labels)
        self._same_id = Matches(*self._ids) if self._ids else None
        self.counts = self._same_label.counts + (0 if self._same_id is None else self._same_id.counts)
        """Of each query, how many there are at most."""

    def ranges(self, most: int) -> list[tuple[int, int]]:
        """Queries first .. last - 1 that have up to `most` rows together; a query stays whole."""
        before = np.concatenate([[0], np.cumsum(self.counts)])
        found, first = [], 0
        while first < len(self.counts):
            last = max(first + 1, int(np.searchsorted(before, before[first] + most, "right")) - 1)
            found.append((first, last))
            first = last
        return found

    def of(self, first: int, last: int) -> Relevance:
        """Those of the queries first .. last - 1, in no order."""
        query, row = self._same_label.pairs(first, last)
        excluded = np.zeros(len(row), dtype=bool)
        for sides in (self._ids, self._groups):
            if sides is not None:
                excluded |= sides[0][query] == sides[1][row]
        if self._same_id is not None:
            other_query, other_row = self._same_id.pairs(first, last)
            other = self._labels[0][other_query] != self._labels[1][other_row]
            query, row = np.concatenate([query, other_query[other]]), np.concatenate([row, other_row[other]])
            excluded = np.concatenate([excluded, np.ones(len(row) - len(excluded), dtype=bool)])
        return Relevance(query - first, row, excluded)


def _as_numpy(sides: Sides) -> Any:
    return None if sides[0] is None else tuple(side.numpy() for side in sides)


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
