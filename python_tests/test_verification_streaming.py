"""Verification metrics of galleries of files: those of the same rows in memory, within the limit of memory."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_streaming import (
    METRICS,
    SOURCES,
    Open,
    open_array,
    open_fbin,
    open_mapped,
    open_parquet,
    open_prepared,
    open_shards,
    random_rows,
)
from test_verification import WAYS, set_way

import graceful_fast as gf
from graceful_fast import _pairs

ROWS, OTHERS = 1000, 90
LABELS = np.random.default_rng(3).integers(0, 25, ROWS)
IDS = np.random.default_rng(4).integers(0, 60, ROWS)
FARS = (0.3, 0.01)


def tied_rows() -> torch.Tensor:
    """Rows that come back, in other blocks."""
    rows = random_rows()
    rows[500:800] = rows[:300]
    return rows


A = tied_rows()[np.arange(OTHERS) * 11] + 1  # more than one block
A_SIDE = {"a_labels": LABELS[:OTHERS], "a_ids": IDS[:OTHERS]}
B_SIDE = {"b_labels": LABELS, "b_ids": IDS}
BOTH = A_SIDE | B_SIDE


def between(a: Any, b: Any, **options: Any) -> gf.VerificationMetrics:
    return gf.verification_metrics(a, b, **BOTH, far=FARS, **options)


def within(rows: Any, again: Any = None, **options: Any) -> gf.VerificationMetrics:
    side = {"a_labels": LABELS, "b_labels": None, "far": FARS} | options
    return gf.verification_metrics(rows, again, **side)


def assert_same(found: gf.VerificationMetrics, expected: gf.VerificationMetrics) -> None:
    assert found == expected
    np.testing.assert_array_equal(found.det, expected.det)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__.removeprefix("open_"))
def test_every_source_and_block_gives_the_metrics_of_the_rows_in_memory(
    source: Open, metric: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = tied_rows()
    expected, expected_within = between(A, rows, metric=metric), within(rows, metric=metric)
    gallery = source(tmp_path, rows)
    for size in (130, 340, ROWS):
        block_rows(size)
        assert_same(between(A, gallery, metric=metric, progress=lambda *_: None), expected)
        assert_same(within(gallery, metric=metric), expected_within)


@pytest.mark.parametrize(
    ("source", "name"),
    [*((open_shards, name) for name in WAYS if name != "all"), (open_parquet, "brackets"), (open_mapped, "brackets")],
)
def test_every_way_to_a_threshold_reads_blocks(
    source: Open, name: str, block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_way(name, monkeypatch)
    rows = tied_rows()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    a, b = source(tmp_path / "a", A), source(tmp_path / "b", rows)
    expected, expected_within = between(A, rows), within(rows, a_ids=IDS)
    assert_same(between(A, b), expected)
    block_rows(130)
    for found in (between(a, b), between(A, b), between(a, rows), between(A, rows, progress=lambda *_: None)):
        assert_same(found, expected)
    assert_same(within(b, a_ids=IDS), expected_within)


def test_pairs_beyond_what_is_kept_of_all_blocks_cost_more_readings(
    block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_way("brackets", monkeypatch)
    rows = random_rows()
    expected = within(rows)
    gallery = open_shards(tmp_path, rows)
    block_rows(300)
    for step in range(16):  # 100 to 15,500: some between what the blocks have, the last of which has the least
        monkeypatch.setattr(_pairs, "_KEPT", int(100 * 1.4**step))
        assert_same(within(gallery), expected)


def test_one_gallery_on_both_sides_pairs_every_two_rows_once(block_rows: Callable[[int], None], tmp_path: Path) -> None:
    rows = tied_rows()
    gallery, again = open_shards(tmp_path, rows), gf.Gallery.open(tmp_path)
    (tmp_path / "other").mkdir()
    other = open_shards(tmp_path / "other", rows)
    block_rows(130)
    expected = within(rows)
    assert expected.genuine + expected.impostor == ROWS * (ROWS - 1) // 2
    for both in ((gallery, gallery), (gallery, again), (gallery, None)):
        assert_same(within(*both, b_labels=LABELS if both[1] else None), expected)
    assert within(gallery, again, b_labels=LABELS[::-1].copy()).genuine != expected.genuine
    all_pairs = within(gallery, other, b_labels=LABELS)  # other files are another set
    assert all_pairs.genuine + all_pairs.impostor == ROWS**2


def test_each_block_of_a_reads_what_is_left_of_one_set(block_rows: Callable[[int], None], tmp_path: Path) -> None:
    block_rows(400)
    told: list[tuple[int, int | None]] = []
    within(open_shards(tmp_path, random_rows()), progress=lambda *state: told.append(state))
    assert told == [(done, 1998) for done in (0, 334, 668, 1000, 1334, 1666, 1998)]
    told.clear()
    between(A, open_array(tmp_path, random_rows()), progress=lambda *state: told.append(state))
    assert told == [(done, ROWS) for done in (0, 334, 668, ROWS)]


@pytest.mark.parametrize(("source", "name"), [(open_parquet, "all"), (open_fbin, "brackets")])
def test_bad_data_in_a_late_block_is_named_by_its_row(
    source: Open, name: str, block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_way(name, monkeypatch)
    block_rows(100)
    rows = random_rows()
    rows[937, 3] = np.nan
    gallery = source(tmp_path, rows)
    with pytest.raises(ValueError, match=r"^b: row 937: expected finite numbers.*\(a \(90, 24\), b \(1000, 24\)\)"):
        between(A, gallery)
    with pytest.raises(ValueError, match=r"^a: row 937: expected finite numbers"):
        within(gallery)
    with pytest.raises(ValueError, match=r"^a: row 937: expected finite numbers"):
        gf.verification_metrics(gallery, A, LABELS, LABELS[:OTHERS])


def test_a_file_that_changes_meanwhile_is_refused(block_rows: Callable[[int], None], tmp_path: Path) -> None:
    block_rows(400)
    gallery = open_shards(tmp_path, random_rows())

    def touch(done: int, total: int | None) -> None:
        if done == total:
            (tmp_path / "part-2.npy").touch()

    with pytest.raises(OSError, match=r"part-2.npy: changed since it was opened"):
        between(A, gallery, progress=touch)


def test_a_limit_that_is_too_small_says_what_is_needed(
    block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = tied_rows()
    (tmp_path / "a").mkdir()
    gallery, a = open_shards(tmp_path, rows), open_prepared(tmp_path / "a", A)
    for name in ("all", "brackets"):
        set_way(name, monkeypatch)
        with pytest.raises(ValueError, match=r"memory_limit: expected at least \d+ bytes for pairs of 90 and") as said:
            between(a, gallery, memory_limit=1000)
        needed = int(re.findall(r"at least (\d+)", str(said.value))[0])
        assert_same(between(a, gallery, memory_limit=needed), between(A, rows))
    with pytest.raises(ValueError, match="memory_limit: expected a number of bytes"):
        between(A, gallery, memory_limit=0)


LIMIT = 128 << 20
PEAK = """
import sys, numpy as np, graceful_fast as gf
path, limit, one_set = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "one set"
gallery = gf.Gallery.open(path, **({"dtype": "float32", "dim": 2048, "offset": 128} if one_set else {}))
labels = np.arange(len(gallery)) % 3000
few = np.random.default_rng(0).standard_normal((300, 128), dtype=np.float32)

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

gf.verification_metrics(few[:40], few[:50], labels[:40], labels[:50], far=0.1)  # libraries are loaded
before = kilobytes("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is that of now
if one_set:
    gf.verification_metrics(gallery, None, labels, None, far=(0.01, 0.0001), memory_limit=limit)
else:
    gf.verification_metrics(few, gallery, labels[:300], labels, far=(0.01, 0.0001), memory_limit=limit)
print(kilobytes("VmHWM") - before << 10)
"""


@pytest.mark.parametrize("sets", ["two sets", pytest.param("one set", marks=pytest.mark.slow)])
def test_memory_stays_under_the_limit(sets: str, large: Path) -> None:
    """Rows of 1.3 times the limit; what threads and libraries need is there before."""
    raw = large / "g.raw"  # the same bytes as fewer rows: every two of them are a pair
    if not raw.exists():
        raw.hardlink_to(large / "g.npy")
    arguments = [str(raw if sets == "one set" else large / "g.npy"), str(LIMIT), sets]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= LIMIT
