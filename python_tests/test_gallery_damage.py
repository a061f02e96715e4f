"""Gallery files of whatever bytes: an error that names the file, or the rows that the format's peer reads."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from gallery_cases import WRITERS, npy_bytes, read, rows_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import graceful_fast as gf

SETTINGS = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def faiss_rows(path: Path) -> np.ndarray:
    index = faiss.read_index(str(path))
    return index.reconstruct_n(0, index.ntotal)  # type: ignore[no-any-return]


def bin_rows(path: Path) -> np.ndarray:
    content = path.read_bytes()
    for form in ("<II", "<QQ"):
        head = struct.calcsize(form)
        if len(content) >= head:
            rows, dim = struct.unpack_from(form, content)
            if len(content) == head + 4 * rows * dim:
                return np.frombuffer(content, "<f4", offset=head).reshape(rows, dim)
    raise ValueError("no .fbin")


def vecs_rows(path: Path) -> np.ndarray:
    words = np.fromfile(path, "<i4")
    table = words.reshape(-1, words[0] + 1)
    assert (table[:, 0] == words[0]).all()
    return table[:, 1:].view("<f4")


def parquet_rows(path: Path) -> np.ndarray:
    name = next(field.name for field in pq.read_schema(path) if pa.types.is_nested(field.type))
    table = pq.read_table(path, columns=[name])
    return np.array(table[name].to_pylist(), table[name].type.value_type.to_pandas_dtype())


def only_matrix(arrays: Any) -> np.ndarray:
    return next(np.asarray(arrays[name]) for name in arrays if arrays[name].ndim == 2)


PEERS: dict[str, Callable[[Path], np.ndarray]] = {
    "npy": np.load,
    "npz": lambda path: only_matrix(np.load(path)),
    "npz-compressed": lambda path: only_matrix(np.load(path)),
    "fbin": bin_rows,
    "fbin-wide": bin_rows,
    "fvecs": vecs_rows,
    "faiss-l2": faiss_rows,
    "faiss-l1": faiss_rows,
    "safetensors": lambda path: only_matrix(safetensors.torch.load_file(path)),
    "pt": lambda path: torch.load(path, weights_only=True).numpy(),
    "parquet": parquet_rows,
}


def attempt(path: Path) -> torch.Tensor | None:
    """The rows, or None for a ValueError or OSError that names the file; any other error fails."""
    try:
        return read(gf.Gallery.open(path))
    except (ValueError, OSError) as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    return None


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[float, int]]:
    """Bytes to set at a share of the file, or from 2 on of its first bytes, or below 0 of its last; -1: cut there."""
    where = st.one_of(st.floats(0, 1), st.integers(2, 120).map(float), st.integers(-60, -1).map(float))
    value = st.one_of(st.integers(-1, 255), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    return draw(st.lists(st.tuples(where, value), min_size=1, max_size=4))


def damaged(content: bytes, changes: list[tuple[float, int]]) -> bytes:
    out = bytearray(content)
    for where, value in changes:
        at = int(where * (len(out) - 1)) if 0 <= where <= 1 else int(where) - 2 if where > 1 else len(out) + int(where)
        if 0 <= at < len(out):
            out[at:] = b"" if value < 0 else bytes([value]) + out[at + 1 :]
    return bytes(out)


@pytest.mark.parametrize("name", PEERS)
@settings(parent=SETTINGS, max_examples=50)
@given(changes=damage())
def test_damaged_files_are_refused_or_read_as_the_peer_reads_them(
    name: str, changes: list[tuple[float, int]], tmp_path: Path
) -> None:
    dtype = WRITERS[name][1].split()[0]
    path = tmp_path / f"whole{WRITERS[name][0]}"
    if not path.exists():
        WRITERS[name][2](path, rows_of(dtype))
    broken = path.with_stem("broken")
    broken.write_bytes(damaged(path.read_bytes(), changes))
    if (rows := attempt(broken)) is None:
        return
    try:
        expected = np.ascontiguousarray(PEERS[name](broken))
    except Exception:  # damage to what is no part of the rows, and which they are read without: they lie where they lay
        where = path.read_bytes().index(rows_of(dtype).numpy().tobytes())
        expected = np.frombuffer(broken.read_bytes(), rows.numpy().dtype, rows.numel(), where).reshape(7, 3)
    assert np.array_equal(rows.numpy().view(np.uint8), expected.view(np.uint8))


@settings(parent=SETTINGS, max_examples=50)
@given(
    dtype=st.sampled_from(["F32", "F16", "I64", "", 3]),
    shape=st.lists(st.integers(-3, 1 << 63), max_size=3) | st.just([2, 3]) | st.none(),
    offsets=st.lists(st.integers(-8, 40) | st.just(1 << 63), max_size=3) | st.just([0, 24]),
    length=st.integers(-4, 4) | st.just(1 << 60) | st.just(0),
)
@example(dtype="F32", shape=[2, 3], offsets=[0, 24], length=0)
def test_safetensors_headers_that_lie_are_refused(
    dtype: Any, shape: Any, offsets: list[int], length: int, tmp_path: Path
) -> None:
    header = json.dumps({"rows": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", max(0, len(header) + length)) + header + bytes(24))
    if (rows := attempt(path)) is not None:
        assert (dtype, shape, offsets, length) == ("F32", [2, 3], [0, 24], 0)
        assert torch.equal(rows, torch.zeros(2, 3))


@settings(parent=SETTINGS, max_examples=50)
@given(header=st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.tuples).map(repr))
@example(header="(" * 9000)
@example(header="{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3)}")
@example(header="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}")
@example(header="{'descr': 'f4,f4', 'fortran_order': 0, 'shape': (2, 3)}")
def test_npy_headers_of_any_text_are_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for version in (b"\1\0", b"\2\0", b"\3\0", b"\4\0"):
        path.write_bytes(npy_bytes(header, bytes(24), version))
        if (rows := attempt(path)) is not None:
            assert torch.equal(rows, torch.zeros(2, 3))
            assert header == "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"
