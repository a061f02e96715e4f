"""knn over a gallery of files: the same bits as in memory, within the limit of memory, from where it was stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gallery_cases import write_bin, write_parquet

import graceful_fast as gf
from graceful_fast import _checkpoint, reference

ROWS, DIM, QUERIES, K = 1000, 24, 12, 9
METRICS = ("cosine", "ip", "l2")
Open = Callable[[Path, torch.Tensor], gf.Gallery]
State = tuple[np.ndarray, np.ndarray]


def random_rows(rows: int = ROWS, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, dim)) * 20).round().add(0.5).float()


QUERY_ROWS = random_rows(QUERIES, seed=1)


def open_shards(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    for number, part in enumerate(rows.split(170)):
        np.save(folder / f"part-{number}.npy", part.numpy())
    return gf.Gallery.open(folder)


def open_fbin(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    write_bin(folder / "g.fbin", rows)
    return gf.Gallery.open(folder / "g.fbin")


def open_float64(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    np.save(folder / "g.npy", rows.double().numpy())
    return gf.Gallery.open(folder / "g.npy")


def open_parquet(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    write_parquet(folder / "g.parquet", rows)
    return gf.Gallery.open(folder / "g.parquet")


def open_prepared(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    open_shards(folder, rows).prepare(folder / "prepared")
    return gf.Gallery.open(folder / "prepared")


def open_prepared_array(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    return gf.Gallery.open(rows).prepare(folder / "prepared")


def open_loaded(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    return open_prepared(folder, rows).load()


def open_mapped(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    np.save(folder / "g.npy", rows.numpy())
    return gf.Gallery.open(np.load(folder / "g.npy", mmap_mode="r"))


def open_array(folder: Path, rows: torch.Tensor) -> gf.Gallery:
    return gf.Gallery.open(rows)


SOURCES: list[Open] = [
    open_shards,
    open_fbin,
    open_float64,
    open_parquet,
    open_prepared,
    open_prepared_array,
    open_loaded,
    open_mapped,
    open_array,
]


def assert_same(found: gf.Neighbors, expected: State) -> None:
    np.testing.assert_array_equal(np.asarray(found.indices), expected[1])
    np.testing.assert_array_equal(np.asarray(found.scores).view(np.int32), expected[0].view(np.int32))


def definition(rows: torch.Tensor, k: int = K, metric: str = "cosine", **labels: Any) -> State:
    expected: State = reference.knn(QUERY_ROWS.numpy(), rows.double().numpy(), k, metric=metric, **labels)
    return expected


# --- the same bits as in memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__.removeprefix("open_"))
def test_every_source_scan_and_block_gives_the_same_bits(
    source: Open, metric: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = random_rows()
    expected = definition(rows, metric=metric)
    gallery = source(tmp_path, rows)
    for size in (7, 64, ROWS - 1, ROWS, ROWS + 1):
        block_rows(size)
        for scan in ("auto", "int8", "float32"):
            told: list[int] = []
            found = gf.knn(
                QUERY_ROWS, gallery, K, metric=metric, scan=scan, progress=lambda done, _, told=told: told.append(done)
            )
            assert_same(found, expected)
            assert told == [0, *range(size, ROWS, size), ROWS]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("suffix", [".i8bin", ".u8bin"])
def test_bytes_are_taken_as_they_are(
    suffix: str, metric: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = (random_rows().abs() if suffix == ".u8bin" else random_rows()).round().add(1)
    rows = rows.to(torch.uint8 if suffix == ".u8bin" else torch.int8)
    write_bin(tmp_path / f"g{suffix}", rows)
    files = gf.Gallery.open(tmp_path / f"g{suffix}")
    block_rows(130)
    for gallery in (files, files.prepare(tmp_path / "prepared"), rows, rows.numpy()):
        for scan in ("auto", "int8", "float32"):
            for checkpoint in (None, tmp_path / f"{scan} {type(gallery)} {len(list(tmp_path.iterdir()))}"):
                found = gf.knn(QUERY_ROWS, gallery, K, metric=metric, scan=scan, checkpoint=checkpoint)
                assert_same(found, definition(rows, metric=metric))


@pytest.mark.parametrize("source", [open_shards, open_prepared, open_parquet])
def test_more_neighbours_than_a_block_has_rows(source: Open, block_rows: Callable[[int], None], tmp_path: Path) -> None:
    rows = random_rows(200)
    block_rows(11)
    gallery = source(tmp_path, rows)
    for k in (11, 12, 150, 200):
        assert_same(gf.knn(QUERY_ROWS, gallery, k, metric="l2"), definition(rows, k, "l2"))


@pytest.mark.parametrize("source", [open_shards, open_prepared, open_loaded])
def test_ids_and_groups_belong_to_their_rows_in_every_block(
    source: Open, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    rows = random_rows()
    block_rows(130)
    gallery = source(tmp_path, rows)
    labels = {
        "query_ids": np.arange(QUERIES, dtype=np.int16),
        "gallery_ids": rng.integers(0, QUERIES + 1, ROWS).astype(np.int32)[::-1],
        "query_groups": rng.integers(0, 3, QUERIES),
        "gallery_groups": rng.integers(0, 3, ROWS),
    }
    for kind in ("ids", "groups", "s"):
        used = {name: values for name, values in labels.items() if name.endswith(kind)}
        assert_same(gf.knn(QUERY_ROWS, gallery, K, **used), definition(rows, **used))


@pytest.mark.parametrize("metric", METRICS)
def test_near_duplicates_are_scanned_again_without_codes(
    metric: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    """All rows within the codes' bound of each other, and more of them in a block than a shortlist holds."""
    rows = random_rows(1) + 1e-5 * random_rows(6000)
    block_rows(2000)
    gallery = open_prepared(tmp_path, rows)
    found = gf.knn(QUERY_ROWS, gallery, K, metric=metric, info=True, checkpoint=tmp_path / "c")
    assert found.info is not None
    assert found.info["blocks_again"] > 0
    assert_same(found, definition(rows, metric=metric))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_limit_that_is_too_small_says_what_is_needed(tmp_path: Path) -> None:
    rows = random_rows()
    gallery = open_shards(tmp_path, rows)
    with pytest.raises(ValueError, match=r"memory_limit: expected at least \d+ bytes for 12 queries of dim 24") as said:
        gf.knn(QUERY_ROWS, gallery, K, memory_limit=1000)
    needed = int(re.findall(r"at least (\d+)", str(said.value))[0])
    with pytest.raises(ValueError, match=f"at least {needed} bytes .* got {needed - 1}"):
        gf.knn(QUERY_ROWS, gallery, K, memory_limit=needed - 1)
    told: list[int] = []
    found = gf.knn(QUERY_ROWS, gallery, K, memory_limit=needed, progress=lambda done, _: told.append(done))
    assert_same(found, definition(rows))
    assert told == [0, 256, 512, 768, 1000]
    for wrong in (0, -1, 1e9, True, "1GiB"):
        with pytest.raises(ValueError, match="memory_limit: expected a number of bytes"):
            gf.knn(QUERY_ROWS, gallery, K, memory_limit=wrong)


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    rows = torch.from_numpy(np.random.default_rng(5).standard_normal((300, 24))).float()
    expected = definition(rows)
    for integer in (np.int64, np.uint8):
        options = {"memory_limit": np.int64(64 << 20), "checkpoint": tmp_path / integer.__name__}
        for _ in range(2):  # the second time from the checkpoint
            assert_same(gf.knn(QUERY_ROWS, rows, integer(K), **options), expected)
    assert gf.knn(QUERY_ROWS, rows, np.uint8(250), memory_limit=64 << 20).indices.shape == (len(QUERY_ROWS), 250)


LIMIT = 16 << 20  # a tenth of the galleries in `large`
PEAK = """
import sys, numpy as np, torch, graceful_fast as gf
path, k, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
queries = np.random.default_rng(0).standard_normal((int(sys.argv[4]), 128), dtype=np.float32)

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

gallery = np.load(path, mmap_mode="r") if sys.argv[5] == "mapped" else gf.Gallery.open(path)
gf.knn(queries[:8], queries, 1)  # libraries are loaded, threads started
before = kilobytes("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is that of now
gf.knn(queries, gallery, k, memory_limit=limit)
print(kilobytes("VmHWM") - before << 10)
"""


def growth(path: Path, *, k: int = 10, limit: int = LIMIT, queries: int = 20, mapped: bool = False) -> int:
    """By how many bytes the peak resident set of a search is above what the process had before."""
    arguments = [str(path), str(k), str(limit), str(queries), "mapped" if mapped else "files"]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def prepared(path: Path) -> Path:
    home = path.with_name(f"prepared {path.name}")
    if not home.exists():
        gf.Gallery.open(path).prepare(home)
    return home


def as_parquet(path: Path) -> Path:
    """In one row group: pyarrow reads whole ones unless it is told otherwise."""
    target = path.with_suffix(".parquet")
    if not target.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(np.load(path).reshape(-1))
        table = pa.table({"rows": pa.FixedSizeListArray.from_arrays(flat, 128)})
        pq.write_table(table, target, row_group_size=1 << 20, use_dictionary=False, compression="none")
    return target


@pytest.mark.parametrize(
    ("source", "options"),
    [
        pytest.param(lambda folder: folder / "g.npy", {}, id="npy"),
        pytest.param(lambda folder: folder / "g.npy", {"mapped": True}, id="mapped", marks=pytest.mark.slow),
        pytest.param(lambda folder: folder / "g.i8bin", {}, id="i8bin"),
        pytest.param(lambda folder: prepared(folder / "g.npy"), {}, id="prepared"),
        pytest.param(lambda folder: folder / "bytes.npy", {"mapped": True}, id="mapped-bytes", marks=pytest.mark.slow),
        pytest.param(
            lambda folder: as_parquet(folder / "g.npy"), {"library": 128 << 20}, id="parquet", marks=pytest.mark.slow
        ),
        pytest.param(lambda folder: prepared(folder / "g.i8bin"), {}, id="prepared-i8bin", marks=pytest.mark.slow),
        pytest.param(
            lambda folder: folder / "g.npy", {"queries": 2000, "limit": 3 * LIMIT}, id="queries", marks=pytest.mark.slow
        ),
        pytest.param(lambda folder: folder / "g.npy", {"k": 5000, "limit": 3 * LIMIT}, id="k", marks=pytest.mark.slow),
        pytest.param(
            lambda folder: prepared(folder / "g.npy"),
            {"queries": 2000, "limit": 3 * LIMIT},
            id="prepared-queries",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda folder: prepared(folder / "g.npy"),
            {"k": 5000, "limit": 3 * LIMIT},
            id="prepared-k",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_memory_stays_under_the_limit(source: Callable[[Path], Path], options: dict[str, Any], large: Path) -> None:
    """A gallery of ten times the least limit; what threads and libraries need is there before."""
    options = {"limit": LIMIT} | options
    library = options.pop("library", 0)  # what it keeps for itself
    assert growth(source(large), **options) <= options["limit"] + library


# --- checkpoints ------------------------------------------------------------------------------------------------------


def position(directory: Path) -> int:
    head = json.loads((directory / "state").read_bytes().split(b"\n")[1])
    return int(head["position"])


def stop_at(row: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[int, int | None], None]:
    def tell(done: int, total: int | None) -> None:
        if done >= row:
            raise error(f"at {done}")

    return tell


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__.removeprefix("open_"))
def test_an_interrupted_search_goes_on_where_it_was(
    source: Open, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = random_rows()
    gallery = source(tmp_path, rows)
    block_rows(100)
    state = tmp_path / "deep" / "state"
    for row in (0, 300, 700):
        with pytest.raises(KeyboardInterrupt, match=f"at {row}"):
            gf.knn(QUERY_ROWS, gallery, K, checkpoint=state, progress=stop_at(row))
    assert position(state) == 700
    block_rows(130)  # another limit, another scan: the same search
    told: list[int] = []
    found = gf.knn(QUERY_ROWS, gallery, K, scan="float32", checkpoint=state, progress=lambda done, _: told.append(done))
    assert_same(found, definition(rows))
    assert told == [700, 830, 960, 1000]
    again = gf.knn(QUERY_ROWS, gallery, K, checkpoint=state, progress=lambda done, _: told.append(done))
    assert_same(again, definition(rows))
    assert told[4:] == [1000]


def test_what_stops_the_search_between_two_saves_is_not_lost(
    block_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gallery = open_shards(tmp_path, random_rows())
    block_rows(100)
    monkeypatch.setattr(_checkpoint, "_SECONDS", 1e9)
    with pytest.raises(OSError, match="at 400"):
        gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c", progress=stop_at(400, OSError))
    assert position(tmp_path / "c") == 400


def test_a_state_that_takes_long_to_save_is_saved_less_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [0.0]
    monkeypatch.setattr(_checkpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(_checkpoint.os, "fsync", lambda file: clock.__setitem__(0, clock[0] + 1))  # a slow disk
    with _checkpoint.Checkpoint(tmp_path, {}) as saved:
        due = []
        for _ in range(30):
            clock[0] += 1
            due.append(saved.due)
            if saved.due:
                saved.save(0, [torch.zeros(1)])
    assert due.index(True) == 1
    assert due[2:].index(True) == 19


@pytest.mark.parametrize("source", [open_shards, open_parquet, open_array])
@pytest.mark.parametrize("scan", ["float32", "int8"])
def test_nan_in_a_late_block_names_the_row_and_keeps_what_is_done(
    source: Open, scan: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = random_rows()
    rows[777, 3] = torch.nan
    gallery = source(tmp_path, rows)
    block_rows(100)
    with pytest.raises(ValueError, match=r"gallery: row 777: expected finite numbers, got NaN .* \(1000, 24\)"):
        gf.knn(QUERY_ROWS, gallery, K, scan=scan, checkpoint=tmp_path / "c")
    assert position(tmp_path / "c") == 700


def test_a_zero_row_of_a_prepared_gallery_is_named(block_rows: Callable[[int], None], tmp_path: Path) -> None:
    rows = random_rows()
    rows[777] = 0
    gallery = open_prepared(tmp_path, rows)
    block_rows(100)
    with pytest.raises(ValueError, match=r"gallery: row 777: cosine of a zero vector is undefined"):
        gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c")
    assert position(tmp_path / "c") == 700
    assert_same(gf.knn(QUERY_ROWS, gallery, K, metric="ip"), definition(rows, metric="ip"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": K + 1}, r"k: expected 10, got 9"),
        ({"metric": "ip"}, r"metric: expected 'ip', got 'cosine'"),
        ({"queries": QUERY_ROWS + 1}, r"queries: expected '\w{32}', got '\w{32}'"),
        ({"queries": QUERY_ROWS[1:]}, r"queries: expected"),
        ({"gallery": random_rows() + 1}, r"gallery: expected"),
        ({"query_ids": np.arange(QUERIES), "gallery_ids": np.arange(ROWS)}, r"labels, ids and groups: expected"),
    ],
)
def test_the_state_of_another_search_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    search = {"queries": QUERY_ROWS, "gallery": random_rows(), "k": K, "checkpoint": tmp_path / "c"}
    gf.knn(**search)
    with pytest.raises(ValueError, match=rf"checkpoint: .*/c/state: belongs to another search: {named}"):
        gf.knn(**search | change)


def test_a_damaged_state_is_refused_whatever_the_damage(tmp_path: Path) -> None:
    rows = random_rows()
    gf.knn(QUERY_ROWS, rows, K, checkpoint=tmp_path / "c")
    path = tmp_path / "c" / "state"
    content = path.read_bytes()
    body = 16 * QUERIES * K
    rng = np.random.default_rng(0)
    damaged = [content[:size] for size in (0, 10, 27, 40, len(content) - body - 1)]
    for place in rng.integers(0, len(content), 200):
        damaged.append(content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :])
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"checkpoint: .*/c/state: (damaged: )?expected"):
            gf.knn(QUERY_ROWS, rows, K, checkpoint=tmp_path / "c")
    for size in (len(content) - body, len(content) - 1, len(content) + 1):
        path.write_bytes((content + b"x")[:size])
        message = f"damaged: expected {body} bytes of state, got {size - len(content) + body}"
        with pytest.raises(ValueError, match=message):
            gf.knn(QUERY_ROWS, rows, K, checkpoint=tmp_path / "c")


def test_what_a_killed_run_was_writing_is_cleared(tmp_path: Path) -> None:
    rows = random_rows()
    left = tmp_path / "c" / "state.123.partial"
    left.parent.mkdir()
    left.write_bytes(b"graceful")
    assert_same(gf.knn(QUERY_ROWS, rows, K, checkpoint=tmp_path / "c"), definition(rows))
    assert [path.name for path in left.parent.iterdir()] == ["state"]


def test_two_searches_never_share_a_checkpoint(block_rows: Callable[[int], None], tmp_path: Path) -> None:
    rows = random_rows()
    block_rows(400)
    refused: list[int] = []

    def search_again(done: int, total: int | None) -> None:
        with pytest.raises(OSError, match=r"checkpoint: .*/c: cannot use the directory: in use by another search"):
            gf.knn(QUERY_ROWS, rows, 1, checkpoint=tmp_path / "c")
        refused.append(done)

    found = gf.knn(QUERY_ROWS, rows, K, checkpoint=tmp_path / "c", progress=search_again)
    assert_same(found, definition(rows))
    assert refused == [0, 400, 800, 1000]
    assert_same(gf.knn(QUERY_ROWS, rows, K, checkpoint=tmp_path / "c"), definition(rows))


def test_a_checkpoint_that_cannot_be_written_is_named(block_rows: Callable[[int], None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"checkpoint: .*/file: cannot make the directory: File exists"):
        gf.knn(QUERY_ROWS, random_rows(), K, checkpoint=tmp_path / "file")
    (tmp_path / "c" / "state").mkdir(parents=True)
    with pytest.raises(OSError, match=r"checkpoint: .*/c/state: Is a directory"):
        gf.knn(QUERY_ROWS, random_rows(), K, checkpoint=tmp_path / "c")


# --- files that change ------------------------------------------------------------------------------------------------


def test_a_file_changed_between_two_runs_is_named_with_both_sizes(
    block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    gallery = open_shards(tmp_path, random_rows())
    block_rows(100)
    with pytest.raises(KeyboardInterrupt):
        gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c", progress=stop_at(300))
    path = tmp_path / "part-2.npy"
    size = path.stat().st_size
    np.save(path, random_rows(171).numpy())
    with pytest.raises(OSError, match=rf"part-2.npy: changed since it was opened: expected {size} bytes"):
        gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c")
    changed = rf"another search: file .*part-2.npy: expected '{size + 4 * DIM} bytes of .*', got '{size} bytes of"
    with pytest.raises(ValueError, match=changed):
        gf.knn(QUERY_ROWS, gf.Gallery.open(tmp_path), K, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("scan", ["int8", "float32"])
def test_a_file_truncated_during_a_search_is_named_with_both_sizes(
    codes: bool, scan: str, block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    gallery = open_prepared(tmp_path, random_rows())
    path = tmp_path / "prepared" / "codes.i8" if codes else tmp_path / "part-5.npy"
    size = path.stat().st_size
    block_rows(50)

    told: list[int] = []

    def truncate(done: int, total: int | None) -> None:
        told.append(done)
        if done == 300:
            os.truncate(path, 200)

    for checkpoint in (None, tmp_path / "c"):
        with pytest.raises(OSError, match=rf"{path.name}: .*: expected (at least )?{size} bytes.* got 200 "):
            gf.knn(QUERY_ROWS, gallery, K, scan=scan, checkpoint=checkpoint, progress=truncate)
    assert told.count(0) == 1  # refused at once the second time


def test_a_file_overwritten_during_a_search_gives_no_answer_and_no_state(
    block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    np.save(tmp_path / "g.npy", random_rows().numpy())
    block_rows(100)

    def overwrite(done: int, total: int | None) -> None:
        if done == 300:
            np.save(tmp_path / "g.npy", random_rows(seed=5).numpy())

    for checkpoint in (tmp_path / "c", None):
        gallery = gf.Gallery.open(tmp_path / "g.npy")
        with pytest.raises(OSError, match=r"g.npy: changed since it was opened: expected \d+ bytes of mtime_ns"):
            gf.knn(QUERY_ROWS, gallery, K, checkpoint=checkpoint, progress=overwrite)
        assert position(tmp_path / "c") == 300


# --- kills ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, time
import numpy as np, torch, graceful_fast as gf
from graceful_fast import _checkpoint, _search_blocks

folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
_search_blocks._FEWEST_ROWS, _search_blocks._BLOCK_BYTES, _checkpoint._SECONDS = 50, 1, 0.0
_checkpoint._PAUSES = 0
random.seed(seed)

def search():
    def tell(done, total):
        with open(f"{folder}/told", "a") as file:
            file.write(f"{done} ")
        time.sleep(0.001 * kills)  # all kills happen before it is done

    gallery = gf.Gallery.open(f"{folder}/prepared" if seed % 2 else f"{folder}/g.npy")
    found = gf.knn(np.load(f"{folder}/q.npy"), gallery, 9, checkpoint=f"{folder}/c", progress=tell)
    np.savez(f"{folder}/found.npz", scores=found.scores, indices=found.indices)

killed = 0
while True:
    child = os.fork()  # before any op has started threads
    if child == 0:
        search()
        os._exit(0)
    if killed < kills:
        time.sleep(random.uniform(0.01, 0.12))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    killed += 1
print(killed, os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(3, 0), pytest.param(20, 2, marks=pytest.mark.slow), pytest.param(20, 1, marks=pytest.mark.slow)],
)
def test_a_search_killed_again_and_again_gives_the_same_bytes(kills: int, seed: int, tmp_path: Path) -> None:
    rows = random_rows(1000 * kills)
    np.save(tmp_path / "g.npy", rows.numpy())
    np.save(tmp_path / "q.npy", QUERY_ROWS.numpy())
    if seed % 2:
        gf.Gallery.open(tmp_path / "g.npy").prepare(tmp_path / "prepared")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), str(kills), str(seed)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{kills} 0\n", done.stderr
    told = np.array((tmp_path / "told").read_text().split(), int)
    assert (told == 0).sum() <= kills + 1
    assert len(told) < 2 * len(rows) // 50  # goes on, not from the start
    found = np.load(tmp_path / "found.npz")
    assert_same(gf.Neighbors(found["scores"], found["indices"]), tuple(gf.knn(QUERY_ROWS.numpy(), rows.numpy(), K)))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["state"]


def test_an_interrupt_from_the_keyboard_ends_the_search_and_its_threads(
    block_rows: Callable[[int], None], tmp_path: Path
) -> None:
    rows = random_rows()
    gallery = open_shards(tmp_path, rows)
    block_rows(100)
    gf.knn(QUERY_ROWS, gallery, K)
    before = len(os.listdir("/proc/self/task"))

    def interrupt(done: int, total: int | None) -> None:
        if done == 500:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c", progress=interrupt)
    assert len(os.listdir("/proc/self/task")) == before
    assert_same(gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c"), definition(rows))


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_a_line_with_the_rate_since_the_search_went_on(
    block_rows: Callable[[int], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gallery = open_shards(tmp_path, random_rows())
    block_rows(100)
    with pytest.raises(KeyboardInterrupt):
        gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c", progress=stop_at(300))
    gf.knn(QUERY_ROWS, gallery, K, checkpoint=tmp_path / "c", progress=True)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "searched 300 of 1,000 rows (30 %), 0 rows/s"
    assert re.fullmatch(r"searched 1,000 of 1,000 rows \(100 %\), [\d,]+ rows/s", last)
