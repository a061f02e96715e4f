"""A checkpoint: the state of long work in a directory, replaced whole after each step that is done."""

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


class Checkpoint:
    """Tensors and a position, saved at most every two seconds; `work` says what they belong to.

    One file, `state`: a line that names the format, a line of JSON (work, position, size and SHA-256 of the rest), the
    tensors' bytes one after the other.
    """

    def __init__(self, directory: str | os.PathLike[str], work: dict[str, Any]) -> None:
        self._path = Path(directory) / "state"
        self._work = work
        self._saved = time.monotonic()
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"checkpoint: {directory}: cannot make the directory: {error.strerror}") from error

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
                raise ValueError(f"checkpoint: {self._path}: expected the state of {name} {value!r}, got {saved!r}")
        for tensor in tensors:
            memory = bytes_of(tensor)
            memory[:] = state[: len(memory)]
            state = state[len(memory) :]
        return int(head["position"])

    def _parse(self, content: bytes) -> tuple[dict[str, Any], memoryview]:
        end = content.find(b"\n", len(_MAGIC))
        if not content.startswith(_MAGIC) or end < 0:
            raise ValueError(f"checkpoint: {self._path}: expected a state of this package's, got {content[:30]!r}")
        try:
            head = json.loads(content[len(_MAGIC) : end])
            size, checksum = int(head["bytes"]), str(head["checksum"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint: {self._path}: damaged: its head is not readable") from error
        state = memoryview(content)[end + 1 :]
        if len(state) != size:
            raise ValueError(f"checkpoint: {self._path}: damaged: expected {size} bytes of state, got {len(state)}")
        if _checksum(head, [state]) != checksum:
            raise ValueError(f"checkpoint: {self._path}: damaged: expected SHA-256 {checksum}")
        return head, state

    def save(self, position: int, tensors: "list[torch.Tensor]", *, now: bool = False) -> None:
        """Replace the file, unless the last save is a moment ago; `now`: in any case."""
        if not now and time.monotonic() - self._saved < _SECONDS:
            return
        parts = [bytes_of(tensor) for tensor in tensors]
        head: dict[str, Any] = {"work": self._work, "position": position, "bytes": sum(map(len, parts))}
        head["checksum"] = _checksum(head, parts)
        with replacing(self._path) as file:
            file.write(_MAGIC + json.dumps(head).encode() + b"\n")
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        self._saved = time.monotonic()


def _checksum(head: dict[str, Any], parts: list[memoryview]) -> str:
    checksum = hashlib.sha256()
    checksum.update(json.dumps([head["work"], head["position"]], sort_keys=True).encode())
    for part in parts:
        checksum.update(part)
    return checksum.hexdigest()
