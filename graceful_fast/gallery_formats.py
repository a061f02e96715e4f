"""Gallery files that are a header and rows: .npy, .fbin and its like, .fvecs, .bvecs, flat FAISS indexes, raw rows."""

import ast
import struct
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .gallery_rows import ITEMSIZE, FileRows, FileState, RowFile, dtype_name

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = 10_000  # numpy's own limit for a header that is evaluated
_BIN = {".fbin": "float32", ".f16bin": "float16", ".hbin": "float16", ".u8bin": "uint8", ".i8bin": "int8"}
_VECS = {".fvecs": "float32", ".bvecs": "uint8"}
FAISS_FLAT = (b"IxFI", b"IxF2", b"IxFl")
"""First bytes of a flat FAISS index: inner product, squared L2, any other metric and old versions."""


def npy(path: Path) -> FileRows:
    """A .npy file of versions 1 to 3."""
    state = FileState.of(path)
    with path.open("rb") as file:
        rows, dim, dtype = npy_matrix(npy_header(file, path), path)
        return fixed("npy", state, file.tell(), rows, dim, dtype)


class NpyHeader(NamedTuple):
    """What the header of a .npy file says."""

    shape: Any
    dtype: np.dtype[Any]
    fortran_order: Any


def npy_header(file: IO[bytes], path: object) -> NpyHeader:
    """The header that is next in `file`, which is then at the array's first byte."""
    magic = file.read(8)
    if magic[:6] != _NPY_MAGIC or len(magic) < 8 or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError(f"{path}: expected {_NPY_MAGIC!r} and version 1.0, 2.0 or 3.0, got {magic!r}")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    text = file.read(length) if length <= _NPY_HEADER else b""
    if len(text) != length:
        raise ValueError(f"{path}: expected a header of {length} bytes (at most {_NPY_HEADER}), got {len(text)}")
    try:
        header = ast.literal_eval(text.decode("latin1" if magic[6] < 3 else "utf-8"))
        return NpyHeader(header["shape"], np.dtype(header["descr"]), header["fortran_order"])
    except Exception as error:  # literal_eval and dtype raise half a dozen types on what is no header
        raise ValueError(
            f"{path}: expected a header with descr, fortran_order and shape, got {text[:200]!r}"
        ) from error


def npy_matrix(header: NpyHeader, path: object) -> tuple[int, int, str]:
    """Rows, dim and dtype; ValueError unless it is a matrix of numbers, row after row."""
    name = dtype_name(header.dtype, path)
    rows, dim = shape_2d(header.shape, path)
    if header.fortran_order is not False:
        got = f"fortran_order={header.fortran_order!r} (numpy.save a C copy)"
        raise ValueError(f"{path}: expected rows one after the other, got {got}")
    return rows, dim, name


def binary(path: Path) -> FileRows:
    """A .fbin, .u8bin, .i8bin or .f16bin file: rows and dim as two uint32 or, in the wide variant, two uint64.

    The file's size says which. It never fits both: read as wide, a file of two uint32 has at least dim * 2^32 rows.
    """
    state = FileState.of(path)
    dtype = _BIN[path.suffix.lower()]
    with path.open("rb") as file:
        head = file.read(16)
    variants = [struct.unpack_from(form, head) for form in ("<II", "<QQ") if len(head) >= struct.calcsize(form)]
    for header, (rows, dim) in zip((8, 16), variants, strict=False):
        if dim > 0 and state.size == header + rows * dim * ITEMSIZE[dtype]:
            return fixed(path.suffix[1:].lower(), state, header, rows, dim, dtype)
    fits = [
        f"{header + rows * dim * ITEMSIZE[dtype]} bytes ({rows} rows of dim {dim} after a header of {header} bytes)"
        for header, (rows, dim) in zip((8, 16), variants, strict=False)
    ]
    expected = " or ".join(fits) or "a header of at least 8 bytes"
    raise ValueError(f"{path}: expected {expected}, {dtype}, dim at least 1, got {state.size} bytes")


def vectors(path: Path) -> FileRows:
    """A .fvecs or .bvecs file: each row begins with its dim as int32."""
    state = FileState.of(path)
    dtype = _VECS[path.suffix.lower()]
    with path.open("rb") as file:
        head = file.read(4)
    dim = int.from_bytes(head, "little", signed=True) if len(head) == 4 else 0
    if dim < 1:
        raise ValueError(f"{path}: expected rows that begin with a dim of at least 1, got {head!r}")
    stride = 4 + dim * ITEMSIZE[dtype]
    if state.size % stride:
        raise ValueError(f"{path}: expected a multiple of {stride} bytes (dim {dim}, {dtype}), got {state.size} bytes")
    part = RowFile(path, 0, stride, state.size // stride)
    return FileRows(path.suffix[1:].lower(), (part,), dim, dtype, (state,), dim_word=True)


def faiss_flat(path: Path) -> FileRows:
    """A flat FAISS index as faiss.write_index writes it; its float32 rows are read in place."""
    state = FileState.of(path)
    with path.open("rb") as file:
        head = file.read(37)
        if head[:4] not in FAISS_FLAT or len(head) < 37:
            raise ValueError(f"{path}: expected a flat FAISS index (IxFI, IxF2, IxFl), got {head[:4]!r}")
        dim, rows, trained, metric = struct.unpack("<iq16xBi", head[4:])
        if metric > 1:
            file.read(4)  # the metric's argument
        count = file.read(8)
        if dim < 1 or rows < 0 or trained > 1 or int.from_bytes(count, "little") != rows * dim:
            got = f"{rows} rows of dim {dim} and {int.from_bytes(count, 'little')} values"
            raise ValueError(f"{path}: expected rows * dim values of a positive dim, got {got}")
        return fixed("faiss", state, file.tell(), rows, dim, "float32")


def raw(path: Path, dtype: str, dim: int, offset: int) -> FileRows:
    """Rows and nothing else from `offset` to the end of the file."""
    state = FileState.of(path)
    row = dim * ITEMSIZE[dtype]
    if offset < 0 or offset > state.size or (state.size - offset) % row:
        raise ValueError(
            f"{path}: expected a multiple of {row} bytes (dim {dim}, {dtype}) after {offset}, got {state.size} bytes"
        )
    return fixed("raw", state, offset, (state.size - offset) // row, dim, dtype)


def fixed(
    form: str, state: FileState, offset: int, rows: int, dim: int, dtype: str, end: int | None = None
) -> FileRows:
    """Rows one after the other that end where the file does, or at `end` within it; ValueError unless they do."""
    row = dim * ITEMSIZE[dtype]
    expected, got = offset + rows * row, state.size if end is None else min(end, state.size)
    if got != expected:
        raise ValueError(
            f"{state.path}: expected {expected} bytes ({rows} rows of dim {dim}, {dtype}, at byte {offset}), got {got}"
        )
    return FileRows(form, (RowFile(state.path, offset, row, rows),), dim, dtype, (state,))


def shape_2d(shape: Any, source: object) -> tuple[int, int]:
    """Rows and dim of a shape that a header gives; ValueError that starts with `source`."""
    good = isinstance(shape, (tuple, list)) and len(shape) == 2 and all(type(n) is int and n >= 0 for n in shape)
    if not good or shape[1] == 0:
        raise ValueError(f"{source}: expected shape (rows, dim) with a dim of at least 1, got {shape!r}")
    return shape[0], shape[1]
