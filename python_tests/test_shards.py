"""knn over several devices in one process; "cpu" named twice is two devices, on the emulator too."""

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from engines import Engine

import graceful_fast as gf
from graceful_fast import Gallery
from graceful_fast._search_blocks import Labels, Search
from graceful_fast._shards import nearest_on

GPUS = torch.cuda.device_count()


def rows(count: int, seed: int, dim: int = 24) -> torch.Tensor:
    """Many equal scores: few values, and every row twice."""
    values = np.random.default_rng(seed).integers(-2, 3, ((count + 1) // 2, dim)).astype(np.float32)
    values[(values == 0).all(1)] = 1
    return torch.from_numpy(np.concatenate([values, values])[:count])


def assert_same(found: Any, expected: Any) -> None:
    assert torch.equal(found.indices.cpu(), expected.indices.cpu())
    assert torch.equal(found.scores.cpu(), expected.scores.cpu())


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("shares", [1, 2, 3])
def test_shares_on_several_devices_give_the_same_bits(metric: Any, shares: int, engine: Engine) -> None:
    q, x = engine.tensors(rows(9, 1), rows(101, 2))
    labels = {"query_ids": np.arange(9), "gallery_ids": np.arange(101) % 17}
    devices = [engine.device if GPUS < 2 or engine.device == "cpu" else f"cuda:{i % GPUS}" for i in range(shares)]
    found = gf.knn(q, x, 60, metric=metric, devices=devices, **labels)
    assert found.indices.device == q.device
    assert_same(found, gf.knn(q, x, 60, metric=metric, **labels))


def test_ties_across_shares_go_to_the_smaller_row() -> None:
    q, x = torch.ones(1, 4), torch.ones(10, 4)
    assert gf.knn(q, x, 7, devices=["cpu"] * 3).indices.tolist() == [list(range(7))]


def test_more_devices_than_rows_and_fewer_allowed_rows_than_k() -> None:
    q, x = torch.ones(2, 4), torch.eye(4)
    found = gf.knn(q, x, 4, devices=["cpu"] * 9, query_ids=[0, 9], gallery_ids=[0, 1, 2, 3])
    assert found.indices.tolist() == [[1, 2, 3, -1], [0, 1, 2, 3]]
    assert found.scores[0, 3] == -torch.inf


def test_shares_of_files_and_of_codes(tmp_path: Path) -> None:
    q, x = rows(300, 1, 64), rows(1501, 2, 64)
    np.save(tmp_path / "x.npy", x.numpy())
    plain = gf.Gallery.open(tmp_path / "x.npy")
    coded = plain.prepare(tmp_path / "prepared")
    expected = gf.knn(q, x, 5)
    for gallery in (plain, coded, coded.load()):
        for limit in (None, 64 << 20):
            assert_same(gf.knn(q, gallery, 5, devices=["cpu", "cpu"], memory_limit=limit), expected)


def test_a_stopped_search_goes_on_on_each_device(tmp_path: Path) -> None:
    q, x = rows(3, 1), rows(1000, 2)
    seen: list[int] = []

    def stop(done: int, total: int | None) -> None:
        assert total == 1000
        seen.append(done)
        if done >= 500:
            raise ValueError("enough")

    keep = {"checkpoint": tmp_path / "state", "devices": ["cpu", "cpu"]}
    with pytest.raises(ValueError, match="enough"):
        gf.knn(q, x, 5, progress=stop, **keep)
    seen.clear()
    assert_same(gf.knn(q, x, 5, progress=lambda done, total: seen.append(done), **keep), gf.knn(q, x, 5))
    assert seen[-1] == 1000
    assert 0 < seen[0] <= 500
    assert seen == sorted(seen)


def test_a_bad_row_has_its_number_in_the_whole_gallery() -> None:
    x = rows(50, 2)
    x[41, 3] = torch.nan
    with pytest.raises(ValueError, match=r"gallery: row 41: expected finite numbers"):
        gf.knn(rows(3, 1), x, 5, devices=["cpu", "cpu"])


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], r"devices: expected a list of at least one device, got \[\]"),
        ("cpu", "devices: expected a list of at least one device, got 'cpu'"),
        (["cpu", "cpu:1"], "devices: expected 'cpu', or 'cuda:i' of .* GPUs, got 'cpu:1'"),
        ([f"cuda:{GPUS}"], f"devices: expected 'cpu', or 'cuda:i' of {GPUS} GPUs, got 'cuda:{GPUS}'"),
        (["meta"], "devices: expected 'cpu', .* got 'meta'"),
        (["gpu"], "devices: expected devices as torch names them, got 'gpu'"),
        ([None], "devices: expected devices as torch names them, got None"),
    ],
)
def test_unknown_devices_are_named(devices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gf.knn(rows(3, 1), rows(9, 2), 1, devices=devices)


def test_a_share_that_fails_stops_the_others(block_rows: Callable[[int], None]) -> None:
    block_rows(10)
    q, x = rows(3, 1), Gallery.open(rows(4000, 2))
    search = Search(q, 2, "ip", Labels(), Labels(), coded=False, prepared=False)
    told: list[int] = []

    def fail(done: int, total: int | None) -> None:
        told.append(done)
        sleep(0.002)
        if len(told) == 5:
            raise ValueError("enough")

    two = [torch.device("cpu"), torch.device("cpu", 0)]  # the same, but a thread each
    with pytest.raises(ValueError, match="enough"):
        nearest_on(two, search, x, None, fail, None)
    assert len(told) < 100  # of 400
