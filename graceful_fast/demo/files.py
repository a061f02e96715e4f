"""This machine's own files as a labelled test set: the extension names the type.

That truth is noisy: `.pl` is also a table of Unicode properties, `.txt` may hold anything. A model that starts to
answer by what such a file holds is counted as broken.
"""

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SMALLEST_FILE = 256
"""Bytes; below, there is little to tell a type by."""

_MOST_ENTRIES = 400_000  # a mounted archive under /usr must not hold up the demo

KNOWN_TO_BOTH = {
    "bat": "batch", "bz2": "bzip", "c": "c", "cc": "c", "class": "javabytecode", "cpp": "c", "css": "css", "csv": "csv",
    "exe": "pebin", "gif": "gif", "go": "go", "gz": "gzip", "h": "c", "hpp": "c", "html": "html", "ico": "ico",
    "ini": "ini", "jar": "jar", "java": "java", "jpg": "jpeg", "js": "javascript", "json": "json", "md": "markdown",
    "mp3": "mp3", "o": "elf", "ogg": "ogg", "pdf": "pdf", "php": "php", "pl": "perl", "pm": "perl", "png": "png",
    "ps": "postscript", "ps1": "powershell", "py": "python", "pyc": "pythonbytecode", "rb": "ruby", "rs": "rust",
    "rst": "rst", "sh": "shell", "so": "elf", "sql": "sql", "svg": "svg", "tex": "latex", "ttf": "ttf", "txt": "txt",
    "wav": "wav", "xml": "xml", "xz": "xz", "yaml": "yaml", "yml": "yaml", "zip": "zip",
}  # fmt: skip
"""Extension to type, for types that are labels of both releases."""

NEW_IN_1_0 = {
    "awk": "awk", "bib": "bib", "cmake": "cmake", "diff": "diff", "f90": "fortran", "lua": "lua", "m4": "m4",
    "npy": "npy", "npz": "npz", "otf": "otf", "patch": "diff", "scss": "scss", "tcl": "tcl", "toml": "toml",
    "ts": "typescript", "wasm": "wasm", "woff": "woff", "woff2": "woff2",
}  # fmt: skip
"""Types that only the newer release has a label for: nothing here can break, so they are reported as a group apart."""

KIND_OF_EXTENSION = {**KNOWN_TO_BOTH, **NEW_IN_1_0}
NEW_KINDS = frozenset(NEW_IN_1_0.values())

LABEL_ALIASES = {"cpp": "c", "jsonl": "json", "symlinktext": "txt"}
"""What one release tells apart and the other does not."""


class LabelledFile(NamedTuple):
    """A file and the type that its extension names."""

    path: Path
    kind: str


def system_folders() -> list[Path]:
    """Folders that every user may read: the system's own and this interpreter's."""
    paths = [Path("/usr/lib"), Path("/usr/share"), Path("/usr/include"), Path(sys.base_prefix) / "lib"]
    paths += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    found: list[Path] = []
    for path in sorted({path.resolve() for path in paths if path.is_dir()}):
        if not any(path.is_relative_to(parent) for parent in found):
            found.append(path)
    return found


def choose_files(folders: Iterable[Path], per_extension: int) -> list[LabelledFile]:
    """At most `per_extension` files of each known extension, evenly spaced over the sorted paths.

    Args:
        folders: where to look, all the way down; links are not followed.
        per_extension: files of one extension, 1 or more.

    Returns:
        The files by extension, then path: the same on every run as long as the folders do not change.
    """
    by_extension: dict[str, list[str]] = {}
    entries = 0
    for folder in folders:
        for here, below, names in os.walk(folder):
            below.sort()
            entries += len(names)
            for name in names:
                extension = name.rpartition(".")[2].lower()
                if extension in KIND_OF_EXTENSION and "." in name[1:]:
                    by_extension.setdefault(extension, []).append(os.path.join(here, name))
            if entries > _MOST_ENTRIES:
                break
    return [
        LabelledFile(Path(path), KIND_OF_EXTENSION[extension])
        for extension, paths in sorted(by_extension.items())
        for path in _evenly(sorted(paths), per_extension)
    ]


def _evenly(paths: Sequence[str], count: int) -> list[str]:
    # Neighbours in sorted order come from one folder and look alike; a step through the list visits many.
    order = [*range(0, len(paths), max(1, len(paths) // count)), *range(len(paths))]
    chosen: list[str] = []
    for i in dict.fromkeys(order):
        if len(chosen) == count:
            break
        if _usable(paths[i]):
            chosen.append(paths[i])
    return sorted(chosen)


def _usable(path: str) -> bool:
    try:
        return (
            not os.path.islink(path)
            and os.path.isfile(path)
            and os.path.getsize(path) >= SMALLEST_FILE
            and os.access(path, os.R_OK)
        )
    except OSError:
        return False
