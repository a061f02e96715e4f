"""A prepared gallery: a directory with the rows' int8 codes, and a manifest of what belongs together.

manifest.json   format, version, model, scan, rows, dim, dtype; size and checksum of the originals and of:
codes.i8        (rows, stride) int8: row = scale * code + residual; stride is dim rounded up to 16, the rest zero
facts.f32       (rows, 3) float32: scale, norm of the residual, norm of the row, norms rounded up
originals.*     the rows themselves, only where the originals have none at fixed offsets (Parquet, arrays, ...)

Checksums are SHA-256: of a file's rows, packed; of the manifest itself without the originals' paths, which
may be edited when the originals have moved.
"""

import hashlib
import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arrays import bytes_of
from .gallery_rows import ArrayRows, FileRows, FileState, RowFile, check_range, naming

if TYPE_CHECKING:
    import torch

MANIFEST, CODES, FACTS = "manifest.json", "codes.i8", "facts.f32"
FORMAT, VERSION = "graceful_fast.gallery", 1


@dataclass(frozen=True)
class Codes:
    """The int8 copy of a prepared gallery's rows."""

    codes: FileRows | ArrayRows
    facts: FileRows | ArrayRows

    @property
    def stride(self) -> int:
        """Bytes of a row's codes: dim rounded up to a multiple of 16."""
        return self.codes.dim

    def blocks(
        self, rows: int, start: int = 0, stop: int | None = None
    ) -> Generator[tuple[int, "torch.Tensor", "torch.Tensor"], None, None]:
        """(first row, codes (n, stride) int8, facts (n, 3) float32) of rows [start, stop), each valid until the next.

        Columns of facts: scale, norm of the residual row - scale * code, norm of the row; norms are rounded up.
        """
        check_range(rows, start, stop, self.codes.rows)
        return self._blocks(rows, start, stop)

    def _blocks(
        self, rows: int, start: int, stop: int | None
    ) -> Generator[tuple[int, "torch.Tensor", "torch.Tensor"], None, None]:
        with closing(self.codes.blocks(rows, start, stop)) as c, closing(self.facts.blocks(rows, start, stop)) as f:
            for (first, codes), (_, facts) in zip(c, f, strict=True):
                yield first, codes, facts


@dataclass(frozen=True)
class Prepared:
    """What a prepared directory holds."""

    home: Path
    model: str | None
    rows: FileRows
    codes: Codes
    checksums: tuple[str, ...]
    """Of the files of `rows`, then of codes and facts."""

    def verify(self) -> None:
        """Read all files and compare their checksums; ValueError that names the first that differs."""
        originals = len(self.rows.parts)
        for index in range(originals):
            self.verify_original(index)
        for rows, expected in zip((self.codes.codes, self.codes.facts), self.checksums[originals:], strict=True):
            assert isinstance(rows, FileRows)  # a loaded gallery keeps the codes in memory beside these
            _verify(rows, expected, self.home)

    def verify_original(self, index: int) -> None:
        """Read one file of the originals and compare its checksum."""
        rows = self.rows
        alone = FileRows(rows.format, (rows.parts[index],), rows.dim, rows.dtype, (), rows.dim_word)
        _verify(alone, self.checksums[index], self.home)


def open_prepared(home: Path) -> Prepared:
    """Read the manifest and check sizes; originals of another time of modification are compared by checksum."""
    path = home / MANIFEST
    with naming(path, "the manifest of a prepared gallery"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if (found := (manifest["format"], manifest["version"])) != (FORMAT, VERSION):
            raise ValueError(f"{path}: expected {FORMAT!r} of version {VERSION}, got {found[0]!r} of {found[1]!r}")
        if (expected := manifest_checksum(manifest)) != manifest["checksum"]:
            raise ValueError(f"{path}: damaged: expected checksum {expected}, got {manifest['checksum']!r}")
        if not all(isinstance(entry["path"], str) for entry in manifest["originals"]):
            raise ValueError(f"{path}: expected the path of each original, got {manifest['originals']!r}")
    prepared = _prepared(home, manifest)
    for index, (state, entry) in enumerate(zip(prepared.rows.files, manifest["originals"], strict=True)):
        if state.mtime_ns != entry["mtime_ns"]:
            prepared.verify_original(index)
    return prepared


def _prepared(home: Path, manifest: dict[str, Any]) -> Prepared:
    from ._ops import code_stride

    count, dim, originals = manifest["rows"], manifest["dim"], manifest["originals"]
    paths = [Path(home, entry["path"]) for entry in originals]
    states = [_state(path, entry) for path, entry in zip(paths, originals, strict=True)]
    parts = [RowFile(p, e["offset"], e["stride"], e["rows"]) for p, e in zip(paths, originals, strict=True)]
    stride = code_stride(dim)
    codes, facts = (_state(home / entry["path"], entry) for entry in manifest["codes"])
    return Prepared(
        home,
        manifest["model"],
        FileRows("prepared", tuple(parts), dim, manifest["dtype"], tuple(states), manifest["dim_word"]),
        Codes(
            FileRows("codes", (RowFile(codes.path, 0, stride, count),), stride, "int8", (codes,)),
            FileRows("facts", (RowFile(facts.path, 0, 12, count),), 3, "float32", (facts,)),
        ),
        tuple(entry["checksum"] for entry in (*originals, *manifest["codes"])),
    )


def _state(path: Path, entry: dict[str, Any]) -> FileState:
    state = FileState.of(path)
    if state.size != entry["size"]:
        raise ValueError(f"{path}: changed since it was prepared: expected {entry['size']} bytes, got {state.size}")
    return state


def _verify(rows: FileRows, expected: str, home: Path) -> None:
    checksum = new_checksum()
    for _, block in rows.blocks(max(1, (16 << 20) // rows.row_bytes), 0, None):
        checksum.update(bytes_of(block))
    if (got := checksum.hexdigest()) != expected:
        path = rows.parts[0].path
        raise ValueError(f"{path}: changed since {home} was prepared: expected rows of SHA-256 {expected}, got {got}")


def new_checksum() -> "hashlib._Hash":
    """The checksum of all files of a prepared gallery: with a CPU's instructions for it, twice as fast as BLAKE2b."""
    return hashlib.sha256()


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """Of everything in the manifest but itself and the originals' paths."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    content["originals"] = [{**entry, "path": None} for entry in manifest["originals"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
