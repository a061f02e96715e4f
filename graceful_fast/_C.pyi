"""Build facts of graceful_fast, the loader of its op library, and the reader of gallery files."""

from collections.abc import Sequence

import numpy as np

version: str
compiler: str
cuda: str
"""Architectures and compiler of graceful_fast_cuda.so; "" if it was not built."""
no_cuda: str
"""Why it was not."""

def load(path: str) -> str:
    """Load the op library at `path` and return the name of the instruction set in use."""

class Reader:
    """Blocks of rows of files (path, offset, stride, rows), read one ahead into two buffers in turn."""

    def __init__(
        self,
        files: Sequence[tuple[bytes, int, int, int]],
        row_bytes: int,
        buffers: tuple[np.ndarray, np.ndarray],
        start: int,
        stop: int,
        dim_word: int | None = None,
    ) -> None: ...
    def next(self) -> tuple[int, int, int] | None:
        """The next block as (buffer, first row, rows), None at the end; the block before it is overwritten."""

    def close(self) -> None:
        """Stop reading and join the thread."""

def read_rows(
    files: Sequence[tuple[bytes, int, int, int]],
    row_bytes: int,
    rows: np.ndarray,
    out: np.ndarray,
    dim_word: int | None = None,
) -> None:
    """Read the rows of these numbers into `out`, packed."""
