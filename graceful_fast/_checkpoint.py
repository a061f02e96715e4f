"""A checkpoint: the state of long work in a directory, replaced whole after each step that is done."""

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arrays import bytes_of
from ._files import replacing

if TYPE_CHECKING:
    import torch

_MAGIC = b"graceful_fast.checkpoint 1\n"
_SECONDS = 2.0  # between two saves: what a kill can cost
_PAUSES = 20  # ... and at least so many times what the last save took: a large state costs no more than 5 %


class Checkpoint:
    """Tensors and a position, saved every two seconds, less often where that takes long; `work`: what they belong to.

    One file, `state`: a line that names the format, a line of JSON (work, position, size and SHA-256 of the rest), the
    tensors' bytes one after the other. The directory is locked: two runs of the same work would take turns in losing
    what the other has saved.
    """

    def __init__(self, directory: str | os.PathLike[str], work: dict[str, Any]) -> None:
        if not isinstance(directory, (str, os.PathLike)):
            raise TypeError(f"checkpoint: expected a directory, got {type(directory).__name__}")
        if not os.fspath(directory):
            raise ValueError("checkpoint: expected a directory, got an empty path")
        self._home = Path(directory)
        self._path = self._home / "state"
        self._work = work
        self._next = time.monotonic() + _SECONDS

    def __enter__(self) -> "Checkpoint":
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise OSError(f"checkpoint: {self._home}: cannot make the directory: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in self._home.glob("state.*.partial"):  # by a run that was killed while it wrote
                left.unlink()
        except OSError as error:
            os.close(self._lock)
            reason = "in use by another search" if isinstance(error, BlockingIOError) else error.strerror
            raise OSError(f"checkpoint: {self._home}: cannot use the directory: {reason}") from error
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._lock)

    def load(self, tensors: "list[torch.Tensor]") -> int:
        """Fill the tensors with what was saved; the position, 0 if nothing was.

        Raises:
            ValueError: the file is damaged, or belongs to other work: what differs is named.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise OSError(f"checkpoint: {self._path}: {error.strerror}") from error
        head, state = self._parse(content)
        for name, value in self._work.items():
            if (saved := head["work"].get(name)) != value:
                raise ValueError(
                    f"checkpoint: {self._path}: belongs to another search: {name}: expected {value!r}, got {saved!r}"
                )
        for tensor in tensors:
            on_cpu = tensor.cpu()
            memory = bytes_of(on_cpu)
            memory[:] = state[: len(memory)]
            tensor.copy_(on_cpu)
            state = state[len(memory) :]
        return int(head["position"])

    def _parse(self, content: bytes) -> tuple[dict[str, Any], memoryview]:
        if not content.startswith(_MAGIC):
            raise ValueError(
                f"checkpoint: {self._path}: expected a file that starts with {_MAGIC!r}, "
                f"got {len(content)} bytes that start with {content[: len(_MAGIC)]!r}"
            )
        head_bytes, newline, _ = content[len(_MAGIC) :].partition(b"\n")
        state = memoryview(content)[len(_MAGIC) + len(head_bytes) + len(newline) :]
        try:
            head = json.loads(head_bytes)
            size, checksum = int(head["bytes"]), str(head["checksum"])
            got = _checksum(head, [state])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint: {self._path}: damaged: expected a head of JSON, got one of {len(head_bytes)} bytes that "
                f"is not readable, in a file of {len(content)}"
            ) from error
        if len(state) != size:
            raise ValueError(f"checkpoint: {self._path}: damaged: expected {size} bytes of state, got {len(state)}")
        if got != checksum:
            raise ValueError(f"checkpoint: {self._path}: damaged: expected SHA-256 {checksum}, got {got}")
        return head, state

    @property
    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() >= self._next

    def save(self, position: int, tensors: "list[torch.Tensor]") -> None:
        """Replace the file."""
        start = time.monotonic()
        parts = [bytes_of(tensor) for tensor in tensors]
        head: dict[str, Any] = {"work": self._work, "position": position, "bytes": sum(map(len, parts))}
        head["checksum"] = _checksum(head, parts)
        with replacing(self._path) as file:
            file.write(_MAGIC + json.dumps(head).encode() + b"\n")
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        end = time.monotonic()
        self._next = end + max(_SECONDS, _PAUSES * (end - start))


def _checksum(head: dict[str, Any], parts: list[memoryview]) -> str:
    checksum = hashlib.sha256()
    checksum.update(json.dumps([head["work"], head["position"]], sort_keys=True).encode())
    for part in parts:
        checksum.update(part)
    return checksum.hexdigest()
