"""Metrics over a gallery of files: those of the same rows in memory, within the limit of memory."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_streaming import (
    METRICS,
    SOURCES,
    Open,
    open_parquet,
    open_prepared,
    open_shards,
    position,
    random_rows,
    stop_at,
)

import graceful_fast as gf
from graceful_fast import _checkpoint, _rank_counts

ROWS, QUERIES = 1000, 40
QUERY_ROWS = random_rows(QUERIES, seed=1)
RNG = np.random.default_rng(3)
LABELS = {"query_labels": RNG.integers(0, 30, QUERIES), "gallery_labels": RNG.integers(0, 25, ROWS)}
SIDES = {
    "query_ids": np.arange(QUERIES),
    "gallery_ids": RNG.integers(0, 2 * QUERIES, ROWS),
    "query_groups": RNG.integers(0, 3, QUERIES),
    "gallery_groups": RNG.integers(0, 3, ROWS),
}


def tied_rows() -> torch.Tensor:
    """Rows that come back, in other blocks; some are queries."""
    rows = random_rows()
    rows[500:800] = rows[:300]
    rows[900 : 900 + QUERIES] = QUERY_ROWS
    return rows


def assert_same(found: gf.RetrievalMetrics, expected: gf.RetrievalMetrics) -> None:
    assert found == expected
    assert re.sub(r"\s", "", str(astuple(found.per_query))) == re.sub(r"\s", "", str(astuple(expected.per_query)))
    np.testing.assert_array_equal(found.per_query.map, expected.per_query.map)
    np.testing.assert_array_equal(found.per_query.first_rank, expected.per_query.first_rank)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__.removeprefix("open_"))
def test_every_source_and_block_gives_the_metrics_of_the_rows_in_memory(
    source: Open, metric: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = tied_rows()
    expected = gf.retrieval_metrics(QUERY_ROWS, rows, **LABELS, metric=metric)
    assert expected.map_bounds[0] < expected.map_bounds[1]
    gallery = source(tmp_path, rows)
    for size in (7, 130, ROWS - 1, ROWS):
        block_rows(size)
        told: list[int] = []
        found = gf.retrieval_metrics(
            QUERY_ROWS, gallery, **LABELS, metric=metric, progress=lambda done, _, told=told: told.append(done)
        )
        assert_same(found, expected)
        assert told == [0, *range(size, ROWS, size), ROWS]


@pytest.mark.parametrize("kind", ["ids", "groups", "s"])
@pytest.mark.parametrize("source", [open_shards, open_parquet, open_prepared])
def test_exclusions_are_taken_off_in_whatever_block_they_are(
    source: Open, kind: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    used = {name: values for name, values in SIDES.items() if name.endswith(kind)}
    rows = tied_rows()
    expected = gf.retrieval_metrics(QUERY_ROWS, rows, **LABELS, **used, metric="l2")
    assert expected != gf.retrieval_metrics(QUERY_ROWS, rows, **LABELS, metric="l2")
    block_rows(64)
    assert_same(gf.retrieval_metrics(QUERY_ROWS, source(tmp_path, rows), **LABELS, **used, metric="l2"), expected)


def test_positives_beyond_what_is_held_at_once_are_counted_in_more_readings(
    block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = tied_rows()
    expected = gf.retrieval_metrics(QUERY_ROWS, rows, **LABELS, **SIDES)
    block_rows(400)
    monkeypatch.setattr(_rank_counts, "_PAIRS", 600)
    told: list[tuple[int, int | None]] = []
    found = gf.retrieval_metrics(
        QUERY_ROWS, open_shards(tmp_path, rows), **LABELS, **SIDES, progress=lambda *state: told.append(state)
    )
    assert_same(found, expected)
    readings, rest = divmod(told[-1][0], ROWS)
    assert readings > 1
    assert rest == 0
    assert told == [(done * ROWS + row, told[-1][1]) for done in range(readings) for row in (0, 400, 800)] + [told[-1]]


@pytest.mark.parametrize("source", [open_shards, open_parquet])
def test_bad_data_in_a_late_block_is_named_by_its_row(
    source: Open, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = random_rows()
    block_rows(100)
    for labels in (LABELS["gallery_labels"], np.full(ROWS, 29)):  # a positive of some, or of none
        rows[937, 3] = np.nan
        gallery = source(tmp_path, rows)
        with pytest.raises(ValueError, match="gallery: row 937: expected finite numbers"):
            gf.retrieval_metrics(QUERY_ROWS, gallery, LABELS["query_labels"], labels)
        with pytest.raises(ValueError, match="gallery: row 937: expected finite numbers"):
            gf.identification_metrics(QUERY_ROWS, gallery, LABELS["query_labels"], labels)


@pytest.mark.parametrize("source", [open_shards, open_prepared, open_parquet])
def test_identification_streams_and_goes_on_from_a_checkpoint(
    source: Open, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = tied_rows()
    labels = (LABELS["query_labels"], LABELS["gallery_labels"])
    ids = {"probe_ids": SIDES["query_ids"], "gallery_ids": SIDES["gallery_ids"]}
    options: dict[str, Any] = {"rank": 5, "fpir": 0.3, "metric": "l2"} | ids
    expected = gf.identification_metrics(QUERY_ROWS, rows, *labels, **options)
    gallery = source(tmp_path, rows)
    block_rows(100)

    def stop(done: int, total: int | None) -> None:
        if done == 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gf.identification_metrics(QUERY_ROWS, gallery, *labels, **options, checkpoint=tmp_path / "c", progress=stop)
    told: list[int] = []
    found = gf.identification_metrics(
        QUERY_ROWS, gallery, *labels, **options, checkpoint=tmp_path / "c", progress=lambda done, _: told.append(done)
    )
    assert found == expected
    assert told[0] == 500


@pytest.mark.parametrize("source", [open_shards, open_parquet, open_prepared])
def test_interrupted_counts_go_on_where_they_were(
    source: Open, block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = tied_rows()
    options: dict[str, Any] = LABELS | SIDES | {"metric": "l2"}
    expected = gf.retrieval_metrics(QUERY_ROWS, rows, **options)
    gallery = source(tmp_path, rows)
    block_rows(400)
    monkeypatch.setattr(_rank_counts, "_PAIRS", 600)  # more than one reading
    state = tmp_path / "deep" / "state"
    # What is done of a reading is told before it is evaluated and saved: at 2000 the state is that of 1800.
    for row, saved in ((0, None), (400, 400), (800, 800), (1400, 1400), (2000, 1800)):
        with pytest.raises(KeyboardInterrupt, match=f"at {row}"):
            gf.retrieval_metrics(QUERY_ROWS, gallery, **options, checkpoint=state, progress=stop_at(row))
        if saved is not None:
            assert position(state) == saved
    block_rows(300)
    told: list[tuple[int, int | None]] = []
    for _ in range(2):
        found = gf.retrieval_metrics(
            QUERY_ROWS, gallery, **options, checkpoint=state, progress=lambda *state: told.append(state)
        )
        assert_same(found, expected)
    total = told[-1][1]
    assert total is not None
    assert [done for done, _ in told[:3]] == [1800, 2000, 2300]
    assert [done for done, _ in told[-3:]] == [total] * 3  # the second call has nothing to do


def test_a_checkpoint_keeps_what_was_counted_before_a_bad_row(
    block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = random_rows()
    rows[777, 3] = np.nan
    block_rows(100)
    monkeypatch.setattr(_checkpoint, "_SECONDS", 1e9)
    with pytest.raises(ValueError, match="gallery: row 777: expected finite numbers"):
        gf.retrieval_metrics(QUERY_ROWS, open_shards(tmp_path, rows), **LABELS, checkpoint=tmp_path / "c")
    assert position(tmp_path / "c") == 700


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": 7}, r"k: expected \[7\], got \[1, 5, 10\]"),
        ({"metric": "ip"}, "metric: expected 'ip', got 'cosine'"),
        ({"query_labels": LABELS["query_labels"] + 1}, "labels, ids and groups: expected"),
        (SIDES, "labels, ids and groups: expected"),
    ],
)
def test_a_checkpoint_of_other_counts_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    rows = tied_rows()
    gf.retrieval_metrics(QUERY_ROWS, rows, **LABELS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"belongs to another search: {named}"):
        gf.retrieval_metrics(QUERY_ROWS, rows, **(LABELS | change), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to another search"):
        gf.knn(QUERY_ROWS, rows, 5, checkpoint=tmp_path)


def test_a_limit_that_is_too_small_says_what_is_needed(tmp_path: Path) -> None:
    rows = tied_rows()
    gallery = open_shards(tmp_path, rows)
    message = r"memory_limit: expected at least \d+ bytes for 40 queries of dim 24, up to \d+ positives"
    with pytest.raises(ValueError, match=message) as said:
        gf.retrieval_metrics(QUERY_ROWS, gallery, **LABELS, memory_limit=1000)
    needed = int(re.findall(r"at least (\d+)", str(said.value))[0])
    told: list[int | None] = []
    found = gf.retrieval_metrics(
        QUERY_ROWS, gallery, **LABELS, memory_limit=needed, progress=lambda _, total: told.append(total)
    )
    assert_same(found, gf.retrieval_metrics(QUERY_ROWS, rows, **LABELS))
    assert told[0] is not None
    assert told[0] > ROWS  # in more than one reading
    with pytest.raises(ValueError, match="memory_limit: expected a number of bytes"):
        gf.retrieval_metrics(QUERY_ROWS, gallery, **LABELS, memory_limit=0)


LIMIT = 64 << 20
PEAK = """
import sys, numpy as np, graceful_fast as gf
path, limit, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
queries = np.random.default_rng(0).standard_normal((200, 128), dtype=np.float32)
gallery = gf.Gallery.open(path)
labels = np.arange(200) % classes, np.arange(len(gallery)) % classes

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

gf.retrieval_metrics(queries[:8], queries, *(side[:n] for side, n in zip(labels, (8, 200))))  # libraries are loaded
before = kilobytes("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is that of now
gf.retrieval_metrics(queries, gallery, *labels, memory_limit=limit)
print(kilobytes("VmHWM") - before << 10)
"""


@pytest.mark.parametrize("classes", [3000, 300])  # positives of a query: 110; 1,100, in some readings
def test_memory_stays_under_the_limit(classes: int, large: Path) -> None:
    """Rows of 2.5 times the limit; what threads and libraries need is there before."""
    arguments = [str(large / "g.npy"), str(LIMIT), str(classes)]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= LIMIT
