"""Gallery files that hold several arrays by name: .safetensors, .pt, .npz, .hdf5."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .gallery_formats import fixed, npy_header, npy_matrix, shape_2d
from .gallery_rows import ITEMSIZE, FileRows, FileState, Rows, StreamRows, dtype_name, naming, optional

_SAFETENSORS_HEADER = 100_000_000  # the format's own limit
_SAFETENSORS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "U8": "uint8"}


def safetensors(path: Path, key: str | None) -> FileRows:
    """A tensor of a .safetensors file, by its header of JSON: {name: {dtype, shape, data_offsets}}."""
    state = FileState.of(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _SAFETENSORS_HEADER else b""
    if state.size < 8 or len(text) != length:
        raise ValueError(
            f"{path}: expected a header of {length} bytes after the first 8, got {state.size} bytes in all"
        )
    with naming(path, "a header of JSON"):
        header = dict(json.loads(text, object_pairs_hook=_without_repeats))
        header.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in header.values()]
        shapes = {name: tensor["shape"] for name, tensor in header.items()}
    name = _choose(path, key, shapes)
    with naming(path, "dtype, shape and two data_offsets of each tensor"):
        dtype, shape, (begin, end) = (header[name][field] for field in ("dtype", "shape", "data_offsets"))
        if not all(type(n) is int and n >= 0 for n in (begin, *ends)):
            raise ValueError(f"offsets {begin!r} to {end!r}")
    if dtype not in _SAFETENSORS:
        raise ValueError(f"{path}: tensor {name!r}: expected a dtype of {', '.join(_SAFETENSORS)}, got {dtype!r}")
    rows, dim = shape_2d(shape, f"{path}: tensor {name!r}")
    data = 8 + length
    if (last := data + max(ends)) != state.size:
        raise ValueError(f"{path}: expected {last} bytes (the end of its last tensor), got {state.size}")
    return fixed("safetensors", state, data + begin, rows, dim, _SAFETENSORS[dtype], data + end)


def torch_file(path: Path, key: str | None) -> FileRows:
    """A tensor of a file of torch.save, or of a mapping in one, read in place; nothing else is unpickled."""
    import torch

    state = FileState.of(path)
    with naming(path, "a file of torch.save that holds tensors only"):
        loaded = torch.load(path, map_location="meta", weights_only=True)  # shapes and offsets, no values
    tensors = loaded if isinstance(loaded, Mapping) else {"": loaded}
    name = _choose(path, key, {n: tuple(t.shape) for n, t in tensors.items() if isinstance(t, torch.Tensor)})
    tensor = tensors[name]
    where = f"{path}: tensor {name!r}" if name else f"{path}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        raise ValueError(f"{where}: expected a dtype of {', '.join(ITEMSIZE)}, got {dtype}")
    rows, dim = shape_2d(tuple(tensor.shape), where)
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError(f"{where}: expected rows one after the other, got strides {tensor.stride()}")
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None:
        raise ValueError(f"{where}: expected the zip format of torch.save, got the one from before torch 1.6")
    offset = start + tensor.storage_offset() * ITEMSIZE[dtype]
    return fixed("pt", state, offset, rows, dim, dtype, offset + rows * dim * ITEMSIZE[dtype])


def npz(path: Path, key: str | None) -> Rows:
    """An array of an .npz file: in place where it is stored, decompressed as a stream where it is not."""
    state = FileState.of(path)
    with naming(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        headers = {}
        for name, info in members.items():
            with archive.open(info) as file:
                headers[name] = npy_header(file, f"{path}: array {name!r}"), file.tell()
        name = _choose(path, key, {name: header.shape for name, (header, _) in headers.items()})
        info, (matrix, header) = members[name], headers[name]
        rows, dim, dtype = npy_matrix(matrix, f"{path}: array {name!r}")
        size = header + rows * dim * ITEMSIZE[dtype]
        if info.file_size != size:
            raise ValueError(
                f"{path}: array {name!r}: expected {size} bytes ({rows} rows of dim {dim}), got {info.file_size}"
            )
        if info.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                file.seek(info.header_offset + 26)  # of the lengths of name and extra field, which the rows come after
                lengths = file.read(4)
            offset = info.header_offset + 30 + sum(np.frombuffer(lengths, "<u2").tolist()) + header
            return fixed("npz", state, offset, rows, dim, dtype, offset + rows * dim * ITEMSIZE[dtype])

    def read(start: int, stop: int | None, count: int) -> Iterator[np.ndarray]:
        row = dim * ITEMSIZE[dtype]
        with naming(path, "a .npz file"), zipfile.ZipFile(path) as archive, archive.open(info) as file:
            file.seek(header + start * row)
            for first in range(start, rows if stop is None else stop, count):
                n = min(count, (rows if stop is None else stop) - first)
                yield np.frombuffer(file.read(n * row), dtype).reshape(-1, dim)

    return StreamRows("compressed .npz", rows, dim, dtype, read, (state,), [name])


def hdf5(path: Path, key: str | None) -> Rows:
    """A dataset of an HDF5 file, "train" if no key says otherwise: in place where it is contiguous."""
    h5py = optional("h5py", "reading .hdf5")
    state = FileState.of(path)
    name = "train" if key is None else key
    with naming(path, "an HDF5 file"), h5py.File(path, "r") as file:
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{path}: expected a dataset {name!r} (key=), got {', '.join(map(repr, file)) or 'none'}")
        where = f"{path}: dataset {name!r}"
        rows, dim = shape_2d(dataset.shape, where)
        dtype = dtype_name(dataset.dtype, where)
        offset, dataset_chunks = dataset.id.get_offset(), dataset.chunks
        as_stored = dataset.id.get_type() == h5py.h5t.py_create(np.dtype(dtype))  # HDF5 has floats of any layout
        if (
            offset is not None
            and dataset.chunks is None
            and not dataset.external
            and not dataset.is_virtual
            and as_stored
        ):
            return fixed("hdf5", state, offset, rows, dim, dtype, offset + rows * dim * ITEMSIZE[dtype])

    chunk = dataset_chunks[0] if dataset_chunks else 1

    def read(start: int, stop: int | None, count: int) -> Iterator[np.ndarray]:
        end = rows if stop is None else stop
        with naming(path, "an HDF5 file"), h5py.File(path, "r") as file:
            for first in range(start, end, count):
                yield file[name][first : min(first + count, end)]

    return StreamRows("chunked HDF5", rows, dim, dtype, read, (state,), [name], unit=lambda at: at // chunk)


def _choose(path: Path, key: str | None, shapes: dict[str, Any]) -> str:
    """The array that `key` names, or the only one with two dimensions."""
    if key is not None:
        if key not in shapes:
            raise ValueError(f"{path}: expected an array {key!r} (key=), got {', '.join(map(repr, shapes)) or 'none'}")
        return key
    matrices = [name for name, shape in shapes.items() if isinstance(shape, (tuple, list)) and len(shape) == 2]
    if len(matrices) != 1:
        raise ValueError(
            f"{path}: expected one array of two dimensions, or key=, got {', '.join(map(repr, matrices)) or 'none'}"
        )
    return matrices[0]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name that occurs twice")
    return table
