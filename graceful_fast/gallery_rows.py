"""Where a gallery's rows come from: fixed offsets in files, an array in memory, or a stream of batches."""

import mmap
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1}
"""Bytes of a value, by the dtype's name in numpy and torch."""

LARGEST_CODED_DIM = 2**17
"""Beyond it a sum of products of int8 codes may leave int32."""

Blocks = Generator[tuple[int, "torch.Tensor"], None, None]


class FileState(NamedTuple):
    """What tells cheaply whether a file is still the one that was opened."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state now; OSError that starts with the path unless it is a regular file."""
        try:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file")
            if not path.is_file():
                raise OSError(f"{path}: expected a gallery file, got something that is no regular file")
            stat = path.stat()
        except OSError as error:
            raise error if error.strerror is None else OSError(f"{path}: {error.strerror}") from error
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def check(self) -> None:
        """OSError if the file has changed since."""
        now = FileState.of(self.path)
        if now != self:
            raise OSError(
                f"{self.path}: changed since it was opened: expected {self.size} bytes of mtime_ns {self.mtime_ns}, "
                f"got {now.size} bytes of mtime_ns {now.mtime_ns}"
            )


class RowFile(NamedTuple):
    """Rows at a fixed stride in a file; offset and stride in bytes."""

    path: Path
    offset: int
    stride: int
    rows: int


class Rows(Protocol):
    """Rows of one dim and dtype, whatever they lie in."""

    @property
    def format(self) -> str:
        """What they lie in, in a word."""

    @property
    def rows(self) -> int | None:
        """How many; None of a stream that has not said so."""

    @property
    def dim(self) -> int:
        """Values in a row."""

    @property
    def dtype(self) -> str:
        """A key of ITEMSIZE."""

    @property
    def files(self) -> tuple[FileState, ...]:
        """The files they come from, as they were when opened."""

    @property
    def layout(self) -> list[Any]:
        """Where in the files they lie, for a fingerprint."""

    def blocks(self, rows: int, start: int, stop: int | None) -> Blocks:
        """Rows [start, stop) in blocks of `rows`, each valid until the next."""

    def take(self, rows: np.ndarray) -> "torch.Tensor":
        """The rows of these ascending numbers, in new memory."""


@dataclass(frozen=True)
class FileRows:
    """Rows at fixed offsets in files, read ahead by a thread (csrc/reader.h)."""

    format: str
    parts: tuple[RowFile, ...]
    dim: int
    dtype: str
    files: tuple[FileState, ...]
    dim_word: bool = False
    """Rows begin with their dim as int32, which is checked while reading."""

    @property
    def rows(self) -> int:  # noqa: D102
        return sum(part.rows for part in self.parts)

    @property
    def layout(self) -> list[Any]:  # noqa: D102
        return [part[1:] for part in self.parts]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values."""
        return self.dim * ITEMSIZE[self.dtype]

    def blocks(self, rows: int, start: int, stop: int | None) -> Blocks:  # noqa: D102
        import torch

        from . import _C

        stop = self.rows if stop is None else stop
        rows = min(rows, stop - start)
        if rows == 0:
            return
        buffers = [torch.empty(rows * self.row_bytes, dtype=torch.uint8) for _ in range(2)]
        blocks = [buffer.view(getattr(torch, self.dtype)).view(rows, self.dim) for buffer in buffers]
        memory = (buffers[0].numpy(), buffers[1].numpy())
        reader = _C.Reader(self._where(), self.row_bytes, memory, start, stop, self._dim_word())
        try:
            while (block := reader.next()) is not None:
                buffer, first, count = block
                yield first, blocks[buffer][:count]
        finally:
            reader.close()

    def take(self, rows: np.ndarray) -> "torch.Tensor":  # noqa: D102
        import torch

        from . import _C

        taken = torch.empty((len(rows), self.dim), dtype=getattr(torch, self.dtype))
        memory = taken.view(torch.uint8).numpy()
        _C.read_rows(self._where(), self.row_bytes, rows, memory, self._dim_word())
        return taken

    def _where(self) -> list[tuple[bytes, int, int, int]]:
        return [(os.fsencode(part.path), *part[1:]) for part in self.parts]

    def _dim_word(self) -> int | None:
        return self.dim if self.dim_word else None


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in memory; blocks are views of it."""

    array: "torch.Tensor"
    format: str = "array"
    files: tuple[FileState, ...] = ()
    mapped: mmap.mmap | None = None
    """The file that the array is a map of: after each block its pages leave the resident set."""

    @property
    def rows(self) -> int:  # noqa: D102
        return self.array.shape[0]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.array.shape[1]

    @property
    def dtype(self) -> str:  # noqa: D102
        return str(self.array.dtype).removeprefix("torch.")

    @property
    def layout(self) -> list[Any]:  # noqa: D102
        return [self.rows]

    def blocks(self, rows: int, start: int, stop: int | None) -> Blocks:  # noqa: D102
        stop = self.rows if stop is None else stop
        for first in range(start, stop, rows):
            yield first, self.array[first : min(first + rows, stop)]
            self._release()

    def take(self, rows: np.ndarray) -> "torch.Tensor":  # noqa: D102
        import torch

        taken = self.array[torch.from_numpy(rows)]
        self._release()
        return taken

    def _release(self) -> None:
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


@dataclass
class StreamRows:
    """Rows that a library decodes batch by batch: no row has an offset of its own."""

    format: str
    rows: int | None
    dim: int
    dtype: str
    read: Callable[[int, int | None, int], Iterator[np.ndarray]]
    """read(start, stop, rows): arrays (at most about `rows`, dim) that make up rows [start, stop)."""
    files: tuple[FileState, ...] = ()
    layout: list[Any] = field(default_factory=list)
    unit: Callable[[np.ndarray], np.ndarray] = np.zeros_like
    """The unit that each row lies in (a row group, a chunk), ascending: units that nobody wants are not decoded."""
    once: bool = False
    """One pass is all there is."""
    spent: bool = False

    def blocks(self, rows: int, start: int, stop: int | None) -> Blocks:  # noqa: D102
        import torch

        if self.once and self.spent:
            raise ValueError(
                f"gallery: expected something that can be read again, got a {self.format} that was read already; "
                "prepare() it, or write it to a file"
            )
        self.spent = True
        stop = self.rows if stop is None else stop
        block = np.empty((rows if stop is None else min(rows, stop - start), self.dim), self.dtype)
        first, filled = start, 0
        for batch in self.read(start, stop, max(1, rows // 4)):  # a batch beside the block: a quarter more memory
            while len(batch):
                n = min(len(block) - filled, len(batch))
                block[filled : filled + n] = batch[:n]
                batch, filled = batch[n:], filled + n
                if filled == len(block):
                    yield first, torch.from_numpy(block)
                    first, filled = first + filled, 0
        if filled:
            yield first, torch.from_numpy(block[:filled])
        if stop is not None and first + filled != stop:
            name = self.files[0].path if self.files else "gallery"
            raise ValueError(f"{name}: expected rows up to {stop}, got {first + filled} rows from the {self.format}")

    def take(self, rows: np.ndarray) -> "torch.Tensor":  # noqa: D102
        import torch

        taken = torch.empty((len(rows), self.dim), dtype=getattr(torch, self.dtype))
        ends = [*(np.flatnonzero(np.diff(self.unit(rows)) > 1) + 1), len(rows)]
        for low, high in zip([0, *ends], ends, strict=False):
            if low < high:
                self._take(rows[low:high], taken[low:high])
        return taken

    def _take(self, rows: np.ndarray, taken: "torch.Tensor") -> None:
        import torch

        for first, block in self.blocks(4096, int(rows[0]), int(rows[-1]) + 1):
            low, high = np.searchsorted(rows, (first, first + len(block)))
            taken[low:high] = block[torch.from_numpy(rows[low:high] - first)]


def mapping_of(array: Any) -> mmap.mmap | None:
    """The map of a file that numpy.memmap has made and the array is a view of; None if it has pages of its own."""
    mode = None
    while array is not None and not isinstance(array, mmap.mmap):
        mode = getattr(array, "mode", mode)
        array = getattr(array, "base", None)
    return array if mode in ("r", "r+", "w+") else None


def check_range(rows: int, start: int, stop: int | None, total: int | None) -> None:
    """ValueError unless blocks of `rows` rows of [start, stop) can be had of `total`."""
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")
    if not 0 <= start <= (start if stop is None else stop) <= (sys.maxsize if total is None else total):
        raise ValueError(f"start, stop: expected 0 <= start <= stop <= {total}, got {start} and {stop}")


def dtype_name(dtype: Any, source: object) -> str:
    """The name in ITEMSIZE of a numpy dtype; ValueError that starts with `source`."""
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise ValueError(f"{source}: expected numbers, got Python objects, which are never loaded")
    if not dtype.isnative:
        raise ValueError(f"{source}: expected little-endian numbers, got {dtype.str!r}")
    if dtype.name not in ITEMSIZE:
        raise ValueError(f"{source}: expected a dtype of {', '.join(ITEMSIZE)}, got {dtype}")
    return str(dtype.name)


@contextmanager
def naming(path: object, expected: str) -> Iterator[None]:
    """What a library raises on a file it cannot read, as OSError or ValueError that starts with the path."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if str(error).startswith(f"{path}: "):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{path}: expected {expected}, got {type(error).__name__}: {error}") from error


def optional(name: str, purpose: str) -> Any:
    """A module of the extra `stores`, or an ImportError that says how to get it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{purpose} needs {package}: pip install 'graceful-fast[stores]'", name=package) from error
