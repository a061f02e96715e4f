"""A prepared gallery: a directory with the rows' int8 codes, and a manifest of what belongs together.

manifest.json   format, version, model, dim, dtype, rows, scan; path, size and checksum of the originals and of:
codes.i8        (rows, stride) int8: row = scale * code + residual; stride is dim rounded up to 16, the rest zero
meta.f32        (rows, 3) float32: scale, norm of the residual, norm of the row, norms rounded up
originals.*     the rows themselves, only where the originals have none at fixed offsets (Parquet, arrays, ...)

A checksum is the BLAKE2b (32 bytes) of a file's rows, packed; of a file written here, of the whole file.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .gallery_rows import ITEMSIZE, FileRows, FileState, RowFile, Rows, naming

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "graceful_fast.gallery", 1
_SUFFIX = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64", "int8": "i8", "uint8": "u8"}


@dataclass(frozen=True)
class Codes:
    """The int8 copy of a prepared gallery's rows."""

    codes: FileRows
    meta: FileRows

    @property
    def stride(self) -> int:
        """Bytes of a row's codes: dim rounded up to a multiple of 16."""
        return self.codes.dim

    def blocks(
        self, rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, "torch.Tensor", "torch.Tensor"]]:
        """(first row, codes (n, stride) int8, meta (n, 3) float32) of rows [start, stop), each valid until the next.

        Columns of meta: scale, norm of the residual row - scale * code, norm of the row; norms are rounded up.
        """
        with (
            closing(self.codes.blocks(rows, start, stop)) as codes,
            closing(self.meta.blocks(rows, start, stop)) as meta,
        ):
            for (first, code), (_, numbers) in zip(codes, meta, strict=True):
                yield first, code, numbers


@dataclass(frozen=True)
class Prepared:
    """What a prepared directory holds."""

    rows: FileRows
    codes: Codes
    model: str | None
    checksums: tuple[str, ...]
    """Of the files of `rows`, then of codes and meta."""


def prepare(
    rows: Rows, directory: Path, model: str | None, block_rows: int, progress: Callable[[int, int | None], None] | None
) -> None:
    """Write the prepared directory of `rows`."""
    from . import _ops

    with _new_directory(directory) as partial:
        fixed = rows if isinstance(rows, FileRows) else None
        originals = f"originals.{_SUFFIX[rows.dtype]}"
        names = ["codes.i8", "meta.f32"] + ([] if fixed else [originals])
        hashes = {name: _blake() for name in names}
        of_parts = [_blake() for _ in fixed.parts] if fixed else []
        files = {name: (partial / name).open("wb") for name in names}
        done = 0
        try:
            for first, block in rows.blocks(block_rows, 0, None):
                codes, meta = _ops.scan_quantize(block)
                _refuse_faults(block, meta, first, rows)
                written = {"codes.i8": codes, "meta.f32": meta} | ({} if fixed else {originals: block})
                for name, tensor in written.items():
                    view = bytes_of(tensor)
                    files[name].write(view)
                    hashes[name].update(view)
                if fixed:
                    _hash_parts(fixed.parts, of_parts, first, block)
                done = first + len(block)
                if progress:
                    progress(done, rows.rows)
        finally:
            for file in files.values():
                _settle(file)
        for state in rows.files:
            state.check()
        stated = [_entry(partial, name, hashes[name].hexdigest()) for name in names]
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": model,
            "scan": "int8",
            "rows": done,
            "dim": rows.dim,
            "dtype": rows.dtype,
            "dim_word": bool(fixed and fixed.dim_word),
            "codes": stated[:2],
            "originals": _originals(fixed, of_parts, directory) if fixed else _own_original(stated[2], rows, done),
        }
        with (partial / MANIFEST).open("w", encoding="utf-8") as text:
            json.dump(manifest, text, indent=1)
            _settle(text)


def open_prepared(directory: Path) -> Prepared:
    """Read the manifest and check sizes; originals of another time of modification are compared by checksum."""
    path = directory / MANIFEST
    with naming(path, "the manifest of a prepared gallery"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if (found := (manifest["format"], manifest["version"])) != (_FORMAT, _VERSION):
            raise ValueError(
                f"{path}: expected format {_FORMAT!r} version {_VERSION}, got {found[0]!r} version {found[1]!r}"
            )
        count, dim, dtype, model = (manifest[name] for name in ("rows", "dim", "dtype", "model"))
        good = type(count) is type(dim) is int and count >= 0 and dim >= 1 and dtype in ITEMSIZE
        if not good or not isinstance(model, (str, type(None))) or type(manifest["dim_word"]) is not bool:
            raise ValueError(f"{path}: expected rows, dim, dtype, model, got {count!r}, {dim!r}, {dtype!r}, {model!r}")
        stride = -(-dim // 16) * 16
        codes, meta = (
            _written(directory / name, entry, row, count)
            for name, entry, row in zip(("codes.i8", "meta.f32"), manifest["codes"], (stride, 12), strict=True)
        )
        parts: list[RowFile] = []
        states: list[FileState] = []
        changed: list[int] = []
        for entry in manifest["originals"]:
            part = RowFile(
                Path(directory, entry["path"]), *(_count(entry[name]) for name in ("offset", "stride", "rows"))
            )
            state = FileState.of(part.path)
            if state.size != entry["size"]:
                raise ValueError(f"{part.path}: changed since {path}: expected {entry['size']} bytes, got {state.size}")
            if state.mtime_ns != entry["mtime_ns"]:
                changed.append(len(parts))
            parts.append(part)
            states.append(state)
        checksums = [str(entry["checksum"]) for entry in (*manifest["originals"], *manifest["codes"])]
        rows = FileRows("prepared", tuple(parts), dim, dtype, tuple(states), manifest["dim_word"])
        if rows.rows != count:
            raise ValueError(f"{path}: expected {count} rows in its originals, got {rows.rows}")
    for index in changed:
        check_rows(rows, index, checksums[index], path)
    return Prepared(
        rows,
        Codes(
            FileRows("codes", (RowFile(codes.path, 0, stride, count),), stride, "int8", (codes,)),
            FileRows("meta", (RowFile(meta.path, 0, 12, count),), 3, "float32", (meta,)),
        ),
        model,
        tuple(checksums),
    )


def check_rows(rows: FileRows, index: int, expected: str, source: object) -> None:
    """ValueError unless the rows of one of the files have the checksum."""
    part = rows.parts[index]
    alone = FileRows(rows.format, (part,), rows.dim, rows.dtype, (), rows.dim_word)
    checksum = _blake()
    for _, block in alone.blocks(max(1, (16 << 20) // rows.row_bytes), 0, None):
        checksum.update(bytes_of(block))
    if (got := checksum.hexdigest()) != expected:
        raise ValueError(f"{part.path}: changed since {source}: expected rows of BLAKE2b {expected}, got {got}")


def verify(prepared: Prepared, directory: Path) -> None:
    """Compare all files with their checksums; ValueError that names the first that differs."""
    source = directory / MANIFEST
    originals = len(prepared.rows.parts)
    for index in range(originals):
        check_rows(prepared.rows, index, prepared.checksums[index], source)
    for rows, expected in zip((prepared.codes.codes, prepared.codes.meta), prepared.checksums[originals:], strict=True):
        check_rows(rows, 0, expected, source)


@contextmanager
def _new_directory(directory: Path) -> Iterator[Path]:
    """A directory for one process to fill, which gets its name when it is whole: no half of one is ever seen.

    What a process that was killed left is cleared.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{directory}: another process prepares it (it has {partial} locked)") from error
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            partial.rmdir() if not any(partial.iterdir()) else None
            raise FileExistsError(f"{directory}: expected a new or empty directory, got one that holds something")
        for left in partial.iterdir():
            left.unlink()
        try:
            yield partial
            os.fsync(lock)
            partial.rename(directory)
            _sync_directory(directory.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _blake() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=32)


def bytes_of(tensor: "torch.Tensor") -> Any:
    """The values' bytes, row after row."""
    import torch

    return tensor.contiguous().view(torch.uint8).numpy()


def _hash_parts(parts: tuple[RowFile, ...], hashes: list[Any], first: int, block: "torch.Tensor") -> None:
    """Feed the block's rows to the hash of the file each comes from."""
    base = 0
    for part, checksum in zip(parts, hashes, strict=True):
        low, high = max(first - base, 0), min(first - base + len(block), part.rows)
        if low < high:
            checksum.update(bytes_of(block[base + low - first : base + high - first]))
        base += part.rows


def _refuse_faults(block: "torch.Tensor", meta: "torch.Tensor", first: int, rows: Rows) -> None:
    import torch

    if not torch.isfinite(meta).all():
        row = int((~torch.isfinite(meta).all(1)).nonzero()[0, 0])
        what = "a norm beyond float32" if block[row].isfinite().all() else "NaN or infinity"
        raise ValueError(
            f"gallery: row {first + row}: expected finite numbers, got {what} ({rows.format}, dim {rows.dim})"
        )


def _entry(directory: Path, name: str, checksum: str) -> dict[str, Any]:
    state = FileState.of(directory / name)
    return {"path": name, "size": state.size, "mtime_ns": state.mtime_ns, "checksum": checksum}


def _own_original(entry: dict[str, Any], rows: Rows, count: int) -> list[dict[str, Any]]:
    return [{**entry, "offset": 0, "stride": rows.dim * ITEMSIZE[rows.dtype], "rows": count}]


def _originals(rows: FileRows, hashes: list[Any], directory: Path) -> list[dict[str, Any]]:
    """Paths relative to the prepared directory where they lie beside it or below: both can then move together."""
    home = Path(os.path.realpath(directory))
    entries = []
    for part, state, checksum in zip(rows.parts, rows.files, hashes, strict=True):
        path = Path(os.path.realpath(part.path))
        stated = os.path.relpath(path, home) if path.is_relative_to(home.parent) else str(path)
        where = {"offset": part.offset, "stride": part.stride, "rows": part.rows}
        stats = {"size": state.size, "mtime_ns": state.mtime_ns, "checksum": checksum.hexdigest()}
        entries.append({"path": stated, **where, **stats})
    return entries


def _written(path: Path, entry: dict[str, Any], row: int, rows: int) -> FileState:
    state = FileState.of(path)
    if state.size != rows * row or state.size != entry["size"]:
        raise ValueError(f"{path}: expected {rows * row} bytes ({rows} rows of {row}), got {state.size}")
    return state


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"expected a count, got {value!r}")
    return value
