"""Every gallery format is read as its peer wrote it; what is no gallery is refused with path, expectation and fact."""

import io
import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from gallery_cases import WRITERS, npy_bytes, read, rows_of, written

import graceful_fast as gf

CASES = [(name, dtype) for name, (_, dtypes, _) in WRITERS.items() for dtype in dtypes.split()]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_rows_are_what_the_peer_wrote(name: str, dtype: str, tmp_path: Path) -> None:
    rows = rows_of(dtype)
    gallery = gf.Gallery.open(written(tmp_path, name, rows))
    assert (len(gallery), gallery.dim, gallery.dtype) == (7, 3, rows.dtype)
    assert gallery.nbytes == rows.nbytes
    assert gallery.array is None
    for size in (1, 3, 7, 100):
        blocks = [(first, block.clone()) for first, block in gallery.blocks(size)]
        assert [(first, len(block)) for first, block in blocks] == [
            (first, min(size, 7 - first)) for first in range(0, 7, size)
        ]
        assert torch.equal(torch.cat([block for _, block in blocks]), rows)
    assert torch.equal(torch.cat([b.clone() for _, b in gallery.blocks(2, 1, 6)]), rows[1:6])
    assert torch.equal(gallery.take([0, 2, 3, 3, 6]), rows[[0, 2, 3, 3, 6]])
    assert list(gallery.blocks(2, 4, 4)) == []
    assert gallery.take([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "dtype"), [case for case in CASES if case[0] not in ("fvecs", "bvecs", "parquet-list")]
)
def test_a_file_of_no_rows_is_a_gallery_of_none(name: str, dtype: str, tmp_path: Path) -> None:
    gallery = gf.Gallery.open(written(tmp_path, name, rows_of(dtype, rows=0)))
    assert (len(gallery), gallery.dim, read(gallery).shape) == (0, 3, (0, 3))


@pytest.mark.parametrize("name", ["fvecs", "bvecs", "parquet-list"])
def test_a_file_of_no_rows_that_has_no_dim_is_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, rows_of(WRITERS[name][1].split()[0], rows=0))
    with pytest.raises(ValueError, match="at least") as error:
        gf.Gallery.open(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("cut", [1, 5, 20])
@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_is_refused_with_its_path(name: str, cut: int, tmp_path: Path) -> None:
    path = written(tmp_path, name, rows_of(WRITERS[name][1].split()[0], rows=50))
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises((ValueError, OSError)) as error:
        read(gf.Gallery.open(path))
    assert str(error.value).startswith(f"{path}: ")


# A zip file's and Parquet's end is found from behind, an HDF5 file may be longer than its datasets.
@pytest.mark.parametrize(
    "name", [name for name in WRITERS if name.split("-")[0] not in ("npz", "pt", "hdf5", "parquet")]
)
def test_bytes_after_the_end_are_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, rows_of(WRITERS[name][1].split()[0]))
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"expected .* got"):
        gf.Gallery.open(path)


def test_npy_headers_of_all_versions_are_read(tmp_path: Path) -> None:
    rows = rows_of("f4").numpy()
    for version in [(1, 0), (2, 0), (3, 0)]:
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, rows, version=version)
        assert np.array_equal(read(gf.Gallery.open(tmp_path / "a.npy")), rows)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), ">f4"), "little-endian"),
        (np.asfortranarray(np.zeros((2, 3), "f4")), "fortran_order=True"),
        (np.zeros((2, 3), object), "Python objects"),
        (np.zeros((2, 3), "i4"), "dtype of float32.*got int32"),
        (np.zeros((2, 3), "c8"), "complex64"),
        (np.zeros((2, 3), "U3"), "<U3"),
        (np.zeros(3, "f4"), r"shape \(rows, dim\).*got \(3,\)"),
        (np.zeros((2, 3, 4), "f4"), r"got \(2, 3, 4\)"),
        (np.zeros((2, 0), "f4"), r"dim of at least 1, got \(2, 0\)"),
    ],
)
def test_an_array_that_is_no_gallery_says_what_was_expected(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=array)
    for name, key in [("a.npy", None), ("a.npz", "a")]:
        with pytest.raises(ValueError, match=message) as error:
            gf.Gallery.open(tmp_path / name, key=key)
        assert str(error.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    "shape", ["(4611686018427387904, 4)", "(-1, 3)", "(1, -3)", "(True, 3)", "(2.0, 3)", "[2, 3]", "None", "(2, 3,)"]
)
def test_an_npy_header_that_overflows_or_lies_is_refused(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n"
    (tmp_path / "a.npy").write_bytes(npy_bytes(header, bytes(24)))
    if shape in ("(2, 3,)", "[2, 3]"):
        assert len(gf.Gallery.open(tmp_path / "a.npy")) == 2
    else:
        with pytest.raises(ValueError, match="expected"):
            gf.Gallery.open(tmp_path / "a.npy")


def test_bin_files_that_fit_neither_header_name_both(tmp_path: Path) -> None:
    path = tmp_path / "a.fbin"
    path.write_bytes(struct.pack("<II", 2, 3) + bytes(23))
    with pytest.raises(
        ValueError, match=r"expected 32 bytes \(2 rows of dim 3 after a header of 8 bytes\) or \d+ bytes"
    ):
        gf.Gallery.open(path)
    path.write_bytes(b"123")
    with pytest.raises(ValueError, match=r"a header of at least 8 bytes.* got 3 bytes"):
        gf.Gallery.open(path)
    for shape in [(2, 0), (0, 0)]:
        path.write_bytes(struct.pack("<II", *shape))
        with pytest.raises(ValueError, match="dim at least 1"):
            gf.Gallery.open(path)
    path.write_bytes(struct.pack("<QQ", 1 << 62, 1 << 62) + bytes(16))
    with pytest.raises(ValueError, match="expected"):
        gf.Gallery.open(path)


def test_a_bin_file_of_more_rows_than_32_bits_hold_is_wide(tmp_path: Path) -> None:
    path = tmp_path / "a.u8bin"
    with path.open("wb") as file:  # sparse
        file.write(struct.pack("<QQ", (1 << 32) + 5, 1))
        file.truncate(16 + (1 << 32) + 5)
    with path.open("r+b") as file:
        file.seek(16 + (1 << 32) + 3)
        file.write(b"\7\x09")
    gallery = gf.Gallery.open(path)
    assert len(gallery) == (1 << 32) + 5
    assert gallery.take([3, (1 << 32) + 2, (1 << 32) + 3, (1 << 32) + 4]).flatten().tolist() == [0, 0, 7, 9]
    assert [(first, b.flatten().tolist()) for first, b in gallery.blocks(2, (1 << 32) + 3)] == [((1 << 32) + 3, [7, 9])]


def test_a_row_of_another_dim_in_fvecs_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "fvecs", rows_of("f4"))
    content = bytearray(path.read_bytes())
    content[16 * 5] = 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"gallery.fvecs: row 5: expected dim 3 as in row 0, got 4"):
        read(gf.Gallery.open(path))


def test_keys_choose_among_arrays_and_are_needed_where_there_are_several(tmp_path: Path) -> None:
    a, b = rows_of("f4"), rows_of("f4", rows=4)
    safetensors.torch.save_file({"a": a, "b": b}, tmp_path / "s.safetensors")
    torch.save({"a": a, "b": b}, tmp_path / "s.pt")
    np.savez(tmp_path / "s.npz", a=a, b=b)
    with h5py.File(tmp_path / "s.hdf5", "w") as file:
        file["a"], file["group/b"] = a, b
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(x[:4].flatten().numpy()), 3) for x in (a, b)]
    pq.write_table(pa.table(columns, ["a", "b"]), tmp_path / "s.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(read(gf.Gallery.open(path, key="group/b" if path.suffix == ".hdf5" else "b")), b)
        for key in (None, "c"):
            with pytest.raises(ValueError, match="'a'") as error:
                gf.Gallery.open(path, key=key)
            assert str(error.value).startswith(f"{path}: ")
    with pytest.raises(ValueError, match="key: expected None"):
        gf.Gallery.open(written(tmp_path, "npy", a), key="a")


def test_raw_rows_have_the_shape_that_is_said(tmp_path: Path) -> None:
    rows = rows_of("f4")
    path = tmp_path / "gallery.dat"
    path.write_bytes(b"ten bytes!" + rows.numpy().tobytes())
    for dtype in ("float32", np.float32, torch.float32, "f4"):
        assert torch.equal(read(gf.Gallery.open(path, dtype=dtype, dim=3, offset=10)), rows)
    path.write_bytes(rows_of("bf16").view(torch.uint8).numpy().tobytes())
    assert torch.equal(read(gf.Gallery.open(path, dtype=torch.bfloat16, dim=3)), rows_of("bf16"))
    with pytest.raises(ValueError, match=r"a multiple of 8 bytes \(dim 4, float16\) after 0, got 42 bytes"):
        gf.Gallery.open(path, dtype="float16", dim=4)
    with pytest.raises(ValueError, match="after 43"):
        gf.Gallery.open(path, dtype="int8", dim=1, offset=43)
    with pytest.raises(ValueError, match="after -2"):
        gf.Gallery.open(path, dtype="float16", dim=1, offset=-2)
    with pytest.raises(ValueError, match=r"expected one of \.npy.* dtype= and dim="):
        gf.Gallery.open(path, dim=3)


@pytest.mark.parametrize(
    ("index", "message"), [(faiss.IndexHNSWFlat(3, 4), "IHN"), (faiss.index_factory(3, "SQ8"), "IxSQ")]
)
def test_a_faiss_index_that_is_not_flat_is_refused(index: Any, message: str, tmp_path: Path) -> None:
    index.train(rows_of("f4").numpy())
    index.add(rows_of("f4").numpy())
    faiss.write_index(index, str(tmp_path / "a.index"))
    with pytest.raises(ValueError, match=f"flat FAISS index.*{message}"):
        gf.Gallery.open(tmp_path / "a.index")


@pytest.mark.parametrize(("at", "value"), [(4, 0), (4, 4), (7, 0x80), (15, 0x80), (32, 2), (37, 1), (44, 0x80)])
def test_a_faiss_header_that_contradicts_itself_is_refused(at: int, value: int, tmp_path: Path) -> None:
    path = written(tmp_path, "faiss-l2", rows_of("f4"))
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"gallery.index: expected"):
        gf.Gallery.open(path)


def test_hdf5_floats_of_another_layout_are_converted(tmp_path: Path) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(120)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"train", kind, h5py.h5s.create_simple((7, 3))))
        dataset[...] = rows_of("f4").numpy()
        assert dataset.chunks is None
    assert torch.equal(read(gf.Gallery.open(tmp_path / "a.hdf5")), rows_of("f4"))


def test_a_strided_tensor_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save(rows_of("f4").t(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"got strides \(1, 3\)"):
        gf.Gallery.open(tmp_path / "a.pt")
    torch.save(torch.zeros(9, 3)[2:5], tmp_path / "b.pt")
    assert len(gf.Gallery.open(tmp_path / "b.pt")) == 3
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="holds tensors only"):
        gf.Gallery.open(tmp_path / "c.pt")
    torch.save(rows_of("f4"), tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before torch 1\.6|holds tensors only"):
        gf.Gallery.open(tmp_path / "d.pt")


def test_lists_of_several_lengths_and_nulls_are_refused_with_their_row(tmp_path: Path) -> None:
    for number, (rows, message) in enumerate(
        [
            ([[1.0, 2.0], [3.0, 4.0], [5.0]], "row 2: expected 2 numbers as in row 0, got 1"),
            ([[1.0, 2.0], None, [3.0, 4.0]], "row 1: expected 2 numbers, got null"),
            ([[1.0, 2.0], [3.0, None], [5.0, 6.0]], "row 1: expected 2 numbers, got null among them"),
        ]
    ):
        for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)):
            if kind == pa.list_(pa.float32(), 2) and number == 0:
                continue
            path = tmp_path / f"{number}.parquet"
            table = pa.table({"x": pa.array(rows, kind)})
            pq.write_table(table, path, row_group_size=2)
            for source, name in [(path, str(path)), (table, "gallery")]:
                with pytest.raises(ValueError, match=message) as error:
                    read(gf.Gallery.open(source), 2)
                assert str(error.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["parquet", "hdf5-chunked", "npz-compressed"])
def test_scattered_rows_of_a_stream_are_found(name: str, tmp_path: Path) -> None:
    rows = rows_of("f4", 100)
    gallery = gf.Gallery.open(written(tmp_path, name, rows))  # row groups of 3, chunks of 2
    for wanted in ([0, 99], [5, 6, 7, 8, 9, 50], [2, 3, 3, 98], list(range(100)), list(range(0, 100, 7))):
        assert torch.equal(gallery.take(wanted), rows[wanted])


def test_units_that_nobody_wants_are_not_decoded(tmp_path: Path) -> None:
    path = written(tmp_path, "parquet", rows_of("f4", 12))
    offset = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    gallery = gf.Gallery.open(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert torch.equal(gallery.take([0, 11]), rows_of("f4", 12)[[0, 11]])
    with pytest.raises((OSError, ValueError), match=r"gallery.parquet: expected a Parquet file, got"):
        gallery.take([0, 4, 11])


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = written(tmp_path, "hdf5", rows_of("f4")), written(tmp_path, "parquet", rows_of("f4"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for path, package in zip(paths, ("h5py", "pyarrow"), strict=True):
        with pytest.raises(ImportError, match=rf"needs {package}: pip install 'graceful-fast\[stores\]'"):
            gf.Gallery.open(path)


def test_an_npz_member_longer_than_its_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        body = io.BytesIO()
        np.save(body, np.zeros((2, 3), np.float32))
        archive.writestr("a.npy", body.getvalue() + bytes(1 << 20))
    with pytest.raises(ValueError, match=r"array 'a': expected 152 bytes \(2 rows of dim 3\), got 1048728"):
        gf.Gallery.open(tmp_path / "a.npz")
