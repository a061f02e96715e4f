"""The one list of cases, shared by the tests of every engine and by bench/."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

# --- distill ----------------------------------------------------------------------------------------------------------

# What bench/ times: rows x classes, the largest first.
DISTILL_TIMED = ((512, 100_000), (1024, 10_000), (256, 1_000))


@dataclass(frozen=True)
class DistillCase:
    """Logits of both models, targets, and the options that make them hard."""

    name: str
    make: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def logits(
    rows: int,
    classes: int,
    old_classes: int | None = None,
    *,
    seed: int = 0,
    spread: float = 3.0,
    step: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    dtype: torch.dtype = torch.float32,
    old_dtype: torch.dtype | None = None,
    old_right: int = 2,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Old logits of deviation `spread`, new ones `step` away, every `old_right`-th row right under the old model."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(rows, classes, generator=generator) * spread
    new = old + torch.randn(rows, classes, generator=generator) * step + shift[0]
    old = (old + shift[1])[:, :old_classes]
    target = torch.randint(0, max(1, classes), (rows,), generator=generator)
    if rows and old.shape[1]:
        target[::old_right] = old.argmax(1)[::old_right]
    return new.to(dtype), old.to(old_dtype or dtype), target


def masked(where: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some classes at -inf in the old logits, the new ones, or both; never the target's new one."""
    new, old, target = logits(6, 37)
    if where in ("old", "both"):
        old[:3, 5:9] = -torch.inf
    if where in ("new", "both"):
        new[:3, 5:9] = -torch.inf
    if where == "both":
        new[3:, 30], old[3:, 30] = -torch.inf, -torch.inf
    target[:] = torch.tensor([0, 10, 20, 30, 31, 36])
    new[torch.arange(6), target] = 1.0
    return new, old, target


def strided(classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows apart by more than their length, base pointers off every vector's alignment."""
    new, old, target = logits(5, classes + 8)
    return new[:, 1 : classes + 1], old[:, 3 : classes + 3], target % classes


def ties() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equal maxima in one block and across blocks: the first class is the argmax."""
    new, old, _ = logits(4, 3000)
    old[:, [7, 8, 2900]] = 20.0
    new[:, [1500, 2999]] = 20.0
    return new, old, torch.tensor([7, 8, 2900, 1500])


def ignored(rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    new, old, target = logits(4, 20)
    target[list(rows)] = -100
    return new, old, target


def confident() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The new model is nearly sure, and right: the loss and the target's gradient are far below 1."""
    new, old, target = logits(4, 50, spread=0.1, step=0.1)
    new[torch.arange(4), target] = torch.tensor([12.0, 16.0, 20.0, 30.0])
    old[torch.arange(4), target] = torch.tensor([12.5, 16.0, 20.0, 31.0])
    return new, old, target


def drift() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maxima that rise from block to block by several units, in both, so that every frame moves."""
    new, old, target = logits(4, 5000)
    ramp = torch.arange(5000) / 100
    return new + ramp, old + ramp.flip(0) * torch.tensor([0.0, 1.0, -1.0, 3.0])[:, None], target


def impossible_target() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The target's new logit is -inf: its cross-entropy is infinite, the distance of the other classes is not."""
    new, old, target = logits(3, 40)
    new[1, target[1]] = -torch.inf
    return new, old, target


def spread_map(classes: int, old_classes: int, shared: int) -> torch.Tensor:
    """A class map in which `shared` of the new classes, spread and shuffled, have an old one."""
    generator = torch.Generator().manual_seed(classes)
    class_map = torch.full((classes,), -1)
    new = torch.randperm(classes, generator=generator)[:shared]
    class_map[new] = torch.randperm(old_classes, generator=generator)[:shared]
    return class_map


BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64
TEMPERATURES = (0.5, 1.0, 4.0, 20.0, 100.0)

DISTILL_CASES = [
    *(DistillCase(f"{c}_classes", lambda c=c: logits(5, c)) for c in (1, 2, 7, 8, 31, 32, 33, 1000, 1023, 1025, 2500)),
    *(
        DistillCase(f"{kind}_at_temperature_{t:g}", lambda: logits(6, 1003), {"temperature": t, "divergence": kind})
        for t in TEMPERATURES
        for kind in ("kl", "logits")
    ),
    DistillCase("small_step_at_temperature_100", lambda: logits(6, 500, step=0.01)),
    DistillCase(
        "unrelated_models_at_temperature_1", lambda: logits(6, 500, spread=1.0, step=8.0), {"temperature": 1.0}
    ),
    *(
        DistillCase(f"peaked_at_temperature_{t:g}", lambda: logits(6, 700, spread=40.0, step=40.0), {"temperature": t})
        for t in TEMPERATURES
    ),
    *(DistillCase(f"drift_at_temperature_{t:g}", drift, {"temperature": t}) for t in TEMPERATURES),
    *(DistillCase(f"confident_at_temperature_{t:g}", confident, {"temperature": t}) for t in (1.0, 100.0)),
    *(
        DistillCase(
            f"offset_2_24_in_{who}_at_temperature_{t:g}", lambda s=shift: logits(4, 100, shift=s), {"temperature": t}
        )
        for who, shift in (("new", (2.0**24, 0.0)), ("old", (0.0, 2.0**24)), ("both", (2.0**24, -(2.0**24))))
        for t in (1.0, 100.0)
    ),
    *(
        DistillCase(f"minus_infinity_in_{where}_{kind}_at_temperature_{t:g}", lambda w=where: masked(w), {**o})
        for where in ("old", "new", "both")
        for kind, t in (("kl", 1.0), ("kl", 100.0), ("logits", 1.0))
        for o in ({"divergence": kind, "temperature": t},)
    ),
    DistillCase("infinite_divergence_of_weight_0", lambda: masked("new"), {"alpha": 0.0, "beta": 0.0}),
    DistillCase("infinite_divergence_without_distillation", lambda: masked("new"), {"distillation_weight": 0.0}),
    *(
        DistillCase(f"focus_{focus}", lambda: logits(12, 10), {"focus": focus, "alpha": 0.5, "beta": 3.0})
        for focus in ("old_correct", "negative_flip", "new_incorrect", "all")
    ),
    DistillCase("focus_by_weight", lambda: logits(4, 10), {"focus": torch.tensor([0.0, 0.5, 2.0, 7.0])}),
    *(DistillCase(f"ties_{f}", ties, {"focus": f}) for f in ("old_correct", "negative_flip", "new_incorrect")),
    *(
        DistillCase(f"narrower_old_head_{c}_{kind}", lambda c=c: logits(9, 1200, c), {"divergence": kind})
        for c in (0, 1, 33, 1100)
        for kind in ("kl", "logits")
    ),
    DistillCase("wider_old_head", lambda: (lambda n, o, y: (n[:, :20], o, y % 20))(*logits(6, 33))),
    DistillCase("ties_in_bfloat16", lambda: (lambda n, o, y: (n.bfloat16(), o.bfloat16(), y))(*ties())),
    *(
        DistillCase(f"ldi_margin_{margin:g}{'_without_target' * out}", lambda: logits(9, 1100, 1050), options)
        for margin in (0.0, 0.5, 3.0)
        for out in (False, True)
        for options in ({"divergence": "ldi", "ldi_margin": margin, "exclude_target": out},)
    ),
    *(
        DistillCase(f"minus_infinity_in_{where}_ldi", lambda w=where: masked(w), {"divergence": "ldi"})
        for where in ("old", "new", "both")
    ),
    DistillCase(
        "ldi_excluded_target_impossible", lambda: impossible_target(), {"divergence": "ldi", "exclude_target": True}
    ),
    *(
        DistillCase(f"class_map_{name}_{kind}_{focus}", lambda c=c, o=o: logits(12, c, o), options)
        for name, c, o, class_map in (
            ("permuted", 40, 40, torch.randperm(40, generator=torch.Generator().manual_seed(1))),
            ("grown_and_dropped", 2100, 60, spread_map(2100, 60, 50)),
            ("mostly_shared", 2100, 1500, spread_map(2100, 1500, 1400)),
            ("one_class", 5, 3, torch.tensor([-1, -1, 1, -1, -1])),
            ("nothing_shared", 5, 3, torch.full((5,), -1)),
        )
        for kind in ("kl", "logits", "ldi")
        for focus in ("old_correct", "negative_flip")
        for options in ({"class_map": class_map, "divergence": kind, "focus": focus, "temperature": 4.0},)
    ),
    *(
        DistillCase(f"class_map_in_{str(d)[6:]}", lambda d=d: logits(5, 1200, 900, dtype=d), {"class_map": class_map})
        for d in (F64, BF16, F16)
        for class_map in (spread_map(1200, 900, 700),)
    ),
    DistillCase("class_map_and_ties", ties, {"class_map": torch.arange(3000).flip(0), "focus": "old_correct"}),
    DistillCase("ignored_rows", lambda: ignored((0, 2))),
    DistillCase("all_rows_ignored", lambda: ignored((0, 1, 2, 3))),
    DistillCase("no_rows", lambda: logits(0, 10)),
    DistillCase("label_smoothing", lambda: logits(6, 2100), {"label_smoothing": 0.1}),
    DistillCase(
        "weights_of_both_terms", lambda: logits(6, 50), {"cross_entropy_weight": 0.1, "distillation_weight": 0.9}
    ),
    DistillCase("without_cross_entropy", lambda: logits(6, 50), {"cross_entropy_weight": 0.0}),
    *(DistillCase(f"strided_{c}_classes", lambda c=c: strided(c)) for c in (1, 31, 33, 1030)),
    *(
        DistillCase(f"{str(d)[6:]}_new_{str(o)[6:]}_old", lambda d=d, o=o: logits(5, 1100, dtype=d, old_dtype=o))
        for d in (torch.float32, F64, BF16, F16)
        for o in (torch.float32, F64, BF16, F16)
    ),
]


# --- influence --------------------------------------------------------------------------------------------------------

# What bench/ times: rows, width, classes, the largest first.
INFLUENCE_TIMED = ((256, 256, 200_000), (64, 128, 10_000))
LINEAR_TIMED = ((256, 256, 100_000), (64, 64, 2_000))

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


# --- scan -------------------------------------------------------------------------------------------------------------

# What bench/ times: queries, rows, dimensions, k.
SCAN_TIMED = (
    (1000, 200_000, 128, 10),
    (1000, 200_000, 128, 100),
    (1000, 100_000, 512, 10),
    (1000, 100_000, 512, 100),
    (1, 1_000_000, 128, 10),
)


@dataclass(frozen=True)
class ScanCase:
    """Queries and a gallery for a search; `build` gets a generator and returns both."""

    name: str
    k: int
    build: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
    metrics: tuple[str, ...] = ("cosine", "ip", "l2")


def _normal(queries: int, rows: int, dim: int) -> Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    def build(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return (
            rng.standard_normal((queries, dim)).astype(np.float32),
            rng.standard_normal((rows, dim)).astype(np.float32),
        )

    return build


def _duplicated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = rng.standard_normal((30, 24)).astype(np.float32)
    return rng.standard_normal((20, 24)).astype(np.float32), rows[rng.integers(0, 30, 3000)]


def _near_duplicates(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    row = rng.standard_normal(40)
    rows = (row * (1 + 1e-7 * rng.standard_normal((1500, 40)))).astype(np.float32)
    return (row + 0.01 * rng.standard_normal((9, 40))).astype(np.float32), rows


def _constant(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return np.full((8, 16), 0.3, dtype=np.float32), np.full((2500, 16), 0.7, dtype=np.float32)


def _each_better(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every row beats all before it, for every query and metric."""
    query = rng.random((1, 20)) + 1
    rows = (
        query * np.linspace(0.1, 0.9, 2500)[:, None] + rng.standard_normal((1, 20)) * np.linspace(1, 0, 2500)[:, None]
    )
    return np.repeat(query, 7, 0).astype(np.float32), rows.astype(np.float32)


def _clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centres = rng.standard_normal((12, 48))
    rows = centres[rng.integers(0, 12, 3000)] + 1e-3 * rng.standard_normal((3000, 48))
    return (centres + 1e-3 * rng.standard_normal((12, 48))).astype(np.float32), rows.astype(np.float32)


def _offset(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(10, 1500, 24)(rng)
    return queries + np.float32(4096), rows + np.float32(4096)


def _mixed_magnitudes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(12, 1500, 24)(rng)
    return (
        (queries * 10.0 ** rng.uniform(-12, 12, (12, 1))).astype(np.float32),
        (rows * 10.0 ** rng.uniform(-30, 30, (1500, 1))).astype(np.float32),
    )


def _scaled(factor: float, dtype: type = np.float32) -> Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    def build(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        queries, rows = _normal(9, 1200, 20)(rng)
        return queries.astype(dtype) * dtype(factor), rows.astype(dtype) * dtype(factor)

    return build


def _one_outlier(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(9, 1200, 20)(rng)
    rows[700] *= np.float32(1e30)
    queries[3] *= np.float32(1e-30)
    return queries, rows


def _with_zero_rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    queries, rows = _normal(9, 1200, 20)(rng)
    rows[::3] = 0
    queries[2] = 0
    return queries, rows


SCAN_CASES = [
    ScanCase("random", 10, _normal(40, 3000, 64)),
    ScanCase("one query", 10, _normal(1, 5000, 64)),
    ScanCase("four queries", 7, _normal(4, 2001, 37)),
    ScanCase("five queries", 7, _normal(5, 2001, 37)),
    ScanCase("k = 1", 1, _normal(13, 2000, 32)),
    ScanCase("k = N", 777, _normal(7, 777, 16)),
    ScanCase("k = N, one query", 777, _normal(1, 777, 16)),
    ScanCase("k near N", 1900, _normal(6, 2000, 16)),
    ScanCase("N = 1", 1, _normal(5, 1, 16)),
    *(ScanCase(f"D = {dim}", 5, _normal(6, 700, dim)) for dim in (1, 2, 7, 8, 9, 127, 128, 129)),
    *(ScanCase(f"D = {dim}, one query", 5, _normal(1, 700, dim)) for dim in (1, 7, 8, 9, 127, 128, 129)),
    *(ScanCase(f"N = {rows}", 3, _normal(6, rows, 12)) for rows in (3, 7, 8, 15, 16, 17, 31, 32, 33, 1023, 1025)),
    *(ScanCase(f"Q = {queries}", 3, _normal(queries, 300, 12)) for queries in (0, 6, 7, 12, 13, 14, 15, 300)),
    ScanCase("D above a chunk", 3, _normal(6, 70, 9000)),
    ScanCase("duplicated rows", 250, _duplicated),
    ScanCase("near-duplicates", 20, _near_duplicates),
    ScanCase("constant", 10, _constant),
    ScanCase("each row better", 10, _each_better),
    ScanCase("clustered", 30, _clustered),
    ScanCase("large offset", 10, _offset),
    ScanCase("magnitudes 1e-30 to 1e30", 10, _mixed_magnitudes),
    ScanCase("magnitude 1e30", 10, _scaled(1e30)),
    ScanCase("magnitude 1e-30", 10, _scaled(1e-30)),
    ScanCase("float32 subnormals", 10, _scaled(1e-41)),
    ScanCase("float64", 10, _scaled(1.0 / 3, np.float64)),
    ScanCase("float64, 1e140", 10, _scaled(1e140, np.float64)),
    ScanCase("float64, 1e-140", 10, _scaled(1e-140, np.float64)),
    ScanCase("one row of 1e30, one query of 1e-30", 10, _one_outlier),
    ScanCase("zero rows and a zero query", 500, _with_zero_rows, ("ip", "l2")),
]
