"""Gallery: rows of embeddings in memory, in files or in a stream, read block by block in bounded memory."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import gallery_prepared, gallery_writing
from ._arrays import as_numpy, bytes_of
from ._progress import Progress, progress_of
from .gallery_rows import ITEMSIZE, ArrayRows, Blocks, FileState, Rows, check_range
from .gallery_sources import open_rows

if TYPE_CHECKING:
    import torch


class Gallery:
    """Rows of embeddings of one dim and dtype, read in blocks so that memory stays bounded whatever their number.

    Made by `Gallery.open`. `len(gallery)` is the number of rows, N.

    Attributes:
        dim: values in a row.
        dtype: torch dtype of the rows: float32, float16, bfloat16, float64, int8 or uint8.
        nbytes: bytes of all rows.
        array: (N, dim) tensor where the rows lie in memory, else None.
        codes: the int8 copy of a prepared gallery, else None: `codes.blocks(rows, start, stop)` yields
            (first row, codes (n, stride) int8, facts (n, 3) float32: scale, norm of the residual, norm of the row).
        files: (path, size, mtime_ns) of each file it is read from, as it was when opened.
        model: name of the model that a prepared gallery was made with, or None.
    """

    def __init__(
        self,
        rows: Rows,
        prepared: gallery_prepared.Prepared | None = None,
        codes: gallery_prepared.Codes | None = None,
    ) -> None:
        self._rows = rows
        self._prepared = prepared
        self._codes = codes

    @classmethod
    def open(
        cls,
        source: Any,
        *,
        key: str | None = None,
        dtype: Any = None,
        dim: int | None = None,
        offset: int = 0,
        model: str | None = None,
    ) -> "Gallery":
        """Open a gallery; of files only headers are read.

        Args:
            source: a path, a list of paths in the order given, a glob pattern or a directory (both in natural order:
                part-2 before part-10), a directory of `prepare`, a (N, dim) array (torch, numpy, DLPack), or record
                batches of Arrow (pyarrow Table, Dataset, RecordBatchReader; polars). Files: .npy, .npz, .fbin, .f16bin,
                .u8bin, .i8bin, .fvecs, .bvecs, .safetensors, .pt, flat FAISS indexes (.faiss, .index, or by their first
                bytes), .hdf5 (extra `stores`), .parquet (extra `stores`), and any other name as raw rows.
            key: which array: a dataset of .hdf5 (default "train"), a tensor of .safetensors or .pt, a member of .npz, a
                column of Parquet or Arrow. Needed where there are several.
            dtype: dtype of a raw file; of anything else, what it must be.
            dim: values in a row of a raw file; of anything else, what it must be.
            offset: bytes of a raw file before its first row.
            model: of a prepared directory: the name it must have been prepared with.

        Returns:
            Gallery.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is not what its name or header says, with its path, what was expected and what was found.
            TypeError: an array of another dtype.
            ImportError: the format needs the extra `stores`.

        Example:
            >>> import numpy as np, tempfile, pathlib
            >>> import graceful_fast as gf
            >>> path = pathlib.Path(tempfile.mkdtemp(), "gallery.npy")
            >>> np.save(path, np.arange(12, dtype=np.float32).reshape(4, 3))
            >>> gallery = gf.Gallery.open(path)
            >>> len(gallery), gallery.dim, gallery.dtype
            (4, 3, torch.float32)
            >>> [(first, len(block)) for first, block in gallery.blocks(3)]
            [(0, 3), (3, 1)]
            >>> gallery.take([1, 3]).tolist()
            [[3.0, 4.0, 5.0], [9.0, 10.0, 11.0]]
        """
        if isinstance(source, Gallery):
            return source
        if dim is not None and (type(dim) is not int or dim < 1):
            raise ValueError(f"dim: expected an integer of at least 1, got {dim!r}")
        name = None if dtype is None else _dtype_name(dtype)
        home = _home_of(source)
        prepared = gallery_prepared.open_prepared(home) if home else None
        rows = prepared.rows if prepared else open_rows(source, key, name, dim, offset)
        what = home or (rows.files[0].path if rows.files else "gallery")
        if dim not in (None, rows.dim):
            raise ValueError(f"{what}: expected dim {dim}, got {rows.dim}")
        if name not in (None, rows.dtype):
            raise ValueError(f"{what}: expected dtype {name}, got {rows.dtype}")
        if model is not None and model != (prepared.model if prepared else None):
            got = f"one of {prepared.model!r}" if prepared else "one that is not prepared and so names no model"
            raise ValueError(f"{what}: expected a gallery of model {model!r}, got {got}")
        return cls(rows, prepared, prepared.codes if prepared else None)

    def __len__(self) -> int:
        if self._rows.rows is None:
            raise ValueError(
                f"gallery: expected something of known length, got a {self._rows.format}; prepare() it first"
            )
        return self._rows.rows

    def __repr__(self) -> str:
        rows = "?" if self._rows.rows is None else self._rows.rows
        codes = ", int8 codes" if self.codes else ""
        return f"Gallery({rows} x {self.dim}, {self._rows.dtype}, {self._rows.format}{codes})"

    @property
    def dim(self) -> int:  # noqa: D102
        return self._rows.dim

    @property
    def dtype(self) -> "torch.dtype":  # noqa: D102
        import torch

        dtype: torch.dtype = getattr(torch, self._rows.dtype)
        return dtype

    @property
    def nbytes(self) -> int:  # noqa: D102
        return len(self) * self.dim * ITEMSIZE[self._rows.dtype]

    @property
    def array(self) -> "torch.Tensor | None":  # noqa: D102
        return self._rows.array if isinstance(self._rows, ArrayRows) else None

    @property
    def files(self) -> tuple[FileState, ...]:  # noqa: D102
        codes = (*self.codes.codes.files, *self.codes.facts.files) if self.codes else ()
        return *self._rows.files, *codes

    @property
    def codes(self) -> gallery_prepared.Codes | None:  # noqa: D102
        return self._codes

    @property
    def model(self) -> str | None:  # noqa: D102
        return self._prepared.model if self._prepared else None

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Blocks:
        """Rows [start, stop) in order, as (first row, block (n, dim)) with n = `rows` but for the last block.

        Of files the next block is read meanwhile; a block is valid until the next one is asked for. Two blocks are in
        memory at most. Closing the iterator ends the reading.

        Raises:
            ValueError: rows < 1, a range outside the gallery, a row that the format forbids (with its number), a second
                pass over a stream.
            OSError: a file that changed since it was opened, or cannot be read.
        """
        check_range(rows, start, stop, self._rows.rows)
        self.check_unchanged()
        return self._rows.blocks(rows, start, stop)

    def take(self, rows: Any) -> "torch.Tensor":
        """(n, dim) rows of these numbers, (n,) ascending integers, in one new tensor; neighbours are read together.

        Raises:
            ValueError: numbers that are no ascending rows of the gallery; a row that the format forbids.
            OSError: a file that cannot be read.
        """
        numbers = as_numpy(rows, "rows")
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise ValueError(f"rows: expected (n,) integers, got shape {numbers.shape} of {numbers.dtype}")
        wanted = np.ascontiguousarray(numbers, dtype=np.int64)
        if wanted.size and (wanted[0] < 0 or wanted[-1] >= len(self) or (np.diff(wanted) < 0).any()):
            raise ValueError(f"rows: expected ascending rows of 0 to {len(self) - 1}, got {wanted[0]} to {wanted[-1]}")
        return self._rows.take(wanted)

    def fingerprint(self) -> str:
        """What identifies the rows, as 32 hexadecimal digits: a key for results computed from them.

        Of files: paths, sizes, times of modification, offsets, dtype. Of arrays and streams: a checksum of the values.
        """
        checksum = hashlib.sha256()
        files = [(os.fsencode(s.path.absolute()).hex(), s.size, s.mtime_ns) for s in self._rows.files]
        rows = self._rows
        checksum.update(json.dumps([rows.format, rows.dtype, rows.dim, rows.layout, files]).encode())
        if not files:
            for _, block in self.blocks(self._block_rows()):
                checksum.update(bytes_of(block))
        return checksum.hexdigest()[:32]

    def check_unchanged(self) -> None:
        """OSError, with sizes and times of modification, if a file has changed since it was opened."""
        for state in self.files:
            state.check()

    def load(self) -> "Gallery":
        """The same gallery with its rows, and codes where it has them, in memory: for many searches of few queries.

        Raises:
            OSError, ValueError: as `blocks`.
        """
        if self.array is not None:
            return self
        rows = ArrayRows(_read(self.blocks(self._block_rows()), len(self), self.dim))
        codes = self._codes
        if codes is not None:
            parts = (
                ArrayRows(_read(part.blocks(self._block_rows(), 0, None), len(self), part.dim))
                for part in (codes.codes, codes.facts)
            )
            codes = gallery_prepared.Codes(*parts)
        return Gallery(rows, self._prepared, codes)

    def _block_rows(self) -> int:
        return max(1, (16 << 20) // (self.dim * ITEMSIZE[self._rows.dtype]))

    def verify(self) -> None:
        """Read all of a prepared gallery and compare it with its checksums.

        Raises:
            ValueError: the gallery is not prepared, or a file differs, which is named.
        """
        if self._prepared is None:
            raise ValueError("gallery: expected a prepared gallery, got one without checksums")
        self._prepared.verify()

    def prepare(
        self,
        directory: str | os.PathLike[str],
        scan: str = "int8",
        *,
        model: str | None = None,
        progress: bool | Progress = False,
        block_bytes: int = 64 << 20,
    ) -> "Gallery":
        """Write the int8 copy that a scan reads in place of the rows: a quarter of float32's bytes, the same answers.

        The directory appears when it is whole. What a process that was killed left is written anew. The originals are
        needed beside it; of what has no rows at fixed offsets (arrays, Parquet, streams) it holds a copy.

        Args:
            directory: a new or empty one.
            scan: "int8".
            model: name of the model that made the embeddings, which `open(directory, model=...)` then insists on.
            progress: print progress, or call with (rows done, rows in all).
            block_bytes: bytes of rows read at a time.

        Returns:
            Gallery: the prepared one.

        Raises:
            ValueError: NaN, infinity or a norm beyond float32 in a row, with its number.
            OSError: a file cannot be read or written, the directory is not empty, another process prepares it.

        Example:
            >>> import numpy as np, tempfile, pathlib
            >>> import graceful_fast as gf
            >>> rows = np.eye(3, dtype=np.float32)
            >>> directory = pathlib.Path(tempfile.mkdtemp(), "prepared")
            >>> gf.Gallery.open(rows).prepare(directory, model="resnet50")
            Gallery(3 x 3, float32, prepared, int8 codes)
            >>> gf.Gallery.open(directory, model="resnet50").take([1])
            tensor([[0., 1., 0.]])
        """
        if scan != "int8":
            raise ValueError(f"scan: expected 'int8', got {scan!r}")
        if block_bytes < 1:
            raise ValueError(f"block_bytes: expected at least 1, got {block_bytes}")
        self.check_unchanged()
        block_rows = max(1, block_bytes // (self.dim * max(4, ITEMSIZE[self._rows.dtype])))
        home = Path(os.path.realpath(directory))
        gallery_writing.prepare(self._rows, home, model, block_rows, progress_of(progress, "prepared"))
        return Gallery.open(home, model=model)


def _read(blocks: Blocks, rows: int, columns: int) -> "torch.Tensor":
    """All rows of the blocks in one tensor."""
    import torch

    whole = None
    for first, block in blocks:
        if whole is None:
            whole = torch.empty((rows, columns), dtype=block.dtype)
        whole[first : first + len(block)] = block
    if whole is None:
        raise ValueError("gallery: expected at least one row, got none")
    return whole


def _home_of(source: Any) -> Path | None:
    """The directory of a prepared gallery, if `source` is one."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    return path if (path / gallery_prepared.MANIFEST).is_file() else None


def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    name = name if name in ITEMSIZE else np.dtype(dtype).name
    if name not in ITEMSIZE:
        raise ValueError(f"dtype: expected one of {', '.join(ITEMSIZE)}, got {dtype}")
    return name
