"""focal_distillation_loss: values and gradients against the float64 reference, on every instruction set."""

import gc
import math
import os
import platform
import subprocess
import sys

import engines
import mpmath
import pytest
import torch
import torch.nn.functional as F
from cases import DISTILL_CASES, TEMPERATURES, DistillCase, logits
from torch.autograd import forward_ad

import graceful_fast as gf
from graceful_fast import _ops, reference

ULP = 2.0**-23
# of the row's greatest gradient; the float64 reference itself loses digits at large T
GRADIENT_ERROR = {torch.float32: 2.0**-19, torch.float64: 1e-11, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


everywhere = pytest.mark.usefixtures("engine")  # on every engine of engines.py, not the CPU alone


def value_and_gradient(loss, new, old, target, grad_output=None, **options):
    """On the engine in use."""
    place = engines.current.place
    leaf = place(new.detach()).requires_grad_()
    value = loss(leaf, place(old), place(target), **{name: place(option) for name, option in options.items()})
    value.backward(torch.ones_like(value) if grad_output is None else place(grad_output).to(value.dtype))
    return value.detach().cpu(), leaf.grad.cpu()


def assert_agrees(case, **more):
    """Rows within 4 float32 ulp of their terms (16 above T = 5), gradients within few ulp of the row's greatest."""
    new, old, target = case.make()
    options = {**case.options, **more}
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    expected, expected_gradient = value_and_gradient(
        reference.focal_distillation_loss, new.double(), old.double(), target, **options
    )
    assert value.shape == expected.shape
    assert value.dtype == (torch.float64 if new.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == new.dtype
    assert gradient.shape == new.shape
    ulps = 16 if options.get("temperature", 100.0) > 5 else 4
    unit = 2.0**-38 if new.dtype == torch.float64 else ULP  # the reference itself loses digits at large T
    size = expected.abs().clamp(min=1e-6)
    error = torch.where(expected == value.double(), 0.0, (value.double() - expected).abs() / size)
    assert (error <= ulps * unit).all(), (value, expected, error / unit)
    assert torch.isfinite(gradient).all() == torch.isfinite(expected_gradient).all()
    if gradient.numel():
        # The softmax of the cross-entropy is of size 1, so is its rounding; float16 has a smallest number.
        smallest = 2.0**-14 if new.dtype == torch.float16 else 2.0**-20
        bound = GRADIENT_ERROR[new.dtype] * expected_gradient.abs().amax(1, keepdim=True).clamp(min=smallest)
        assert ((gradient.double() - expected_gradient).abs() <= bound).all(), (gradient, expected_gradient)


@everywhere
@pytest.mark.parametrize("case", DISTILL_CASES, ids=str)
def test_rows_and_gradients_agree_with_the_float64_reference(case):
    assert_agrees(case, reduction="none")


@everywhere
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", DISTILL_CASES[::3], ids=str)
def test_reduced_losses_agree_with_the_float64_reference(case, reduction):
    assert_agrees(case, reduction=reduction)


ISAS = {"x86_64": ("baseline", "avx2", "avx512"), "aarch64": ("baseline", "neon")}.get(platform.machine(), ())
ON_ANOTHER_ISA = """
import test_distill
from cases import DISTILL_CASES
from graceful_fast import _ops
for case in DISTILL_CASES[::2]:
    test_distill.assert_agrees(case, reduction="none")
print(_ops.isa)
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_other_instruction_set_passes_the_cases(isa):
    if isa == _ops.isa:
        pytest.skip("the one in use: all other tests run on it")
    if ISAS.index(isa) > ISAS.index(_ops.isa) and "GRACEFUL_FAST_ISA" not in os.environ:
        pytest.skip(f"this CPU lacks {isa}")
    run = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER_ISA],
        env={**os.environ, "GRACEFUL_FAST_ISA": isa},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=False,
    )
    if "GRACEFUL_FAST_ISA: expected one of" in run.stderr:
        pytest.skip(f"this CPU lacks {isa}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == isa


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_total_loss_of_many_classes_keeps_its_digits(temperature):
    new, old, target = logits(8, 20_000)
    value = gf.focal_distillation_loss(new, old, target, temperature=temperature).item()
    expected = reference.focal_distillation_loss(new.double(), old.double(), target, temperature=temperature).item()
    assert abs(value - expected) <= 4 * ULP * abs(expected)


@everywhere
def test_constant_logits_sum_without_systematic_rounding():
    new, old = torch.full((2, 70_000), 1 / 3), torch.full((2, 70_000), 1 / 7)
    new[:, 5], target = 0.4, torch.tensor([5, 6])
    options = {"temperature": 1.0, "reduction": "none"}
    value, _ = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    expected = reference.focal_distillation_loss(new.double(), old.double(), target, **options)
    assert ((value - expected).abs() <= 4 * ULP * expected).all()


def test_equal_models_have_no_divergence_at_any_temperature():
    new, _, target = logits(4, 100)
    for temperature in TEMPERATURES:
        loss = gf.focal_distillation_loss(new, new, target, temperature=temperature, cross_entropy_weight=0.0)
        assert loss.item() == 0.0


def test_divergence_at_large_temperature_is_the_squared_difference_up_to_its_mean():
    new, old, target = logits(4, 1000, step=2.0)
    difference = (new - old).double()
    centred = difference - difference.mean(1, keepdim=True)
    kl = gf.focal_distillation_loss(
        new, old, target, temperature=1e4, cross_entropy_weight=0.0, focus="all", reduction="none"
    )
    assert torch.allclose(kl.double(), (centred**2).mean(1) / 2, rtol=1e-3)


def test_weights_multiply_each_row_and_not_the_mean_as_in_the_published_code():
    new, old, target = logits(8, 10)
    new[::2] += 3 * torch.arange(10.0).cos()  # far from the old model just where the weight is 6
    new, old = new.double(), old.double()
    ours = gf.focal_distillation_loss(new, old, target, cross_entropy_weight=0.0)
    divergence = F.kl_div((new / 100).log_softmax(1), (old / 100).softmax(1), reduction="none").sum(1) * 100**2
    weight = 1 + 5 * (old.argmax(1) == target).double()[:, None]  # (N, 1), as published
    published = (divergence * weight).mean()  # (N, N)
    assert torch.isclose(ours, (divergence * weight[:, 0]).mean())
    assert torch.isclose(published, divergence.mean() * weight.mean())
    assert abs(published - ours) > 0.05 * ours


def test_results_have_the_same_bits_for_any_number_of_threads():
    new, old, target = logits(37, 5000)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(value_and_gradient(gf.focal_distillation_loss, new, old, target))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_no_input_is_written_and_the_graph_can_be_used_again():
    new, old, target = logits(5, 100)
    copies = new.clone(), old.clone(), target.clone()
    leaf = new.requires_grad_()
    loss = gf.focal_distillation_loss(leaf, old, target)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, torch.tensor(-2.0))
    assert torch.equal(first * -2, second)
    assert all(torch.equal(a, b) for a, b in zip((leaf, old, target), copies, strict=True))


@everywhere
def test_each_row_gets_its_own_incoming_gradient():
    new, old, target = logits(6, 40)
    incoming = torch.tensor([0.0, 1.0, -2.0, 0.5, 100.0, 1e-3])
    _, ours = value_and_gradient(gf.focal_distillation_loss, new, old, target, incoming, reduction="none")
    _, expected = value_and_gradient(
        reference.focal_distillation_loss, new.double(), old.double(), target, incoming, reduction="none"
    )
    assert ((ours - expected).abs() <= 1e-6 * expected.abs().amax(1, keepdim=True)).all()


def test_an_expanded_incoming_gradient_is_read_by_its_stride():
    new, old, target = logits(6, 40)
    leaf = new.requires_grad_()
    rows = gf.focal_distillation_loss(leaf, old, target, reduction="none")
    (expanded,) = torch.autograd.grad(rows, leaf, torch.ones(1).expand(6), retain_graph=True)
    (strided,) = torch.autograd.grad(rows, leaf, torch.tensor([1.0, 9.0]).repeat(6)[::2], retain_graph=True)
    (dense,) = torch.autograd.grad(rows, leaf, torch.ones(6))
    assert torch.equal(expanded, dense)
    assert torch.equal(strided, dense)


def test_columns_without_unit_stride_are_taken_too():
    new, old, target = logits(5, 60)
    ours = gf.focal_distillation_loss(new.t().contiguous().t(), old.t().contiguous().t(), target)
    assert torch.equal(ours, gf.focal_distillation_loss(new, old, target))


def test_rows_past_the_last_one_and_columns_between_rows_are_not_written():
    buffer = torch.full((4, 50), 7.0, dtype=torch.float64)
    new, old, target = logits(4, 33, dtype=torch.float64)
    buffer[:, 3:36] = new
    view = buffer[:, 3:36].requires_grad_()
    gf.focal_distillation_loss(view, old, target).backward()
    assert (buffer[:, :3] == 7).all()
    assert (buffer[:, 36:] == 7).all()


@everywhere
@pytest.mark.parametrize("case", ["no_rows", "all_rows_ignored"])
def test_nothing_to_count_gives_loss_0_and_no_gradient(case):
    new, old, target = next(c for c in DISTILL_CASES if c.name == case).make()
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target)
    assert value.item() == 0.0
    assert gradient.shape == new.shape
    assert (gradient == 0).all()


@everywhere
def test_a_new_minus_infinity_under_old_mass_is_an_infinite_loss_with_a_finite_gradient():
    new, old, target = logits(2, 10)
    new[0, 3], target[:] = -torch.inf, 1
    for divergence in ("kl", "logits"):
        value, gradient = value_and_gradient(
            gf.focal_distillation_loss, new, old, target, divergence=divergence, reduction="none"
        )
        assert value[0].item() == math.inf
        assert math.isfinite(value[1].item())
        assert torch.isfinite(gradient).all()


@everywhere
@pytest.mark.parametrize("divergence", ["kl", "logits"])
def test_an_old_row_of_minus_infinity_only_has_no_divergence(divergence):
    new, old, target = logits(2, 10)
    old[0] = -torch.inf
    rows, gradient = value_and_gradient(
        gf.focal_distillation_loss, new, old, target, divergence=divergence, reduction="none", focus="all"
    )
    assert torch.isclose(rows[0], F.cross_entropy(new, target, reduction="none")[0])
    assert torch.isfinite(gradient).all()


@everywhere
@pytest.mark.parametrize("which", ["new", "old"])
def test_nan_logits_make_a_nan_loss(which):
    new, old, target = logits(3, 40)
    (new if which == "new" else old)[1, 17] = torch.nan
    for temperature in (1.0, 100.0):
        rows, _ = value_and_gradient(
            gf.focal_distillation_loss, new, old, target, temperature=temperature, focus="all", reduction="none"
        )
        assert rows.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [-1, 10, 1 << 40])
def test_a_target_outside_the_classes_raises(bad):
    new, old, target = logits(3, 10)
    target[2] = bad
    with pytest.raises((RuntimeError, IndexError), match=rf"target: expected 0 <= target < 10 .*got {bad} at row 2"):
        gf.focal_distillation_loss(new, old, target)


NEW, OLD, TARGET = logits(3, 10)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[1.0]], OLD, TARGET), {}, TypeError, "new_logits: expected a torch.Tensor, got list"),
        ((NEW.long(), OLD, TARGET), {}, TypeError, "new_logits: expected float32, float64, bfloat16 or float16"),
        ((NEW, OLD.int(), TARGET), {}, TypeError, "old_logits: expected float32"),
        ((NEW, OLD, TARGET.int()), {}, TypeError, "target: expected int64, got torch.int32"),
        ((NEW[0], OLD, TARGET), {}, ValueError, r"new_logits: expected shape \(batch, classes\), got \(10,\)"),
        ((NEW, OLD[:2], TARGET), {}, ValueError, r"old_logits: expected shape \(3, classes\), got \(2, 10\)"),
        ((NEW, OLD, TARGET[:2]), {}, ValueError, r"target: expected shape \(3,\), got \(2,\)"),
        ((NEW, OLD, TARGET), {"divergence": "js"}, ValueError, "divergence: expected one of kl, logits, ldi, got 'js'"),
        ((NEW, OLD, TARGET), {"focus": "some"}, ValueError, "focus: expected one of old_correct, .*got 'some'"),
        ((NEW, OLD, TARGET), {"focus": TARGET[:1]}, ValueError, r"focus: expected shape \(3,\), got \(1,\)"),
        ((NEW, OLD, TARGET), {"reduction": "avg"}, ValueError, "reduction: expected one of mean, sum, none, got 'avg'"),
        (
            (NEW, OLD, TARGET),
            {"temperature": 0.0},
            ValueError,
            "temperature: expected a positive finite number, got 0.0",
        ),
        ((NEW, OLD, TARGET), {"temperature": math.nan}, ValueError, "temperature: expected .* got nan"),
        ((NEW, OLD, TARGET), {"label_smoothing": 1.5}, ValueError, "label_smoothing: expected 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments_raise_one_error_that_names_them(arguments, options, error, message):
    with pytest.raises(error, match=message):
        gf.focal_distillation_loss(*arguments, **options)


def test_double_backward_is_a_clear_error():
    new, old, target = logits(3, 10)
    leaf = new.requires_grad_()
    (gradient,) = torch.autograd.grad(gf.focal_distillation_loss(leaf, old, target), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize("divergence", ["kl", "logits"])
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_gradcheck_in_float64(divergence, temperature):
    new, old, target = logits(4, 7, 5, dtype=torch.float64)
    target[1] = -100

    def rows(x):
        return gf.focal_distillation_loss(
            x, old, target, divergence=divergence, temperature=temperature, label_smoothing=0.1, reduction="none"
        )

    assert torch.autograd.gradcheck(rows, new.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 3])
def test_raw_ops_pass_opcheck(dtype, rows):
    new, old, target = logits(rows, 11, dtype=dtype)
    class_map = torch.tensor([*range(9, -1, -1), -1])
    for divergence, columns in ((0, (None, None)), (1, (None, None)), (2, _shared(class_map))):
        distance = _ops.Distance(divergence, 0.5, True, 4.0, -100)
        ops, arguments = torch.ops.graceful_fast, (new, old, target)
        parts = ops.distill_accumulate(None, *arguments, *columns, 0, *distance)
        for reduction in (0, 2):
            total = _ops.Total(0, 1.0, 5.0, 1.0, 1.0, 0.1, reduction)
            loss, statistics = ops.distill_forward(*arguments, None, *columns, *distance, *total)
            backward = (torch.ones_like(loss), new.clone(), old, target, statistics, *columns)
            finish = (parts, target, None, 11, dtype == torch.float64, divergence, 4.0, -100, *total)
            torch.library.opcheck(ops.distill_forward.default, (*arguments, None, *columns, *distance, *total))
            torch.library.opcheck(ops.distill_backward.default, (*backward, *distance, 0.1))
            torch.library.opcheck(ops.distill_backward_.default, (*backward, 0, 11, *distance, 0.1))
            torch.library.opcheck(ops.distill_finish.default, finish)
        torch.library.opcheck(ops.distill_accumulate.default, (None, *arguments, *columns, 0, *distance))
        torch.library.opcheck(ops.distill_accumulate.default, (parts, *arguments, *columns, 11, *distance))
        torch.library.opcheck(ops.distill_merge.default, (torch.stack([parts, parts]), 4.0))


def _shared(class_map):
    new = (class_map >= 0).nonzero()[:, 0]
    return new, class_map[new]


# Dynamo makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_in_one_graph_gives_the_same_bits():
    new, old, target = logits(6, 300)
    for options in ({}, {"focus": torch.rand(6), "reduction": "sum"}):
        compiled = torch.compile(gf.focal_distillation_loss, fullgraph=True, backend="aot_eager")
        ours = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
        theirs = value_and_gradient(compiled, new, old, target, **options)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_autocast_changes_nothing():
    new, old, target = logits(6, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(gf.focal_distillation_loss, new, old, target)
    outside = value_and_gradient(gf.focal_distillation_loss, new, old, target)
    assert inside[0].dtype == torch.float32
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])


def test_the_old_logits_get_no_gradient():
    new, old, target = logits(3, 10)
    old.requires_grad_()
    gf.focal_distillation_loss(new.requires_grad_(), old, target).backward()
    assert old.grad is None


def test_the_module_is_the_function_with_its_options():
    new, old, target = logits(5, 10)
    options = {"beta": 2.0, "temperature": 3.0, "divergence": "kl", "reduction": "sum"}
    module = gf.FocalDistillationLoss(**options)
    assert torch.equal(module(new, old, target), gf.focal_distillation_loss(new, old, target, **options))
    assert "temperature=3.0" in repr(module)
    with pytest.raises(ValueError, match="temperature"):
        gf.FocalDistillationLoss(temperature=-1.0)


@everywhere
def test_bfloat16_and_float16_gradients_are_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        new, old, target = logits(4, 1500, dtype=dtype)
        _, half = value_and_gradient(gf.focal_distillation_loss, new, old, target, reduction="sum")
        _, full = value_and_gradient(gf.focal_distillation_loss, new.float(), old.float(), target, reduction="sum")
        assert torch.equal(half, full.to(dtype))


def test_a_large_gradient_reuses_memory_only_after_it_is_freed() -> None:
    logits, target = torch.randn(64, 20_000), torch.randint(0, 20_000, (64,))  # 5 MB: above the limit of large outputs

    def gradient(factor: float) -> torch.Tensor:
        leaf = (logits * factor).requires_grad_()
        gf.focal_distillation_loss(leaf, logits, target).backward()
        assert leaf.grad is not None
        return leaf.grad

    first, second = gradient(1.0), gradient(2.0)
    kept = first.clone()
    assert first.data_ptr() != second.data_ptr()
    third = gradient(3.0)
    assert torch.equal(first, kept)
    del first, second, third
    gc.collect()
    assert torch.equal(gradient(1.0), kept)
    addresses = {gradient(float(i)).data_ptr() for i in range(1, 9)}
    assert len(addresses) <= 4


def test_a_large_gradient_of_another_size_is_right() -> None:
    for rows in (64, 80, 70, 200, 64):
        logits, target = torch.randn(rows, 20_000), torch.randint(0, 20_000, (rows,))
        leaf, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
        gf.focal_distillation_loss(leaf, logits, target).backward()
        torch.nn.functional.cross_entropy(wide, target).backward()  # the divergence from itself is 0
        assert leaf.grad is not None
        assert wide.grad is not None
        assert (leaf.grad - wide.grad).abs().max() <= 1e-8


# --- mixed precision, infinite rows, extreme temperatures -------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("focus", ["old_correct", "negative_flip"])
def test_float64_old_logits_are_not_rounded_to_the_new_ones_type(dtype: torch.dtype, focus: str) -> None:
    new, old, _ = logits(6, 1500, dtype=dtype)
    old = old.double() * (1 + 1e-12)
    target = old.argmax(1)
    old[0, (target[0] + 1000) % 1500] = old[0, target[0]] * (1 - 1e-12)  # equal in float32
    old[1:3] += 2.0**20  # float32 would keep 4 bits behind the point
    options = {"focus": focus, "reduction": "none", "temperature": 2.0}
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    expected, exact = value_and_gradient(reference.focal_distillation_loss, new.double(), old, target, **options)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert ((value - expected).abs() <= 2.0**-23 * expected.abs()).all()
    bound = torch.finfo(dtype).eps * exact.abs() + (2.0**-24 if dtype == torch.float16 else 2.0**-30)
    assert ((gradient.double() - exact).abs() <= bound).all()


@everywhere
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
def test_an_impossible_target_is_infinite_with_label_smoothing_too(label_smoothing: float) -> None:
    new = torch.tensor([[0.0, -math.inf, 1.0], [0.0, 1.0, 2.0]])
    options = {"label_smoothing": label_smoothing, "reduction": "none", "distillation_weight": 0.0}
    value, gradient = value_and_gradient(
        gf.focal_distillation_loss, new, torch.zeros(2, 3), torch.tensor([1, 1]), **options
    )
    assert value[0] == math.inf
    assert math.isfinite(value[1])
    assert torch.isfinite(gradient).all()


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e8, 1e10, 1e12, 1e14, 1e20, 1e39, 1e300])
def test_the_divergence_reaches_its_limit_and_stays_there(dtype: torch.dtype, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(2, 5000, generator=generator).sort().values.to(dtype)  # every block moves the frames
    new = old + torch.randn(2, 5000, generator=generator).sort().values.to(dtype)
    options = {"focus": "all", "cross_entropy_weight": 0.0, "reduction": "none", "temperature": temperature}
    target = torch.zeros(2, dtype=torch.int64)
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    difference = new.double() - old.double()
    centred = difference - difference.mean(1, keepdim=True)
    limit = centred.square().mean(1) / 2
    assert ((value - limit).abs() <= 1e-6 * limit).all()
    assert ((gradient - centred / 5000).abs() <= 1e-6 * centred.abs().max() / 5000).all()


@everywhere
@pytest.mark.parametrize("temperature", [1e-20, 1e-37, 1e-42, 1e-300])
def test_the_divergence_vanishes_with_the_temperature(temperature: float) -> None:
    new, old, target = logits(3, 40)
    options = {"focus": "all", "cross_entropy_weight": 0.0, "temperature": temperature}
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    assert 0 <= value < 1e-17
    assert gradient.abs().max() < 1e-17


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it
def test_forward_mode_is_a_clear_error() -> None:
    new, old, target = logits(3, 5)
    with pytest.raises(RuntimeError, match=r"jvp|setup_context"):
        torch.func.jvp(lambda x: gf.focal_distillation_loss(x, old, target), (new,), (new,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        gf.focal_distillation_loss(forward_ad.make_dual(new, new), old, target)


@everywhere
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearly_equal_logits_keep_their_digits_however_large_they_are(offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    temperature = 1e4
    new = 1000 * torch.randn(16, 5, generator=generator)
    old = new + offset + 0.1 * torch.randn(16, 5, generator=generator)
    options = {"temperature": temperature, "focus": "all", "cross_entropy_weight": 0.0, "reduction": "none"}
    target = torch.zeros(16, dtype=torch.int64)
    loss, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    for i in range(16):  # with 50 digits: at this temperature float64 would lose too many
        with mpmath.workdps(50):
            p, q = ([mpmath.exp(mpmath.mpf(x) / temperature) for x in row[i].tolist()] for row in (old, new))
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            expected = temperature**2 * sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))
            slope = [temperature * (b - a) for a, b in zip(p, q, strict=True)]
            assert abs(loss[i].item() - expected) <= 1e-6 * expected
            error = max(abs(a - b) for a, b in zip(gradient[i].tolist(), slope, strict=True))
            assert error <= 1e-5 * max(map(abs, slope))


# --- in training: scaled losses, accumulated batches, maps, ensembles, large batches ----------------------------------


def test_a_grad_scaler_gives_the_unscaled_gradient():
    new, old, target = logits(6, 300)
    for dtype in (torch.float32, torch.float16):
        leaf = (
            new.to(dtype, copy=True).float().requires_grad_()
        )  # parameters stay float32; autocast makes the half logits
        optimizer = torch.optim.SGD([leaf], lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(gf.focal_distillation_loss(leaf.to(dtype), old, target)).backward()
        _, plain = value_and_gradient(gf.focal_distillation_loss, new.to(dtype), old, target)
        assert ((leaf.grad - 1024 * plain.float()).abs() <= 2.0**-9 * (1024 * plain.float()).abs() + 1e-4).all()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)  # skipped, were a gradient infinite
        scaler.update()
        assert scaler.get_scale() == 1024.0
        if dtype == torch.float32:
            assert torch.equal(leaf.grad, plain)
        else:  # nearer to the exact gradient than the unscaled half one: fewer are below the smallest half number
            _, exact = value_and_gradient(gf.focal_distillation_loss, new.half().float(), old, target)
            assert (leaf.grad - exact).abs().max() <= (plain.float() - exact).abs().max()


def test_a_count_replaces_the_number_of_rows_in_the_mean():
    new, old, target = logits(7, 40)
    target[3] = -100
    total = value_and_gradient(gf.focal_distillation_loss, new, old, target, reduction="sum")
    for count in (4.0, 3, torch.tensor(4.0), torch.tensor(3)):
        value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, count=count)
        torch.testing.assert_close(value, total[0] / float(count), rtol=2e-7, atol=0)
        torch.testing.assert_close(gradient, total[1] / float(count), rtol=1e-6, atol=1e-9)
    own = gf.focal_distillation_loss(new, old, target, count=gf.global_count(target))
    torch.testing.assert_close(own.float(), gf.focal_distillation_loss(new, old, target), rtol=2e-7, atol=0)


def test_accumulated_batches_of_unequal_size_give_the_whole_batchs_mean():
    new, old, target = logits(9, 40)
    target[[1, 2, 8]] = -100
    whole, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target)
    leaf, count, value = new.clone().requires_grad_(), gf.global_count(target), 0.0
    for rows in (slice(0, 2), slice(2, 3), slice(3, 9)):  # the second has no counted row
        loss = gf.FocalDistillationLoss()(leaf[rows], old[rows], target[rows], count=count)
        loss.backward()
        value += loss.item()
    assert math.isclose(value, whole.item(), rel_tol=1e-6)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": 0}, ValueError, "count: expected a positive finite number, got 0"),
        ({"count": -1.0}, ValueError, "count: expected a positive finite number, got -1.0"),
        ({"count": math.nan}, ValueError, "count: expected a positive finite number, got nan"),
        ({"count": math.inf}, ValueError, "count: expected a positive finite number, got inf"),
        ({"count": torch.ones(3)}, ValueError, r"count: expected shape \(\), got \(3,\)"),
        ({"count": 2.0, "reduction": "sum"}, ValueError, 'count: expected None unless reduction is "mean".*sum'),
        ({"class_map": [0] * 10}, TypeError, "class_map: expected an int64 torch.Tensor, got list"),
        ({"class_map": torch.arange(10).int()}, TypeError, "class_map: expected an int64 .* got torch.int32"),
        ({"class_map": torch.arange(9)}, ValueError, r"class_map: expected shape \(10,\), got \(9,\)"),
        (
            {"class_map": torch.arange(10) + 1},
            ValueError,
            "class_map: expected -1 <= class < 10, got 10 at class 9",
        ),
        ({"class_map": torch.arange(10) - 2}, ValueError, "class_map: expected -1 <= class < 10, got -2 at class 0"),
        (
            {"class_map": torch.tensor([3, *range(1, 10)])},
            ValueError,
            "class_map: expected each old class at most once, got 3 for several",
        ),
        ({"ldi_margin": -0.5}, ValueError, "ldi_margin: expected a finite number of at least 0, got -0.5"),
        ({"ldi_margin": math.inf}, ValueError, "ldi_margin: expected a finite number of at least 0, got inf"),
        ({"ldi_margin": math.nan}, ValueError, "ldi_margin: expected a finite number of at least 0, got nan"),
    ],
)
def test_bad_counts_maps_and_margins_raise_an_error_that_names_them(options, error, message):
    with pytest.raises(error, match=message):
        gf.focal_distillation_loss(NEW, OLD, TARGET, **options)


@everywhere
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
def test_a_class_map_without_a_shared_class_leaves_the_cross_entropy(divergence):
    new, old, target = logits(6, 1500, 30)
    options = {"divergence": divergence, "class_map": torch.full((1500,), -1), "reduction": "none"}
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    plain, exact = value_and_gradient(
        lambda x, _, y: F.cross_entropy(x, y, reduction="none"), new.double(), old, target
    )
    assert ((value - plain).abs() <= 4 * ULP * plain).all()
    assert ((gradient - exact).abs() <= 2.0**-19 * exact.abs().amax(1, keepdim=True)).all()


@everywhere
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
@pytest.mark.parametrize("classes", [9, 1023, 2500])
def test_the_identity_as_class_map_gives_the_bits_of_none(divergence, classes):
    new, old, target = logits(5, classes)
    options = {"divergence": divergence, "temperature": 4.0}
    mapped = value_and_gradient(
        gf.focal_distillation_loss, new, old, target, class_map=torch.arange(classes), **options
    )
    plain = value_and_gradient(gf.focal_distillation_loss, new, old, target, **options)
    assert torch.equal(mapped[0], plain[0])
    assert torch.equal(mapped[1], plain[1])


@everywhere
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
@pytest.mark.parametrize("focus", ["old_correct", "negative_flip"])
def test_a_permuted_class_map_is_the_old_logits_permuted(divergence, focus):
    new, old, target = logits(8, 1500)
    class_map = torch.randperm(1500, generator=torch.Generator().manual_seed(2))
    elsewhere = torch.empty_like(old)
    elsewhere[:, class_map] = old
    options = {"divergence": divergence, "focus": focus, "temperature": 4.0}
    mapped = value_and_gradient(gf.focal_distillation_loss, new, elsewhere, target, class_map=class_map, **options)
    plain = value_and_gradient(gf.focal_distillation_loss, new, elsewhere[:, class_map], target, **options)
    assert torch.equal(mapped[0], plain[0])
    assert torch.equal(mapped[1], plain[1])


@everywhere
def test_an_ensemble_of_old_models_is_inhibited_towards_its_mean():
    new, _, target = logits(6, 50)
    members = torch.stack([logits(6, 50, seed=seed)[1] for seed in range(1, 5)])
    options = {"divergence": "ldi", "ldi_margin": 0.0, "focus": "all", "distillation_weight": 0.7}
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, members.mean(0), target, **options)
    leaf = new.double().requires_grad_()
    elodi = F.cross_entropy(leaf, target) + 0.7 * F.mse_loss(leaf, members.double().mean(0))
    elodi.backward()
    torch.testing.assert_close(value.double(), elodi.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-5, atol=1e-8)


def test_the_version_counters_of_the_inputs_stay():
    new, old, target = logits(5, 1500)
    focus, class_map = torch.rand(5), torch.arange(1500)
    leaf = new.requires_grad_()
    inputs = (leaf, old, target, focus, class_map)
    before = [x._version for x in inputs]
    loss = gf.focal_distillation_loss(leaf, old, target, focus=focus, class_map=class_map)
    loss.backward(retain_graph=True)
    loss.backward()
    assert [x._version for x in inputs] == before
    held = gf.focal_distillation_loss(leaf, old, target)
    with torch.no_grad():
        leaf.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        held.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_repeat_has_the_same_bits(dtype):
    new, old, target = logits(64, 3000, dtype=dtype)
    first = value_and_gradient(gf.focal_distillation_loss, new, old, target)
    for _ in range(5):
        again = value_and_gradient(gf.focal_distillation_loss, new.clone(), old.clone(), target)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@everywhere
@pytest.mark.parametrize("classes", [1, 33, 1025])
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
def test_the_first_and_the_last_class_as_target(classes, divergence):
    new, old, _ = logits(4, classes)
    target = torch.tensor([0, classes - 1] * 2)
    old[2, 0] = new[3, -1] = 20.0
    for temperature in (0.1, 4.0):
        options = {"temperature": temperature, "divergence": divergence}
        assert_agrees(DistillCase("edges", lambda: (new, old, target), options), reduction="none")


@everywhere
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.3, 0.9])
def test_temperatures_below_1_agree_with_the_float64_reference(temperature):
    for step in (0.1, 1.0):
        case = DistillCase("below_1", lambda s=step: logits(6, 1100, spread=1.0, step=s), {"temperature": temperature})
        assert_agrees(case, reduction="none")


def _available_bytes():
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(_available_bytes() < 20 << 30, reason="needs 20 GiB of memory")
def test_more_than_2_to_the_31_logits_are_addressed_in_64_bits():
    rows, classes = 21_500, 100_000
    assert rows * classes > 2**31
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(64, classes, generator=generator).bfloat16()
    new = torch.empty(rows, classes, dtype=torch.bfloat16)
    for start in range(0, rows, 64):
        new[start : start + 64] = pattern[: rows - start]
    for i in (rows // 2, rows - 1):  # rows that no other has
        new[i] = pattern[0].roll(i)
    old = pattern[:1].expand(rows, classes)  # every row the same memory
    target = torch.arange(rows) * 7919 % classes
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, target, reduction="none", beta=0.0)
    some = torch.tensor([0, 1, rows // 2, rows - 2, rows - 1])
    expected, exact = value_and_gradient(
        reference.focal_distillation_loss,
        new[some].double(), old[some].double(), target[some], reduction="none", beta=0.0,
    )  # fmt: skip
    assert ((value[some] - expected).abs() <= 16 * ULP * expected).all()
    bound = GRADIENT_ERROR[torch.bfloat16] * exact.abs().amax(1, keepdim=True)
    assert ((gradient[some].double() - exact).abs() <= bound).all()


@everywhere
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_an_infinite_divergence_stays_infinite_where_later_classes_have_all_the_old_mass(temperature):
    new, old = torch.zeros(2, 3000), torch.zeros(2, 3000)
    old[:, :1024], new[0, 3] = -3000.0, -math.inf
    options = {"temperature": temperature, "reduction": "none"}
    value, gradient = value_and_gradient(gf.focal_distillation_loss, new, old, torch.tensor([1500, 1500]), **options)
    assert value[0].item() == math.inf
    assert math.isfinite(value[1].item())
    assert torch.isfinite(gradient).all()


@everywhere
def test_an_excluded_target_without_an_old_logit_is_not_among_the_compared_classes():
    new, old, target = logits(4, 40)
    old[torch.arange(3), target[:3]] = -math.inf
    for focus in ("all", "new_incorrect"):
        options = {"divergence": "ldi", "exclude_target": True, "ldi_margin": 0.1, "focus": focus}
        assert_agrees(DistillCase("excluded", lambda: (new, old, target), options), reduction="none")


# --- rows without new mass, options of a wrong type -------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_shared_classes_that_are_all_impossible_give_an_infinite_loss_and_a_finite_gradient(temperature):
    new = torch.tensor([[-math.inf, -math.inf, 1.0]])
    value, gradient = value_and_gradient(
        gf.focal_distillation_loss, new, torch.zeros(1, 2), torch.tensor([0]), temperature=temperature, focus="all"
    )
    assert value.item() == math.inf
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] < 0
    assert gradient[0, 1] < 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": "1"}, TypeError, "alpha: expected a number, got str"),
        ({"temperature": None}, TypeError, "temperature: expected a number, got NoneType"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index: expected an int, got float"),
        ({"focus": torch.zeros(3, dtype=torch.int64)}, TypeError, "focus: expected a floating tensor, got torch.int64"),
        ({"count": torch.tensor(0.0)}, ValueError, "count: expected a positive finite number, got 0.0"),
    ],
)
def test_an_option_of_a_wrong_type_is_named(options, error, message):
    with pytest.raises(error, match=message):
        gf.focal_distillation_loss(NEW, OLD, TARGET, **options)
