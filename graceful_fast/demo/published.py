"""A published update: the file-type classifier magika, 0.5.1 to 1.0.3, on this machine's own files.

The two releases cannot be installed together, so each wheel (weights included) is downloaded by its hash, unpacked into
a cache folder and run in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from .files import LABEL_ALIASES, NEW_KINDS, LabelledFile, choose_files, system_folders

if TYPE_CHECKING:
    from ..update.report import UpdateReport

FILES_PER_EXTENSION = 30  # about a thousand files: some 25 s of one core for both releases
FEWEST_FILES = 50

_DOWNLOAD_SECONDS = 60
_PREDICT_SECONDS = 240
_NEEDS = {"onnxruntime": "onnxruntime", "dotenv": "python-dotenv", "tqdm": "tqdm", "pip": "pip"}

# One label per path on stdout. 0.5 has `ct_label`, 1.0 has `label`; a file that vanished meanwhile is of no known type.
_PREDICT = """
import json, sys
from pathlib import Path
from magika import Magika
labels = []
for result in Magika().identify_paths([Path(path) for path in json.load(sys.stdin)]):
    try:
        label = getattr(result.output, "ct_label", None) or result.output.label
    except Exception:
        label = "unknown"
    labels.append(str(label))
json.dump(labels, sys.stdout)
"""


class Release(NamedTuple):
    """One release: its version and the hash of the wheel that runs on every platform."""

    version: str
    sha256: str


OLD = Release("0.5.1", "a4d1f64f71460f335841c13c3d16cfc2cb21e839c1898a1ae9bd5adc8d66cb2b")
NEW = Release("1.0.3", "938d8e033953f2ddeb8c35dc423aa289ca116bfa7a71a778f6e77460f9025803")


class Unavailable(Exception):  # noqa: N818  (not an error of the demo: it goes on without this part)
    """Why the published pair cannot be run here, in one line."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/graceful_fast`, or the same under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graceful_fast"


def missing_packages() -> list[str]:
    """What the wheels import, and pip, as far as it is not installed."""
    return [name for module, name in _NEEDS.items() if find_spec(module) is None]


def obtain(release: Release, cache: Path) -> Path:
    """The folder with the unpacked release, downloaded unless a wheel of the right hash is in the cache.

    Raises:
        Unavailable: no pip, no network, or a wheel of another hash.
    """
    wheel = cache / f"magika-{release.version}-py3-none-any.whl"
    if not wheel.is_file() or _sha256(wheel) != release.sha256:
        _download(release, cache)
        if not wheel.is_file() or _sha256(wheel) != release.sha256:
            raise Unavailable(f"magika {release.version}: the downloaded wheel does not have the pinned hash")
    folder = cache / f"magika-{release.version}-{release.sha256[:8]}"
    if not (folder / "complete").is_file():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith("magika/")])
        (folder / "complete").touch()
    return folder


def predict(folder: Path, paths: Sequence[Path]) -> list[str]:
    """The label that the release in `folder` gives each file, in the vocabulary of the older release.

    Raises:
        Unavailable: the release does not run here.
    """
    command = [sys.executable, "-c", _PREDICT]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            input=json.dumps([str(path) for path in paths]),
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PREDICT_SECONDS,
            check=True,
        )
        labels = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{folder.name} took longer than {_PREDICT_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{folder.name} does not run here: {_last_line(error.stderr)}") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{folder.name} does not run here: {error}") from None
    if len(labels) != len(paths):
        raise Unavailable(f"{folder.name}: {len(paths)} files, {len(labels)} answers")
    return [LABEL_ALIASES.get(label, label) for label in labels]


def run(say: Callable[[str], None]) -> "UpdateReport":
    """Fetch both releases, run them on this machine's files and compare.

    Args:
        say: is told what happens, a line at a time.

    Raises:
        Unavailable: a package, the network or the files are missing, or a release does not run here.
    """
    if missing := missing_packages():
        raise Unavailable(f"needs {', '.join(missing)}: pip install 'graceful-fast[demo]'")
    say(f"magika {OLD.version} and {NEW.version}: wheels from {cache_folder()} or the package index")
    try:
        folders = [obtain(release, cache_folder()) for release in (OLD, NEW)]
    except OSError as error:
        raise Unavailable(f"{error.filename or cache_folder()}: cannot be used as cache: {error.strerror}") from None
    files = choose_files(system_folders(), FILES_PER_EXTENSION)
    if len(files) < FEWEST_FILES:
        raise Unavailable(f"found {len(files)} files of known types, too few to tell anything")
    say(f"{len(files)} files, at most {FILES_PER_EXTENSION} of each extension")
    answers = []
    for release, folder in zip((OLD, NEW), folders, strict=True):
        start = perf_counter()
        answers.append(predict(folder, [file.path for file in files]))
        say(f"magika {release.version}: {perf_counter() - start:.1f} s")
    return report_of(files, *answers)


def report_of(files: Sequence[LabelledFile], old: Sequence[str], new: Sequence[str]) -> "UpdateReport":
    """The update's report: classes are file types, the truth is the type that the extension names."""
    from graceful_fast import compare_classifiers

    names = sorted({file.kind for file in files} | set(old) | set(new))
    index = {name: i for i, name in enumerate(names)}
    return compare_classifiers(
        [index[label] for label in old],
        [index[label] for label in new],
        [index[file.kind] for file in files],
        classes=names,
        groups=["types new in 1.0" if file.kind in NEW_KINDS else "types that both know" for file in files],
        inputs=[str(file.path) for file in files],
    )


def _download(release: Release, cache: Path) -> None:
    # --platform any: the wheel without a platform's launcher has the same model; Requires-Python of 0.5.1 ends at 3.12,
    # yet it runs on later ones.
    cache.mkdir(parents=True, exist_ok=True)
    pin = cache / f"magika-{release.version}.txt"
    pin.write_text(f"magika=={release.version} --hash=sha256:{release.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--platform", "any", "--ignore-requires-python"]
    command += ["--retries", "1", "--timeout", "10", "--require-hashes", "--dest", str(cache), "-r", str(pin)]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"magika {release.version}: no download within {_DOWNLOAD_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"magika {release.version} cannot be downloaded: {_last_line(error.stderr)}") from None
    except OSError as error:
        raise Unavailable(f"magika {release.version} cannot be downloaded: {error}") from None


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
