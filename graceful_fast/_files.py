"""Files of the command line: arrays (mapped, never unpickled), names, results. Errors start with the path."""

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

_MAGIC = b"\x93NUMPY"


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory; OSError or ValueError that starts with the path."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise OSError(f"{path}: expected a .npy file, got something that is no regular file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from error
    if not start:
        raise ValueError(f"{path}: expected a .npy file, got an empty file")
    if start != _MAGIC:
        kind = "an archive (.npz); save one array with numpy.save" if zipfile.is_zipfile(path) else "another format"
        raise ValueError(f"{path}: expected a .npy file, got {kind}")
    try:
        with np.errstate(all="ignore"):  # a shape whose product overflows is an error already
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises half a dozen types on bytes that are no valid header
        raise ValueError(f"{path}: {_reason(error)}") from error
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{path}: expected at least one row, got shape {array.shape}")
    return array


def read_names(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without line ends and byte order mark; empty lines at the end do not count."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: expected one name a line, got an empty file")
    return lines


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, under a temporary name until it is whole: a reader never sees half of it.

    A link stays one, what it names is replaced. A device or a pipe is written to: a rename would destroy it.
    """
    in_place = os.path.exists(path) and not os.path.isfile(path)
    target = path if in_place else Path(os.path.realpath(path))
    written = target if in_place else target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        file = written.open("wb")
        try:
            with file:
                yield file
            if not in_place:
                written.replace(target)
        finally:
            if not in_place:
                written.unlink(missing_ok=True)
    except OSError as error:
        if error.strerror is None:  # it has its own words
            raise
        raise OSError(f"{path}: cannot write: {error.strerror}") from error


@contextmanager
def json_output(target: Path | None) -> Iterator[Callable[[dict[str, Any]], object]]:
    """What writes the result as JSON: to a file, to stdout for `-`, nowhere for None.

    The file is opened first: a name that cannot be written is known before the work is done.
    """

    def text(content: dict[str, Any]) -> str:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    if target is None:
        yield lambda content: None
    elif str(target) == "-":
        yield lambda content: sys.stdout.write(text(content))
    else:
        with replacing(target) as file:
            yield lambda content: file.write(text(content).encode())


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[tuple[str, Path | None]]) -> None:
    """ValueError if two results would go to one file, or a result to the file of an input."""
    taken = {os.path.realpath(path): option for option, path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None or str(path) == "-" or (os.path.exists(path) and not os.path.isfile(path)):
            continue
        other = taken.setdefault(os.path.realpath(path), option)
        if other != option:
            raise ValueError(f"{option} {path}: expected another file than that of {other}")


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 file as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def _reason(error: Exception) -> str:
    text = str(error)
    if "mmap length" in text or text.startswith("EOF:"):
        return "truncated: the file is shorter than its header says"
    if "Object arrays" in text or "Array can't be memory-mapped" in text:
        return "holds pickled Python objects, which are never loaded; save a numeric array"
    if "cannot mmap an empty" in text:
        return "expected at least one row, got none"
    return "not a readable .npy file: its header is damaged, or of a version that numpy does not know"
