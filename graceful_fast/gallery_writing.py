"""Write a prepared gallery (gallery_prepared.py) so that no half of one is ever seen."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arrays import bytes_of
from .gallery_prepared import CODES, FACTS, FORMAT, MANIFEST, VERSION, manifest_checksum, new_checksum
from .gallery_rows import ITEMSIZE, LARGEST_CODED_DIM, FileRows, FileState, RowFile, Rows

if TYPE_CHECKING:
    import torch

_FAULTS = {1: "expected finite numbers, got NaN or infinity", 3: "expected a norm below 2^510, got a larger one"}
_SUFFIX = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64", "int8": "i8", "uint8": "u8"}


def prepare(
    rows: Rows, home: Path, model: str | None, block_rows: int, progress: Callable[[int, int | None], None] | None
) -> None:
    """Write the prepared directory of `rows`."""
    if rows.dim > LARGEST_CODED_DIM:
        raise ValueError(f"gallery: expected a dim of at most {LARGEST_CODED_DIM} for int8 codes, got {rows.dim}")
    with _new_directory(home) as partial:
        with ExitStack() as open_files:
            codes, facts = (open_files.enter_context(_Writer(partial / name)) for name in (CODES, FACTS))
            originals: _Copy | _Originals
            if isinstance(rows, FileRows):
                originals = _Originals(rows)
            else:
                originals = _Copy(open_files.enter_context(_Writer(partial / f"originals.{_SUFFIX[rows.dtype]}")), rows)
            done = 0
            for first, block in rows.blocks(block_rows, 0, None):
                for writer, values in zip((codes, facts), _quantize(block, first), strict=True):
                    writer.write(values)
                originals.add(first, block)
                done = first + len(block)
                if progress:
                    progress(done, rows.rows)
        for state in rows.files:
            state.check()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "model": model,
            "scan": "int8",
            "rows": done,
            "dim": rows.dim,
            "dtype": rows.dtype,
            "dim_word": isinstance(rows, FileRows) and rows.dim_word,
            "codes": [codes.entry(), facts.entry()],
            "originals": originals.entries(home, done),
        }
        manifest["checksum"] = manifest_checksum(manifest)
        with _Writer(partial / MANIFEST) as writer:
            writer.write_bytes(json.dumps(manifest, indent=1).encode())


def _quantize(block: "torch.Tensor", first: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Codes and facts of a block; ValueError with the row's number for one that has none."""
    from . import _ops

    values = block if block.dtype.is_floating_point else block.float()
    codes, facts, (bad, fault) = _ops.scan_quantize(values)
    if bad >= 0:
        raise ValueError(f"gallery: row {first + bad}: {_FAULTS[fault]} (dim {block.shape[1]}, {block.dtype})")
    return codes, facts


class _Writer:
    """A file of the new directory and the checksum of what is written; on the disk when it is left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checksum = new_checksum()

    def __enter__(self) -> "_Writer":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, values: "torch.Tensor") -> None:
        self.write_bytes(bytes_of(values))

    def write_bytes(self, values: Any) -> None:
        try:
            self._file.write(values)
        except OSError as error:
            raise OSError(f"{self._path}: cannot write: {error.strerror}") from error
        self._checksum.update(values)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        state = FileState.of(self._path)
        sums = {"size": state.size, "mtime_ns": state.mtime_ns, "checksum": self._checksum.hexdigest()}
        return {"path": self._path.name, **sums}


class _Copy:
    """The rows of what has none at fixed offsets, written beside the codes."""

    def __init__(self, writer: _Writer, rows: Rows) -> None:
        self._writer = writer
        self._stride = rows.dim * ITEMSIZE[rows.dtype]

    def add(self, first: int, block: "torch.Tensor") -> None:
        self._writer.write(block)

    def entries(self, home: Path, rows: int) -> list[dict[str, Any]]:
        return [{**self._writer.entry(), "offset": 0, "stride": self._stride, "rows": rows}]


class _Originals:
    """Files that stay where they are: the checksum of each one's rows."""

    def __init__(self, rows: FileRows) -> None:
        self._rows = rows
        self._checksums = [new_checksum() for _ in rows.parts]
        self._at, self._base = 0, 0  # the file that the next row is of, and its first row

    def add(self, first: int, block: "torch.Tensor") -> None:
        end = first + len(block)
        while first < end:
            part: RowFile = self._rows.parts[self._at]
            if first == self._base + part.rows:
                self._at, self._base = self._at + 1, first
                continue
            stop = min(end, self._base + part.rows)
            low = first - end + len(block)
            self._checksums[self._at].update(bytes_of(block[low : low + stop - first]))
            first = stop

    def entries(self, home: Path, rows: int) -> list[dict[str, Any]]:
        """Paths are relative to the directory where they lie beside it or below: both can then move together."""
        entries = []
        for part, state, checksum in zip(self._rows.parts, self._rows.files, self._checksums, strict=True):
            path = Path(os.path.realpath(part.path))
            stated = os.path.relpath(path, home) if path.is_relative_to(home.parent) else str(path)
            where = {"offset": part.offset, "stride": part.stride, "rows": part.rows}
            sums = {"size": state.size, "mtime_ns": state.mtime_ns, "checksum": checksum.hexdigest()}
            entries.append({"path": stated, **where, **sums})
        return entries


@contextmanager
def _new_directory(home: Path) -> Iterator[Path]:
    """A directory for one process to fill, which gets its name when it is whole; what a killed process left goes."""
    partial = home.with_name(f"{home.name}.partial")
    _refuse_filled(home)
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{home}: expected to prepare it alone, got {partial} locked by another process") from error
        try:
            _refuse_filled(home)  # another process may just have finished
            for left in partial.iterdir():
                left.unlink()
            yield partial
            os.fsync(lock)
            partial.rename(home)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)
    parent = os.open(home.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)  # the name, too, outlasts a power cut
    finally:
        os.close(parent)


def _refuse_filled(home: Path) -> None:
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise FileExistsError(f"{home}: expected a new or empty directory, got one that holds something")
