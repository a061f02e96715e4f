"""Gallery: shards, arrays, Arrow data, ranges, changes of files, bounded memory, no thread left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from gallery_cases import WRITERS, read, rows_of, thread_count, write_parquet, written

import graceful_fast as gf


def shards(folder: Path, suffix: str = ".npy", count: int = 12) -> tuple[list[Path], torch.Tensor]:
    """Files part-0 ... of 0 to 3 rows, and all rows in their order."""
    rows = [torch.full((number % 4, 3), float(number)) + torch.arange(3) for number in range(count)]
    writer = next(write for ending, _, write in WRITERS.values() if ending == suffix)
    paths = [folder / f"part-{number}{suffix}" for number in range(count)]
    for path, values in zip(paths, rows, strict=True):
        writer(path, values)
    return paths, torch.cat(rows)


def arrow_table(rows: torch.Tensor, chunks: int = 1) -> pa.Table:
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(part.flatten().numpy()), rows.shape[1])
        for part in rows.chunk(chunks)
    ]
    return pa.table({"id": np.arange(len(rows)), "embedding": pa.chunked_array(columns)})


@pytest.mark.parametrize("suffix", [".npy", ".fbin", ".parquet", ".safetensors"])
def test_shards_are_one_gallery_in_natural_order(suffix: str, tmp_path: Path) -> None:
    paths, rows = shards(tmp_path, suffix)
    (tmp_path / "notes.txt").write_text("no gallery file")
    for source in (tmp_path, str(tmp_path), str(tmp_path / f"part-*{suffix}"), paths, tuple(map(str, paths))):
        gallery = gf.Gallery.open(source)
        assert len(gallery) == len(rows)
        for size in (1, 4, 100):
            assert torch.equal(read(gallery, size), rows)
        assert torch.equal(torch.cat([b.clone() for _, b in gallery.blocks(4, 3, 11)]), rows[3:11])
        wanted = [0, 4, 5, 6, 6, 11, len(rows) - 1]
        assert torch.equal(gallery.take(wanted), rows[wanted])


def test_a_list_keeps_its_order(tmp_path: Path) -> None:
    paths, _ = shards(tmp_path)
    assert read(gf.Gallery.open([paths[7], paths[2]]))[:, 0].tolist() == [7, 7, 7, 2, 2]


def test_shards_that_differ_are_refused_with_both_paths(tmp_path: Path) -> None:
    paths, _ = shards(tmp_path)
    for odd, message in [(np.zeros((1, 4), "f4"), "dim 4 and float32"), (np.zeros((1, 3), "f2"), "dim 3 and float16")]:
        np.save(paths[5], odd)
        with pytest.raises(
            ValueError, match=rf"part-5.npy: expected dim 3 and float32 as in .*part-0.npy, got {message}"
        ):
            gf.Gallery.open(tmp_path)


def test_a_directory_or_pattern_without_one_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one format, got none"):
        gf.Gallery.open(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((1, 3), "f4"))
    written(tmp_path, "fbin", rows_of("f4"))
    with pytest.raises(ValueError, match=r"one format, got \.fbin, \.npy"):
        gf.Gallery.open(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\*\.fvecs: expected files of this pattern, got none"):
        gf.Gallery.open(tmp_path / "*.fvecs")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/none\.npy: no such file"):
        gf.Gallery.open(tmp_path / "none.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(OSError, match=r"/pipe\.npy: expected a gallery file, got something that is no regular file"):
        gf.Gallery.open(tmp_path / "pipe.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 4}, "expected dim 4, got 3"),
        ({"dtype": "float16"}, "expected dtype float16, got float32"),
        ({"offset": 4}, "offset: expected 0"),
        ({"model": "resnet50"}, "expected a gallery of model 'resnet50', got one that is not prepared"),
        ({"dim": 0}, "dim: expected an integer of at least 1, got 0"),
        ({"dtype": "int32"}, "dtype: expected one of float32"),
    ],
)
def test_what_the_gallery_must_be_is_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), "f4"))
    assert len(gf.Gallery.open(tmp_path / "a.npy", dim=3, dtype=np.float32)) == 2
    with pytest.raises(ValueError, match=message):
        gf.Gallery.open(tmp_path / "a.npy", **options)


@pytest.mark.parametrize("dtype", ["f4", "f2", "bf16", "f8", "i1", "u1"])
def test_arrays_are_views_of_memory(dtype: str) -> None:
    rows = rows_of(dtype)
    kinds: list[Any] = [rows, rows.t().contiguous().t()] if dtype == "bf16" else [rows, rows.numpy(), rows[::2]]
    for array in kinds:
        expected = torch.as_tensor(array)
        gallery = gf.Gallery.open(array)
        assert gallery.array is not None
        assert (len(gallery), gallery.dim, gallery.dtype) == (len(expected), 3, rows.dtype)
        assert torch.equal(gallery.array, expected)
        assert torch.equal(read(gallery, 2), expected)
        assert torch.equal(gallery.take([0, 3]), expected[[0, 3]])
    gallery = gf.Gallery.open(rows)
    assert gallery.array is not None
    assert gallery.array.data_ptr() == next(gallery.blocks(2))[1].data_ptr() == rows.data_ptr()
    assert gallery.take([0]).data_ptr() != rows.data_ptr()
    assert gf.Gallery.open(gallery) is gallery


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros(3, "f4"), ValueError, r"shape \(rows, dim\)"),
        (np.zeros((3, 0), "f4"), ValueError, "dim of at least 1"),
        (np.zeros((3, 2), "i8"), TypeError, "int64"),
        (torch.zeros(3, 2).to_sparse(), TypeError, "dense"),
        (torch.zeros(3, 2, device="meta"), ValueError, "on the CPU"),
        (object(), TypeError, "expected a torch tensor"),
    ],
)
def test_arrays_that_are_no_gallery_are_refused(array: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gf.Gallery.open(array)


def test_arrow_tables_and_datasets_are_read_again_and_again(tmp_path: Path) -> None:
    rows = rows_of("f4", 40)
    write_parquet(tmp_path / "a.parquet", rows)
    for source in (
        arrow_table(rows),
        arrow_table(rows, 7),
        arrow_table(rows, 7)[2:],
        pads.dataset(tmp_path / "a.parquet"),
    ):
        expected = rows[-len(read(gf.Gallery.open(source))) :]
        gallery = gf.Gallery.open(source, key="embedding")
        for size in (1, 9, 100):
            assert torch.equal(read(gallery, size), expected)
        assert len(gallery) == len(expected)
        assert torch.equal(torch.cat([b.clone() for _, b in gallery.blocks(4, 3, 31)]), expected[3:31])
        assert torch.equal(gallery.take([0, 17, 37]), expected[[0, 17, 37]])


class Capsule:
    """What has Arrow's C interface and a length, as a polars frame has."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


def test_arrows_c_interface_is_enough() -> None:
    rows = rows_of("f4")
    gallery = gf.Gallery.open(Capsule(arrow_table(rows)))
    assert torch.equal(read(gallery), rows)
    assert torch.equal(read(gallery), rows)


def test_data_that_yields_fewer_rows_than_it_said_is_refused() -> None:
    source = Capsule(arrow_table(rows_of("f4")))
    gallery = gf.Gallery.open(source)
    source.table = source.table[:5]
    with pytest.raises(ValueError, match="gallery: expected rows up to 7, got 5 rows from the Capsule"):
        read(gallery)


@pytest.mark.parametrize("lists", [True, False])
def test_a_stream_is_read_once_and_refused_a_second_time(lists: bool) -> None:
    rows = rows_of("f4")
    table = arrow_table(rows, 3).select(["embedding"])
    if lists:
        table = table.cast(pa.schema({"embedding": pa.list_(pa.float32())}))
    gallery = gf.Gallery.open(table.to_reader())
    with pytest.raises(ValueError, match="expected something of known length, got a RecordBatchReader"):
        len(gallery)
    assert torch.equal(read(gallery), rows)
    with pytest.raises(ValueError, match="expected something that can be read again, got a RecordBatchReader"):
        read(gallery)


def test_ranges_and_rows_outside_the_gallery_are_refused(tmp_path: Path) -> None:
    gallery = gf.Gallery.open(written(tmp_path, "npy", rows_of("f4")))
    for start, stop in [(-1, 2), (3, 2), (0, 8), (8, None)]:
        with pytest.raises(ValueError, match="expected 0 <= start <= stop <= 7"):
            gallery.blocks(2, start, stop)
    with pytest.raises(ValueError, match="rows: expected at least 1, got 0"):
        gallery.blocks(0)
    for rows in ([-1, 2], [2, 1], [0, 7]):
        with pytest.raises(ValueError, match="expected ascending rows of 0 to 6"):
            gallery.take(rows)
    for rows in ([[1]], [0.5]):
        with pytest.raises(ValueError, match=r"expected \(n,\) integers"):
            gallery.take(rows)


def test_a_block_stays_as_it_is_until_the_next_is_asked_for(tmp_path: Path) -> None:
    rows = torch.randn(4000, 64)
    gallery = gf.Gallery.open(written(tmp_path, "npy", rows))
    seen = set()
    for first, block in gallery.blocks(256):
        before = block.clone()
        assert torch.equal(before, rows[first : first + len(block)])
        seen.add(block.data_ptr())
        os.sched_yield()
        assert torch.equal(block, before)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["npy", "parquet", "fvecs"])
def test_a_loop_that_stops_early_leaves_no_thread_and_no_file(name: str, tmp_path: Path) -> None:
    gallery = gf.Gallery.open(written(tmp_path, name, rows_of("f4", 200)))

    def first_of(gallery: gf.Gallery) -> None:
        for _ in gallery.blocks(5):
            raise KeyError

    next(gallery.blocks(5))  # libraries' own threads start
    before, files = thread_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        blocks = gallery.blocks(5)
        next(blocks)
        blocks.close()
        with pytest.raises(KeyError):
            first_of(gallery)
        gallery.take([3, 100])
    assert len(os.listdir("/proc/self/fd")) == files
    assert thread_count(at_most=before) <= before


def test_a_changed_file_is_refused_with_both_states(tmp_path: Path) -> None:
    paths, _ = shards(tmp_path)
    gallery = gf.Gallery.open(tmp_path)
    gallery.check_unchanged()
    content = paths[3].read_bytes()
    state = paths[3].stat()
    os.utime(paths[3], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    for refuse in (gallery.check_unchanged, lambda: gallery.blocks(2)):
        with pytest.raises(
            OSError, match=rf"part-3.npy: changed .* {len(content)} bytes of mtime_ns {state.st_mtime_ns}, got"
        ):
            refuse()
    os.utime(paths[3], ns=(state.st_atime_ns, state.st_mtime_ns))
    gallery.check_unchanged()
    os.truncate(paths[3], 100)
    with pytest.raises(OSError, match="got 100 bytes"):
        gallery.check_unchanged()
    paths[3].unlink()
    with pytest.raises(OSError, match=r"part-3.npy: no such file"):
        gallery.check_unchanged()


def test_a_file_truncated_during_a_pass_ends_it_with_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "npy", rows_of("f4", 100))
    blocks = gf.Gallery.open(path).blocks(10)
    next(blocks)
    os.truncate(path, 700)
    with pytest.raises(
        OSError, match=r"gallery.npy: truncated since it was opened: expected at least 1328 bytes, got 700"
    ):
        list(blocks)


def test_fingerprints_tell_contents_apart(tmp_path: Path) -> None:
    rows = rows_of("f4")
    prints = {gf.Gallery.open(written(tmp_path, name, rows)).fingerprint() for name in ("npy", "fbin", "hdf5-chunked")}
    path = tmp_path / "gallery.npy"
    assert gf.Gallery.open(path).fingerprint() == gf.Gallery.open(path).fingerprint()
    os.utime(path, ns=(0, 1))
    prints.add(gf.Gallery.open(path).fingerprint())
    prints.add(gf.Gallery.open([path, path]).fingerprint())
    prints.add(gf.Gallery.open(path.rename(tmp_path / "moved.npy")).fingerprint())
    for array in (rows, -rows, rows.double(), rows.reshape(3, 7), rows[:6], arrow_table(rows)):
        assert gf.Gallery.open(array).fingerprint() == gf.Gallery.open(array).fingerprint()
        prints.add(gf.Gallery.open(array).fingerprint())
    assert gf.Gallery.open(rows.clone()).fingerprint() == gf.Gallery.open(rows.t().contiguous().t()).fingerprint()
    assert len(prints) == 12


def test_memory_of_a_pass_is_two_blocks_and_no_mapped_pages(tmp_path: Path) -> None:
    rows = 1 << 16
    with (tmp_path / "large.npy").open("wb") as file:  # 128 MiB, sparse
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, 512)})
        file.truncate(file.tell() + rows * 2048)
    code = f"""
import graceful_fast as gf, torch

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

gallery = gf.Gallery.open({str(tmp_path / "large.npy")!r})
next(gallery.blocks(1))
before = kilobytes("VmHWM")
assert sum(float(block[:, 0].sum()) for _, block in gallery.blocks(2048)) == 0  # 4 MiB a block
print(kilobytes("VmHWM") - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 12 << 10


def test_a_pass_over_parquet_holds_no_row_groups(tmp_path: Path) -> None:
    table = arrow_table(torch.zeros(1 << 16, 128) + torch.arange(128)).select(["embedding"])  # 32 MiB
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1 << 13, use_dictionary=False, compression="none")
    before = pa.total_allocated_bytes()
    for _ in gf.Gallery.open(tmp_path / "a.parquet").blocks(1 << 10):
        assert pa.total_allocated_bytes() - before < 4 << 20


def test_opening_a_gallery_imports_torch_only_for_tensors(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), "f4"))
    path = str(tmp_path / "a.npy")
    code = f"import sys, graceful_fast as gf; len(gf.Gallery.open({path!r})); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
