"""Fixtures that several test files share, and `--engine NAME`: only the tests that run on that engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(params=["cpu", "simt", "simt-random", "cuda"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ops run on, each in turn; see engines.py."""
    import engines

    return engines.use(request.param, monkeypatch)


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", help="only the tests that run on this engine: cpu, simt, cuda")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := config.getoption("--engine"):
        kept = [item for item in items if _engine_of(item).startswith(wanted)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _engine_of(item: pytest.Item) -> str:
    """Of a test with the fixture `engine`, or one of some engines, as `gpu`: the one that it runs on; else nothing."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return str(parameters.get("engine", parameters.get("gpu", "")))
