"""flips: negative flips of two score matrices, beside argmax and top-k of numpy and torch on both."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

import graceful_fast as gf

from .contest import Contest

Rows = np.ndarray


def contests(quick: bool = False) -> Iterator[Contest]:
    """Top-1 in float32 and float16, and top-5, of 50,000 x 1,000 scores."""
    n, classes = (500, 100) if quick else (50_000, 1000)
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, n)
    old, new = (rng.standard_normal((n, classes), dtype=np.float32) for _ in range(2))
    for scores in (old, new):
        scores[np.arange(n), target] += 3
    for dtype in (np.float32, np.float16):
        yield _contest(old.astype(dtype, copy=False), new.astype(dtype, copy=False), target, 1)
    yield _contest(old, new, target, 5)


def _contest(old: np.ndarray, new: np.ndarray, target: np.ndarray, topk: int) -> Contest:
    peers = {"numpy": _numpy_argmax, "torch": _torch_argmax} if topk == 1 else {"torch": _torch_topk}
    entries: dict[str, Callable[[], Rows]] = {"graceful_fast": partial(_ours, old, new, target, topk)}
    entries |= {name: partial(peer, old, new, target, topk) for name, peer in peers.items()}

    def check() -> None:
        # Among equal float16 scores torch.argmax takes any: a peer may differ in the few rows with a tie at the top.
        expected, ties = entries["graceful_fast"](), len(target) // 100 if old.dtype == np.float16 else 0
        for name, entry in entries.items():
            if len(np.setxor1d(expected, entry())) > ties:
                raise AssertionError(f"{name} finds other negative flips than graceful_fast")

    case = f"{old.dtype} {old.shape[0]} x {old.shape[1]}, top {topk}"
    return Contest("flips", case, entries, check, old.nbytes + new.nbytes, "B/s")


def _ours(old: np.ndarray, new: np.ndarray, target: np.ndarray, topk: int) -> Rows:
    indices: Rows = gf.count_flips(old, new, target, topk=topk).negative_indices
    return indices


def _numpy_argmax(old: np.ndarray, new: np.ndarray, target: np.ndarray, _: int) -> Rows:
    return np.flatnonzero((old.argmax(1) == target) & (new.argmax(1) != target))


def _torch_argmax(old: np.ndarray, new: np.ndarray, target: np.ndarray, _: int) -> Rows:
    before, after = (torch.from_numpy(scores).argmax(1).numpy() for scores in (old, new))
    return np.flatnonzero((before == target) & (after != target))


def _torch_topk(old: np.ndarray, new: np.ndarray, target: np.ndarray, topk: int) -> Rows:
    best = (torch.from_numpy(scores).topk(topk, dim=1).indices.numpy() for scores in (old, new))
    before, after = ((indices == target[:, None]).any(1) for indices in best)
    return np.flatnonzero(before & ~after)
