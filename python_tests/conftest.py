"""Fixtures that several test files share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def block_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many rows a block of a gallery has, and saves a checkpoint after each."""
    from graceful_fast import _checkpoint, _search_blocks

    def set_rows(rows: int) -> None:
        monkeypatch.setattr(_search_blocks, "_FEWEST_ROWS", rows)
        monkeypatch.setattr(_search_blocks, "_BLOCK_BYTES", 1)
        monkeypatch.setattr(_checkpoint, "_SECONDS", 0.0)
        monkeypatch.setattr(_checkpoint, "_PAUSES", 0)

    return set_rows


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Galleries of 160 MB by their names: g.npy and what is made of it."""
    import torch
    from gallery_cases import write_bin

    folder = tmp_path_factory.mktemp("large")
    block = np.random.default_rng(0).standard_normal((1 << 16, 128), dtype=np.float32)
    array = np.lib.format.open_memmap(folder / "g.npy", "w+", np.float32, (5 << 16, 128))
    for part in range(5):
        array[part << 16 : (part + 1) << 16] = block + np.float32(part)
    integers = torch.from_numpy((20 * block).astype(np.int8)).repeat(20, 1)
    write_bin(folder / "g.i8bin", integers)
    np.save(folder / "bytes.npy", integers.numpy())
    return folder
