"""From what a caller names (path, list, pattern, directory, array, Arrow data) to rows: the table of formats."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import gallery_arrow, gallery_containers, gallery_formats
from ._arrays import as_tensor
from .gallery_rows import ITEMSIZE, ArrayRows, FileRows, FileState, Rows, StreamRows, mapping_of

if TYPE_CHECKING:
    import torch

_BY_NAME: dict[str, Callable[[Path, str | None], Rows]] = {  # formats of arrays with names, which `key` chooses from
    ".safetensors": gallery_containers.safetensors,
    ".pt": gallery_containers.torch_file,
    ".pth": gallery_containers.torch_file,
    ".npz": gallery_containers.npz,
    ".hdf5": gallery_containers.hdf5,
    ".h5": gallery_containers.hdf5,
    ".parquet": gallery_arrow.parquet,
}
_SINGLE: dict[str, Callable[[Path], Rows]] = {  # formats of one array
    ".npy": gallery_formats.npy,
    **dict.fromkeys((".fbin", ".f16bin", ".hbin", ".u8bin", ".i8bin"), gallery_formats.binary),
    **dict.fromkeys((".fvecs", ".bvecs"), gallery_formats.vectors),
    **dict.fromkeys((".faiss", ".index"), gallery_formats.faiss_flat),
}


def open_rows(source: Any, key: str | None, dtype: str | None, dim: int | None, offset: int) -> Rows:
    """The rows of a path, paths, a pattern, a directory, an array or Arrow data; dtype, dim, offset: of raw files."""
    if isinstance(source, (str, os.PathLike)):
        paths = _files_of(source)
    elif isinstance(source, Sequence) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        paths = [Path(item) for item in source]
    elif any(hasattr(source, name) for name in ("__arrow_c_stream__", "to_reader", "to_batches")):
        return gallery_arrow.arrow(source, key)
    else:
        return _array_rows(source)
    return _concatenate([_open_file(path, key, dtype, dim, offset) for path in paths])


def _open_file(path: Path, key: str | None, dtype: str | None, dim: int | None, offset: int) -> Rows:
    suffix = path.suffix.lower()
    named, single = _BY_NAME.get(suffix), _SINGLE.get(suffix)
    if offset and (named or single):
        raise ValueError(f"{path}: offset: expected 0 of a file that is not raw, got {offset}")
    if named:
        return named(path, key)
    if key is not None:
        raise ValueError(f"{path}: key: expected None of a file of one array, got {key!r}")
    if single:
        return single(path)
    if dtype is not None and dim is not None:
        return gallery_formats.raw(path, dtype, dim, offset)
    FileState.of(path)
    with path.open("rb") as file:
        if file.read(4) in gallery_formats.FAISS_FLAT:
            return gallery_formats.faiss_flat(path)
    known = ", ".join((*_SINGLE, *_BY_NAME))
    raise ValueError(f"{path}: expected one of {known}, a flat FAISS index, or dtype= and dim= of a raw file")


def _files_of(source: str | os.PathLike[str]) -> list[Path]:
    """The file, or those of a directory or glob pattern in natural order."""
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower() in (*_SINGLE, *_BY_NAME)]
        if len(formats := {file.suffix.lower() for file in found}) != 1:
            raise ValueError(
                f"{path}: expected gallery files of one format, got {', '.join(sorted(formats)) or 'none'}"
            )
    elif not path.exists() and glob.has_magic(str(path)):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        if not found:
            raise FileNotFoundError(f"{path}: expected files of this pattern, got none")
    else:
        return [path]
    return sorted(found, key=lambda file: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", str(file))])


def _array_rows(value: Any) -> Rows:
    array = as_tensor(value, "gallery")
    if str(array.dtype).removeprefix("torch.") not in ITEMSIZE:
        raise TypeError(f"gallery: expected a dtype of {', '.join(ITEMSIZE)}, got {array.dtype}")
    if array.device.type != "cpu":
        raise ValueError(f"gallery: expected an array on the CPU, got one on {array.device}")
    if str(array.layout) != "torch.strided":
        raise TypeError(f"gallery: expected a dense tensor, got {array.layout}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"gallery: expected shape (rows, dim) with a dim of at least 1, got {tuple(array.shape)}")
    lies_in_rows = array.stride(1) == 1 or array.shape[1] == 1
    return ArrayRows(array if lies_in_rows else array.contiguous(), mapped=mapping_of(value))


def _concatenate(shards: list[Rows]) -> Rows:
    """Shards as one sequence of rows, in the order given."""
    head = shards[0]
    if len(shards) == 1:
        return head
    for shard in shards:
        if (shard.dim, shard.dtype) != (head.dim, head.dtype):
            raise ValueError(
                f"{shard.files[0].path}: expected dim {head.dim} and {head.dtype} as in {head.files[0].path}, "
                f"got dim {shard.dim} and {shard.dtype}"
            )
    files = tuple(state for shard in shards for state in shard.files)
    if all(isinstance(shard, FileRows) for shard in shards):
        fixed: list[FileRows] = shards  # type: ignore[assignment]
        if any(shard.dim_word != fixed[0].dim_word for shard in fixed):
            raise ValueError(f"{files[0].path}: expected shards of one format, got .fvecs or .bvecs beside others")
        parts = tuple(part for shard in fixed for part in shard.parts)
        return FileRows(head.format, parts, head.dim, head.dtype, files, fixed[0].dim_word)

    def read(start: int, stop: int | None, rows: int) -> Iterator[np.ndarray]:
        base = 0
        for shard in shards:
            count = shard.rows or 0
            low, high = max(start - base, 0), count if stop is None else min(stop - base, count)
            if low < high:
                for _, block in shard.blocks(rows, low, high):
                    yield block.numpy()
            base += count

    layout = [shard.layout for shard in shards]
    total = sum(shard.rows or 0 for shard in shards)
    return _Shards(head.format, total, head.dim, head.dtype, read, files, layout, shards=shards)


@dataclass
class _Shards(StreamRows):
    """Streams one after the other; each knows best how to find its rows."""

    shards: list[Rows] = field(default_factory=list)

    def take(self, rows: np.ndarray) -> "torch.Tensor":
        import torch

        firsts = np.cumsum([0, *(shard.rows or 0 for shard in self.shards)])
        cuts = np.searchsorted(rows, firsts)
        parts = zip(self.shards, firsts, cuts, cuts[1:], strict=False)
        return torch.cat([shard.take(rows[low:high] - first) for shard, first, low, high in parts])
