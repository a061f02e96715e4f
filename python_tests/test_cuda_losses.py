"""What the CUDA kernels of the losses do that the CPU's need not: targets that nobody looked at, maps of every class,
rows that warps share; and how much memory they read and write."""

import ctypes

import engines
import pytest
import test_linear
import torch
from cases import DISTILL_CASES, DistillCase, logits, spread_map
from test_distill import assert_agrees, value_and_gradient

import graceful_fast as gf
from graceful_fast import _ops, linear_losses
from graceful_fast._linear import Order

SIMT = ["simt", "simt-random"]
on_the_emulator = pytest.mark.parametrize("engine", SIMT, indirect=True)
DISTANCE = _ops.Distance(0, 0.0, False, 4.0, -100)
TOTAL = _ops.Total(0, 1.0, 5.0, 1.0, 1.0, 0.0, 0)


@pytest.mark.parametrize("engine", [*SIMT, "cuda"], indirect=True)
@pytest.mark.parametrize("bad", [-1, 10, 1 << 40])
def test_a_target_outside_the_classes_makes_its_row_nan_and_no_other(engine, bad):
    new, old, target = logits(4, 10)
    right = value_and_gradient(gf.focal_distillation_loss, new, old, target, reduction="none")
    target[2] = bad
    rows, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, reduction="none")
    assert rows[2].isnan()
    assert gradient[2].isnan().all()
    others = torch.tensor([0, 1, 3])
    assert torch.equal(rows[others], right[0][others])
    assert torch.equal(gradient[others], right[1][others])
    assert value_and_gradient(gf.focal_distillation_loss, new, old, target)[0].isnan()


@pytest.mark.parametrize("engine", [*SIMT, "cuda"], indirect=True)
@pytest.mark.parametrize("divergence", [0, 1, 2])
def test_a_map_of_every_class_gives_the_bits_of_its_pairs(engine, divergence):
    new, old, target = map(engine.place, logits(5, 1200, 900))
    class_map = engine.place(spread_map(1200, 900, 700))
    pairs = (class_map >= 0).nonzero()[:, 0]
    distance = DISTANCE._replace(divergence=divergence)
    results = []
    for columns in ((None, class_map), (pairs, class_map[pairs])):
        loss, statistics = _ops.distill_forward(new, old, target, None, columns, distance, TOTAL)
        slope = _ops.distill_backward_(loss, new.clone(), old, target, statistics, columns, 0, 1200, distance, 0.0)
        results.append((loss, statistics, slope))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.isfinite(x).all() for x in results[0])


@pytest.mark.parametrize("engine", [*SIMT, "cuda"], indirect=True)
@pytest.mark.parametrize("wrong", [-2, 30, 1 << 40])
def test_an_entry_of_a_map_that_is_no_class_reads_nothing_and_is_nan(engine, wrong):
    new, old, target = map(engine.place, logits(3, 40, 30))
    class_map = torch.arange(40).clamp(max=29)
    class_map[30:], class_map[7] = -1, wrong
    target[:] = 3
    columns = (None, engine.place(class_map))
    assert _ops.distill_forward(new, old, target, None, columns, DISTANCE, TOTAL)[0].isnan()


@on_the_emulator
@pytest.mark.parametrize("kind", ["logits", "head_and_bias"])
def test_the_linear_loss_takes_a_map_of_every_class(engine, kind, monkeypatch):
    """As `shared_columns` gives it for CUDA tensors."""
    class_map = spread_map(37, 20, 13)
    p = test_linear.problem(old_classes=20, class_map=class_map)
    expected = test_linear.ours(p, kind, Order("classes", 7), class_map=class_map)
    monkeypatch.setattr(linear_losses, "shared_columns", lambda class_map, *_: (None, class_map))
    value, gradients = test_linear.ours(p, kind, Order("classes", 7), class_map=class_map)
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    class_map[4] = 20
    value, _ = test_linear.ours(p, kind, Order("classes", 7), class_map=class_map)
    assert value.isnan()


@on_the_emulator
@pytest.mark.parametrize("warps", [1, 7, 40, 300])
@pytest.mark.parametrize("name", ["drift_at_temperature_1", "drift_at_temperature_100", "peaked_at_temperature_0.5"])
def test_a_row_agrees_however_many_warps_share_it(engine, warps, name):
    engines.simt().graceful_fast_simt_distill_warps(ctypes.c_int64(warps))
    case = next(case for case in DISTILL_CASES if case.name == name)
    assert_agrees(case, reduction="none")
    assert_agrees(DistillCase("long", lambda: logits(1, 20_000), {"temperature": 2.0}), reduction="none")


@on_the_emulator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_schedule_gives_the_same_bits(engine, dtype):
    new, old, target = logits(5, 3000, dtype=dtype)
    results = []
    for order, seed in ((0, 0), (1, 0), (2, 1), (2, 2)):
        engines.simt().graceful_fast_simt_schedule(order, ctypes.c_uint64(seed))
        results.append(value_and_gradient(gf.focal_distillation_loss, new, old, target))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def _bytes():
    """(kernel, bytes read, bytes written) of the launches since the last call."""
    text = ctypes.create_string_buffer(1 << 16)
    engines.simt().graceful_fast_simt_counts(text, ctypes.c_size_t(len(text)))
    lines = map(str.split, text.value.decode().splitlines())
    return [(kernel, int(read), int(written)) for kernel, read, written, _ in lines]


ROW_PART, STATISTICS, WARP = 22 * 8, 11 * 8, 32


@on_the_emulator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [1000, 2051])
def test_distill_moves_what_its_kernels_say(engine, dtype, classes):
    n, size = 3, dtype.itemsize
    new, old, target = logits(n, classes, dtype=dtype)
    target[1] = -100  # read and written, but for its logits
    _bytes()
    loss, statistics = _ops.distill_forward(new, old, target, None, (None, None), DISTANCE, TOTAL)
    tile = 256 if dtype == torch.float64 else 512
    split = 1 if engine.name == "simt-random" else -(-classes // tile)
    parts, finish, reduce = _bytes()
    both = 2 * (n - 1) * size
    assert parts[0] == "distill_parts"
    assert parts[1] == both * (classes + 1) + n * split * WARP * 8  # every lane reads the target
    assert parts[2] == n * split * ROW_PART
    assert finish == ("distill_finish", n * (split * ROW_PART + 8), n * (STATISTICS + 8))
    assert reduce == ("distill_reduce", n * (8 + 8 + 16), n * 16 + loss.element_size())

    torch.ops.graceful_fast_simt.distill_backward(
        loss, new, old, target, statistics, None, None, *DISTANCE, TOTAL.label_smoothing
    )
    (backward,) = _bytes()
    assert backward[0] == "distill_backward"
    assert backward[2] == n * classes * size
    most = 128 * n * (8 + STATISTICS) + n * (STATISTICS + 8)  # of each block of threads
    assert both * (classes + 1) < backward[1] <= both * (classes + 1) + most


@on_the_emulator
@pytest.mark.parametrize(("classes", "reads"), [(4096, 1), (4097, 2)])
def test_influence_reads_a_row_that_fits_once(engine, classes, reads):
    products, n = torch.randn(2, classes), 2
    statistics = torch.zeros(n, 2, dtype=torch.float64)
    _bytes()
    _ops.influence(products, statistics, torch.tensor([3, -1]), None, None, 0)
    ((kernel, read, written),) = _bytes()
    assert kernel == "influence"
    assert read == n * (reads * classes * 4 + 256 * (8 + 8) + 8)  # every thread reads the target and the top
    assert written == n * (classes * 4 + 16 + 4)


@on_the_emulator
def test_flips_reads_every_score_once(engine):
    old, new, target = logits(6, 100)
    _bytes()
    _ops.flips(old, new, target, 1)
    ours, theirs = _bytes()
    assert ours == ("flips", 6 * (100 + WARP) * 4 + 6 * WARP * 8, 6)
    assert theirs == ("flips", 6 * (100 + WARP) * 4 + 6 * WARP * 8 + 6, 6)


@pytest.mark.parametrize("divergence", ["kl", "logits"])
@pytest.mark.parametrize("old_classes", [4, 40])
def test_a_row_without_any_possible_class_has_a_finite_gradient(engine, divergence, old_classes):
    new, old, target = logits(3, 40, old_classes)
    new[0] = -torch.inf
    target[:] = 1
    options = {"divergence": divergence, "cross_entropy_weight": 0.0, "focus": "all", "reduction": "none"}
    rows, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    assert rows[0].isinf()
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(rows[1:]).all()
