"""The one list of cases, shared by the tests of every engine and by bench/."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# --- flips: pairs of score matrices with their labels ---------------------------------------------------------------


class FlipCase(NamedTuple):
    name: str
    old: np.ndarray
    new: np.ndarray
    target: np.ndarray


def flip_cases() -> Iterator[FlipCase]:
    """Every dtype at every awkward width, with ties, infinities, unequal class counts and odd views."""
    rng = np.random.default_rng(7)
    for dtype in (np.float16, np.float32, np.float64):
        for n, classes in ((0, 3), (1, 1), (3, 2), (40, 31), (40, 32), (40, 33), (2, 70_000)):
            # Few distinct values, so that most rows have ties, some of them with the label's score.
            old, new = (rng.integers(-3, 4, (n, classes)).astype(dtype) for _ in range(2))
            yield FlipCase(f"{np.dtype(dtype).name}-{n}x{classes}", old, new, rng.integers(0, classes, n))
    old, new = (rng.standard_normal((60, 9)).astype(np.float32) for _ in range(2))
    target = rng.integers(0, 9, 60)
    yield FlipCase("normal", old, new, target)
    yield FlipCase("constant", np.zeros_like(old), np.ones_like(new), target)
    yield FlipCase("peaked", old * 1e30, new * 1e30, target)
    yield FlipCase("offset-2^24", old + 2.0**24, new + 2.0**24, target)
    infinite = np.where(np.abs(old) > 1, np.copysign(np.inf, old), old)
    yield FlipCase("infinities", infinite, infinite[::-1].copy(), target)
    yield FlipCase("old-knows-fewer", old[:, :4], new, target)
    yield FlipCase("new-knows-fewer", old, new[:, :4], target)
    yield FlipCase("two-dtypes", old.astype(np.float64), new.astype(np.float16), target)
    wide = rng.standard_normal((60, 20)).astype(np.float32)
    yield FlipCase("strided", wide[:, ::2], np.asfortranarray(new), target)
    yield FlipCase("reversed", old[::-1], new[:, ::-1], target)
    yield FlipCase("big-endian", old.astype(">f4"), new, target.astype(">i4"))
    misaligned = np.frombuffer(b"\0" + old.tobytes(), np.float32, offset=1).reshape(old.shape)
    yield FlipCase("misaligned", misaligned, new, target.astype(np.uint8))
