"""_C.Reader and _C.read_rows: files as one sequence of rows, what is wrong with a file, threads that end."""

import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_cases import thread_count
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful_fast import _C

ROW = 6


def files_of(
    folder: Path, counts: list[int], lead: int, gap: int
) -> tuple[list[tuple[bytes, int, int, int]], np.ndarray]:
    """Files of these numbers of rows, `lead` bytes before and `gap` bytes between them, and all rows."""
    rng = np.random.default_rng(sum(counts))
    files, rows = [], []
    for number, count in enumerate(counts):
        path = folder / f"{number}.bin"
        content = rng.integers(0, 256, (count, ROW + gap), np.uint8)
        path.write_bytes(rng.bytes(lead) + content.tobytes())
        files.append((os.fsencode(path), lead, ROW + gap, count))
        rows.append(content[:, :ROW])
    return files, np.concatenate(rows)


def read_all(files: Any, block_rows: int, start: int, stop: int, dim_word: int | None = None) -> np.ndarray:
    buffers = np.empty((2, block_rows * ROW), np.uint8)
    reader = _C.Reader(files, ROW, (buffers[0], buffers[1]), start, stop, dim_word)
    out, at = [], start
    while (block := reader.next()) is not None:
        buffer, first, rows = block
        assert first == at
        assert rows == min(block_rows, stop - first)
        out.append(buffers[buffer, : rows * ROW].reshape(rows, ROW).copy())
        at += rows
    assert at == stop
    return np.concatenate(out) if out else np.empty((0, ROW), np.uint8)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    lead=st.integers(0, 5),
    gap=st.integers(0, 3),
    block_rows=st.integers(1, 12),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_blocks_and_rows_are_those_of_the_files(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    lead: int,
    gap: int,
    block_rows: int,
    ends: tuple[float, float],
) -> None:
    files, rows = files_of(tmp_path_factory.getbasetemp(), counts, lead, gap)
    start, stop = sorted(round(end * len(rows)) for end in ends)
    assert np.array_equal(read_all(files, block_rows, start, stop), rows[start:stop])
    wanted = np.flatnonzero(np.arange(len(rows)) % 3 != 1)
    out = np.empty((len(wanted), ROW), np.uint8)
    _C.read_rows(files, ROW, wanted, out)
    assert np.array_equal(out, rows[wanted])


@pytest.mark.parametrize("gap", [0, 2])
def test_rows_beyond_one_pread_are_whole(tmp_path: Path, gap: int) -> None:
    files, rows = files_of(tmp_path, [1_500_000, 3], 1, gap)  # 9 MB and 12 MB: a pread is 8 MiB
    assert np.array_equal(read_all(files, 1_400_001, 5, len(rows)), rows[5:])


def test_dim_words_are_left_out_and_checked(tmp_path: Path) -> None:
    table = np.zeros(5, [("dim", "<i4"), ("row", "u1", ROW)])
    table["dim"], table["row"] = 6, np.arange(30).reshape(5, 6)
    table.tofile(tmp_path / "a")
    files = [(os.fsencode(tmp_path / "a"), 0, 10, 5)]
    assert np.array_equal(read_all(files, 2, 0, 5, 6), table["row"])
    table["dim"][3] = 7
    table.tofile(tmp_path / "a")
    with pytest.raises(ValueError, match=r"/a: row 3: expected dim 6 as in row 0, got 7"):
        read_all(files, 2, 0, 5, 6)
    with pytest.raises(ValueError, match="row 3"):
        _C.read_rows(files, ROW, np.arange(5), np.empty(30, np.uint8), 6)


def test_a_file_shorter_than_its_rows_is_named_with_both_sizes(tmp_path: Path) -> None:
    files, rows = files_of(tmp_path, [4, 10], 3, 0)
    os.truncate(files[1][0], 40)
    message = r"/1\.bin: truncated since it was opened: expected at least 63 bytes, got 40 \(reading \d+ bytes at 40\)"
    buffers = np.empty((2, 5 * ROW), np.uint8)
    reader = _C.Reader(files, ROW, (buffers[0], buffers[1]), 0, 14)
    assert reader.next() == (0, 0, 5)
    assert np.array_equal(buffers[0].reshape(5, ROW), rows[:5])
    assert reader.next() == (1, 5, 5)
    with pytest.raises(OSError, match=message):
        reader.next()
    with pytest.raises(OSError, match=message):  # and again
        reader.next()
    with pytest.raises(OSError, match="truncated"):
        _C.read_rows(files, ROW, np.array([13]), np.empty(ROW, np.uint8))


def test_a_file_that_is_gone_is_named_whatever_its_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n"
    with pytest.raises(OSError, match="cannot open: No such file") as error:
        read_all([(path, 0, ROW, 1)], 1, 0, 1)
    assert os.fsencode(str(error.value)).startswith(path)
    with pytest.raises(OSError, match=r"cannot read .* Is a directory"):
        read_all([(os.fsencode(tmp_path), 0, ROW, 1)], 1, 0, 1)


@pytest.mark.parametrize(
    ("offset", "stride", "rows"),
    [(-1, ROW, 1), (0, ROW - 1, 1), (0, ROW, -1), (0, 1 << 62, 2), ((1 << 63) - 1, ROW, 1), (0, -ROW, 1)],
)
def test_rows_outside_all_files_are_refused(offset: int, stride: int, rows: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_all([(b"a", offset, stride, rows)], 1, 0, 0)


def test_ranges_and_buffers_are_checked(tmp_path: Path) -> None:
    files, _ = files_of(tmp_path, [4], 0, 0)
    for start, stop in [(-1, 2), (3, 2), (0, 5)]:
        with pytest.raises(ValueError, match="expected 0 <= start <= stop <= 4"):
            read_all(files, 1, start, stop)
    with pytest.raises(ValueError, match="row 4 is none"):
        _C.read_rows(files, ROW, np.array([4]), np.empty(ROW, np.uint8))
    with pytest.raises(ValueError, match="room for all rows"):
        _C.read_rows(files, ROW, np.array([0, 1]), np.empty(ROW, np.uint8))
    with pytest.raises(ValueError, match="at least one row"):
        _C.Reader(files, ROW, (np.empty(ROW, np.uint8), np.empty(ROW - 1, np.uint8)), 0, 4)
    constant = np.empty(ROW, np.uint8)
    constant.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        _C.Reader(files, ROW, (constant, constant), 0, 4)


def test_a_reader_that_is_closed_or_dropped_ends_its_thread(tmp_path: Path) -> None:
    files, _ = files_of(tmp_path, [100], 0, 0)
    before = thread_count()
    buffers = np.empty((2, ROW), np.uint8)
    for _ in range(50):
        reader = _C.Reader(files, ROW, (buffers[0], buffers[1]), 0, 100)
        reader.next()
        reader.close()
        reader.close()
        assert reader.next() is None
        reader = _C.Reader(files, ROW, (buffers[0], buffers[1]), 0, 100)
        del reader
    gc.collect()
    assert thread_count(at_most=before) <= before


def test_other_threads_run_while_a_reader_waits(tmp_path: Path) -> None:
    """A named pipe that nobody writes to yet holds the reader up; this thread has to get at the lock to write."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            read_all([(os.fsencode(pipe), 0, ROW, 1)], 1, 0, 1)
        except OSError as error:  # a pipe has no offsets
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    pipe.write_bytes(b"123456")
    thread.join(10)
    assert "Illegal seek" in str(errors[0])
