"""linear_focal_distillation_loss: against the float64 reference of the logits, in both loop orders; its memory."""

import contextlib
import doctest
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import engines
import pytest
import torch
from cases import TEMPERATURES, spread_map

import graceful_fast as gf
from graceful_fast import _linear, _ranks, linear_losses, reference
from graceful_fast._linear import Order, Size, choose_order

ROWS, CLASSES = 9, 37
ALL = (True, True, True)
ORDERS = [Order("rows", n) for n in (1, 4, ROWS)] + [Order("classes", n) for n in (1, 7, 30, CLASSES)]
BOTH = [Order("rows", 4), Order("classes", 7)]
TEACHERS = ("logits", "head", "head_and_bias")


class Problem(NamedTuple):
    """A batch of both models' features, and both heads."""

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    target: torch.Tensor
    old_features: torch.Tensor
    old_weight: torch.Tensor
    old_bias: torch.Tensor | None

    def teacher(self, kind):
        """Arguments of the loss."""
        if kind == "logits":
            return {"old_logits": self.old_logits("head_and_bias").to(self.old_features.dtype)}
        head = {"old_features": self.old_features, "old_weight": self.old_weight}
        return head if kind == "head" else {**head, "old_bias": self.old_bias}

    def old_logits(self, kind):
        """What the old model says, float64; for "logits" of what the loss is given."""
        if kind == "logits":
            return self.teacher(kind)["old_logits"].double()
        logits = self.old_features.double() @ self.old_weight.double().T
        return logits if kind == "head" or self.old_bias is None else logits + self.old_bias.double()


def problem(
    rows=ROWS, classes=CLASSES, width=12, old_classes=None, old_width=10, seed=0, class_map=None, ignored=(2,)
) -> Problem:
    """Every other row is right under the old model (with its bias), as far as it knows a class."""
    generator = torch.Generator().manual_seed(seed)
    old_classes = classes if old_classes is None else old_classes

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    p = Problem(
        normal(rows, width),
        normal(classes, width) * 0.7,
        normal(classes),
        torch.randint(0, classes, (rows,), generator=generator),
        normal(rows, old_width),
        normal(old_classes, old_width) * 0.7,
        normal(old_classes),
    )
    # alike, so that the new model is right here and there
    k, m = min(classes, old_classes), min(width, old_width)
    p.features[:, :m] = p.old_features[:, :m] + 0.4 * p.features[:, :m]
    p.weight[:k, :m] = p.old_weight[:k, :m] + 0.4 * p.weight[:k, :m]
    shared = torch.arange(k) if class_map is None else (class_map >= 0).nonzero()[:, 0]
    if rows and len(shared):
        columns = shared if class_map is None else class_map[shared]
        p.target[::2] = shared[p.old_logits("head_and_bias")[::2][:, columns].argmax(1)]
    p.target[[i for i in ignored if i < rows]] = -100
    return p


def forced(order):
    """The loss in this loop order."""
    return contextlib.nullcontext() if order is None else patch.object(_linear, "choose_order", return_value=order)


def leaves(p, needed=ALL):
    """New ones, that need a gradient where `needed` says so."""
    given = (p.features, p.weight, p.bias)
    return [None if x is None else x.detach().clone().requires_grad_(n) for x, n in zip(given, needed, strict=True)]


def gradients_of(value, tensors, incoming):
    value.backward(torch.ones_like(value) if incoming is None else incoming.to(value.dtype))
    return value.detach(), [None if x is None else x.grad for x in tensors]


everywhere = pytest.mark.usefixtures("engine")  # on every engine of engines.py, not the CPU alone


def ours(p, kind="head_and_bias", order=None, incoming=None, needed=ALL, **options):
    """On the engine in use."""
    place = engines.current.place
    p, options = Problem(*map(place, p)), {name: place(option) for name, option in options.items()}
    features, weight, bias = tensors = leaves(p, needed)
    with forced(order) as chosen:
        value = gf.linear_focal_distillation_loss(features, weight, p.target, bias=bias, **p.teacher(kind), **options)
    assert chosen is None or chosen.called
    value, gradients = gradients_of(value, tensors, place(incoming))
    return value.cpu(), [None if x is None else x.cpu() for x in gradients]


def theirs(p, kind="head_and_bias", incoming=None, **options):
    features, weight, bias = tensors = [
        None if x is None else x.detach().double().requires_grad_() for x in (p.features, p.weight, p.bias)
    ]
    logits = features @ weight.T if bias is None else features @ weight.T + bias
    value = reference.focal_distillation_loss(logits, p.old_logits(kind), p.target, **options)
    return gradients_of(value, tensors, incoming)


def assert_near(value, expected, tolerance, what):
    """Within `tolerance` of the greatest; a NaN is never near."""
    assert value.shape == expected.shape
    if value.numel():
        error = (value.double() - expected.double()).abs().max()
        bound = tolerance * expected.double().abs().max()
        assert error <= bound, (what, (error / bound).item())


def assert_agrees(p, kind="head_and_bias", order=None, incoming=None, tolerance=2e-6, **options):
    value, gradients = ours(p, kind, order, incoming, **options)
    expected, expected_gradients = theirs(p, kind, incoming, **options)
    assert value.shape == expected.shape
    wide = torch.float64 in (p.features.dtype, p.weight.dtype)
    assert value.dtype == (torch.float64 if wide else torch.float32)
    error = (value.double() - expected).abs()
    assert ((error <= tolerance * expected.abs()) | (value == expected)).all(), (value, expected)
    given = (p.features, p.weight, p.bias)
    for name, x, ours_, theirs_ in zip(
        ("features", "weight", "bias"), given, gradients, expected_gradients, strict=True
    ):
        if x is None:
            continue
        assert ours_.dtype == x.dtype, name
        assert ours_.shape == x.shape, name
        assert_near(ours_, theirs_, 2 * max(tolerance, torch.finfo(x.dtype).eps), name)


# --- agreement with the reference -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_values_and_gradients_agree_with_the_reference_of_the_logits(order, kind):
    for reduction in ("mean", "sum"):
        assert_agrees(problem(), kind, order, reduction=reduction)
        assert_agrees(problem()._replace(bias=None), kind, order, reduction=reduction, temperature=3.0)


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("length", [1, 7, 30, CLASSES])
def test_rows_agree_each_with_its_own_incoming_gradient(length, kind):
    incoming = torch.linspace(-2, 3, ROWS)
    for divergence in ("kl", "logits", "ldi"):
        assert_agrees(problem(), kind, Order("classes", length), incoming, reduction="none", divergence=divergence)


@everywhere
@pytest.mark.parametrize("order", BOTH, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "logits"},
        {"divergence": "ldi"},
        {"divergence": "ldi", "ldi_margin": 0.0},
        {"divergence": "ldi", "ldi_margin": 2.0, "exclude_target": True},
        {"focus": "negative_flip", "alpha": 0.5, "beta": 3.0},
        {"focus": "new_incorrect", "beta": 2.0},
        {"focus": "all"},
        {"focus": torch.linspace(0, 3, ROWS)},
        {"label_smoothing": 0.1},
        {"label_smoothing": 1.0, "divergence": "logits"},
        {"distillation_weight": 0.3, "cross_entropy_weight": 2.0},
        {"distillation_weight": 0.0},
        {"cross_entropy_weight": 0.0, "divergence": "ldi"},
        {"ignore_index": 5},
        {"count": 3.0},
        {"count": torch.tensor(7)},
        *({"temperature": t} for t in TEMPERATURES),
    ],
    ids=str,
)
def test_every_option_agrees(order, options):
    p = problem()
    if options.get("ignore_index"):
        p.target[p.target == -100] = 5
        assert (p.target == 5).any()
    for kind in ("logits", "head_and_bias"):
        assert_agrees(p, kind, order, **options)


def test_all_focus_modes_tell_rows_apart():
    p = problem()
    values = {f: ours(p, reduction="none", focus=f)[0] for f in ("old_correct", "negative_flip", "new_incorrect")}
    values["all"] = ours(p, reduction="none", focus="all")[0]
    names = list(values)
    assert all(not torch.equal(values[a], values[b]) for i, a in enumerate(names) for b in names[:i])


@pytest.mark.parametrize("order", BOTH, ids=str)
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
@pytest.mark.parametrize("old_classes", [1, 7, 10, 36, 60])
def test_an_old_head_of_another_size(old_classes, divergence, order):
    for kind in TEACHERS:
        assert_agrees(problem(old_classes=old_classes), kind, order, divergence=divergence, temperature=8.0)


@pytest.mark.parametrize("order", BOTH, ids=str)
def test_old_logits_without_a_column(order):
    p = problem()
    nothing = p._replace(old_features=torch.zeros(ROWS, 0), old_weight=torch.zeros(0, 0), old_bias=torch.zeros(0))
    assert nothing.teacher("logits")["old_logits"].shape == (ROWS, 0)
    assert_agrees(nothing, "logits", order)
    assert torch.allclose(ours(nothing, "logits", order)[0], ours(p, order=order, distillation_weight=0.0)[0])


@pytest.mark.parametrize("order", [*BOTH, Order("classes", 1)], ids=str)
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
@pytest.mark.parametrize(("old_classes", "shared"), [(37, 37), (20, 13), (50, 30), (5, 1), (5, 0)])
def test_a_class_map(old_classes, shared, divergence, order):
    class_map = spread_map(CLASSES, old_classes, shared)
    p = problem(old_classes=old_classes, class_map=class_map)
    for kind in TEACHERS:
        assert_agrees(p, kind, order, divergence=divergence, class_map=class_map, temperature=8.0)


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("order", [Order("rows", 4), Order("classes", 1)], ids=str)
def test_one_class(order, kind):
    p = problem(classes=1)
    assert_agrees(p, kind, order)
    assert_agrees(problem(classes=1, old_classes=3), kind, order, divergence="logits")


@pytest.mark.parametrize("order", [*BOTH, None], ids=str)
@pytest.mark.parametrize("kind", TEACHERS)
def test_no_counted_row_gives_loss_0_and_gradients_of_0(kind, order):
    empty = order is None or order.over == "classes"  # no batch is too large for the workspace: rows take some
    for p in (problem(ignored=range(ROWS)), *([problem(rows=0)] if empty else ())):
        for reduction in ("mean", "sum"):
            value, gradients = ours(p, kind, order, reduction=reduction)
            assert value.shape == ()
            assert value == 0
            for gradient, x in zip(gradients, (p.features, p.weight, p.bias), strict=True):
                assert gradient.shape == x.shape
                assert (gradient == 0).all()
    rows, _ = ours(problem(rows=0), kind, reduction="none")
    assert rows.shape == (0,)


@pytest.mark.parametrize("order", ORDERS[1::2], ids=str)
@pytest.mark.parametrize("offset", [2.0**10, -(2.0**14)])
def test_logits_of_a_large_offset(order, offset):
    p = problem()
    eighths = [None if x is None else (x * 8).round() / 8 for x in (p.features, p.weight, p.bias)]
    old = [(x * 8).round() / 8 for x in (p.old_features, p.old_weight, p.old_bias)]
    p = Problem(*eighths, p.target, *old)
    p = p._replace(bias=p.bias + offset, old_bias=p.old_bias - offset)
    for options in ({}, {"temperature": 1.0}):
        assert_agrees(p, order=order, **options)


@pytest.mark.parametrize("order", [*BOTH, Order("classes", 1)], ids=str)
@pytest.mark.parametrize("divergence", ["kl", "logits", "ldi"])
def test_classes_masked_by_a_bias_of_minus_infinity(divergence, order):
    p = problem()
    mask = torch.ones(CLASSES, dtype=torch.bool)
    mask[p.target[p.target >= 0]] = False
    masked = mask.nonzero()[::2, 0]
    assert len(masked) > 5
    p.bias[masked], p.old_bias[masked] = -torch.inf, -torch.inf
    assert_agrees(p, order=order, divergence=divergence)
    _, (_, weight, bias) = ours(p, order=order, divergence=divergence)
    assert (weight[masked] == 0).all()
    assert (bias[masked] == 0).all()


@everywhere
@pytest.mark.parametrize("order", BOTH, ids=str)
def test_an_infinite_divergence_has_finite_gradients(order):
    p = problem()
    p.bias[(p.target[0] + 1) % CLASSES] = -torch.inf
    value, gradients = ours(p, order=order)
    assert value == torch.inf
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    finite, _ = ours(p, order=order, distillation_weight=0.0)
    assert torch.isfinite(finite)


@pytest.mark.parametrize("order", BOTH, ids=str)
def test_a_nan_feature_is_not_lost(order):
    p = problem()
    p.features[1, 3] = torch.nan
    value, (features, *_) = ours(p, order=order)
    assert value.isnan()
    assert features[1].isnan().any()
    assert torch.isfinite(features[[0, *range(2, ROWS)]]).all()
    rows, _ = ours(p, reduction="none", order=Order("classes", 7))
    assert rows.isnan().tolist() == [i == 1 for i in range(ROWS)]


# --- dtypes -----------------------------------------------------------------------------------------------------------


def rounded(p, dtype, weight_dtype, old_dtype=torch.float32):
    return Problem(
        p.features.to(dtype),
        p.weight.to(weight_dtype),
        p.bias.to(weight_dtype),
        p.target,
        *(x.to(old_dtype) for x in (p.old_features, p.old_weight, p.old_bias)),
    )


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_every_dtype_of_features_and_weight(dtype, weight_dtype):
    p = rounded(problem(), dtype, weight_dtype)
    for kind in ("logits", "head"):
        assert_agrees(p, kind, Order("classes", 7))
        assert_agrees(p, kind, None)
    if weight_dtype == torch.float64 or (dtype != torch.float64 and weight_dtype == torch.float32):
        assert_agrees(p, "head", Order("rows", 4))


@pytest.mark.parametrize("old_dtype", DTYPES)
@pytest.mark.parametrize("kind", TEACHERS)
def test_every_dtype_of_the_old_model(kind, old_dtype):
    for order in BOTH:
        assert_agrees(rounded(problem(), torch.float32, torch.float32, old_dtype), kind, order)


def test_float64_keeps_its_digits():
    p = Problem(*(x.double() if x.is_floating_point() else x for x in problem()))
    for order in BOTH:
        for options in ({"temperature": 4.0}, {"divergence": "logits"}):
            assert_agrees(p, order=order, tolerance=1e-11, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_float32_ones_rounded_once(dtype):
    p = rounded(problem(rows=300, ignored=()), dtype, dtype)
    full = p._replace(features=p.features.float(), weight=p.weight.float(), bias=p.bias.float())
    for order in (Order("classes", 7), Order("classes", CLASSES)):
        value, half = ours(p, order=order, reduction="sum")
        expected, gradients = ours(full, order=order, reduction="sum")
        assert torch.equal(value, expected)
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(half, gradients, strict=True))
        assert all(a.dtype == dtype for a in half)


@pytest.mark.parametrize("bias_dtype", DTYPES)
def test_a_bias_of_its_own_dtype(bias_dtype):
    for weight_dtype, order in ((torch.float32, BOTH[0]), (torch.float32, BOTH[1]), (torch.bfloat16, BOTH[1])):
        p = rounded(problem(), torch.float32, weight_dtype)
        assert_agrees(p._replace(bias=p.bias.to(bias_dtype)), order=order)


@pytest.mark.parametrize("order", BOTH, ids=str)
@pytest.mark.parametrize("count", [3.0, 3, torch.tensor(3), torch.tensor(3.0), torch.tensor(3.0, dtype=torch.float64)])
def test_a_count_of_any_type_leaves_the_loss_float32(order, count):
    assert_agrees(problem(), order=order, count=count)


def test_parts_of_a_batch_with_one_count_add_up_to_its_mean():
    p = problem()
    count = gf.global_count(p.target)
    old_logits = p.teacher("logits")["old_logits"]
    parts = []
    for rows in (slice(0, 3), slice(3, 4), slice(4, ROWS)):
        part = p.features[rows], p.weight, p.target[rows]
        parts.append(gf.linear_focal_distillation_loss(*part, old_logits=old_logits[rows], count=count))
    whole = gf.linear_focal_distillation_loss(p.features, p.weight, p.target, **p.teacher("logits"))
    assert abs(sum(parts).item() - whole.item()) <= 1e-6 * whole.item()


def test_a_half_precision_weight_is_not_walked_over_rows():
    # each chunk of rows would convert it all again
    for dtype in (torch.bfloat16, torch.float16):
        with patch.object(_linear, "choose_order", wraps=choose_order) as chosen:
            ours(rounded(problem(), dtype, dtype))
        assert chosen.call_args.args[3] is False


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", BOTH, ids=str)
@pytest.mark.parametrize("needed", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1) if a + b + c])
def test_frozen_inputs_get_no_gradient_and_change_no_other(needed, order):
    p = problem()
    value, gradients = ours(p, order=order, needed=[bool(n) for n in needed])
    expected, all_gradients = ours(p, order=order)
    assert torch.equal(value, expected)
    for need, gradient, full in zip(needed, gradients, all_gradients, strict=True):
        assert torch.equal(gradient, full) if need else gradient is None


def test_the_old_model_gets_no_gradient():
    p = problem()
    for kind in TEACHERS:
        teacher = {name: x.detach().clone().requires_grad_() for name, x in p.teacher(kind).items()}
        for order in BOTH:
            features, weight, bias = leaves(p)
            with forced(order):
                gf.linear_focal_distillation_loss(features, weight, p.target, bias=bias, **teacher).backward()
            assert features.grad is not None
            assert all(x.grad is None for x in teacher.values())


@pytest.mark.parametrize("order", BOTH, ids=str)
def test_the_graph_can_be_used_again_with_another_incoming_gradient(order):
    p = problem()
    tensors = leaves(p)
    with forced(order):
        loss = gf.linear_focal_distillation_loss(tensors[0], tensors[1], p.target, bias=tensors[2], **p.teacher("head"))
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(loss, tensors, torch.tensor(-2.0), retain_graph=True)
    third = torch.autograd.grad(loss, tensors)
    for a, b, c, d in zip(first, kept, second, third, strict=True):
        assert a.abs().max() > 0
        assert torch.equal(a, b)
        assert torch.equal(c, -2 * a)
        assert torch.equal(d, a)


def test_gradients_of_any_stride():
    p = problem()
    tensors = leaves(p)
    rows = gf.linear_focal_distillation_loss(
        tensors[0], tensors[1], p.target, bias=tensors[2], reduction="none", **p.teacher("head")
    )
    incoming = (torch.ones(ROWS), torch.ones(1).expand(ROWS), torch.tensor([1.0, 9.0]).repeat(ROWS)[::2])
    dense, *others = (torch.autograd.grad(rows, tensors, g, retain_graph=True) for g in incoming)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(dense, other, strict=True))
    for order in BOTH:
        with forced(order):
            loss = gf.linear_focal_distillation_loss(tensors[0], tensors[1], p.target, **p.teacher("head"))
        plain, expanded = (
            torch.autograd.grad(loss.expand(3), tensors[:2], g, retain_graph=True)
            for g in (torch.ones(3), torch.ones(1).expand(3))
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, expanded, strict=True))


def test_inputs_of_any_stride():
    p = problem()
    wide = torch.randn(ROWS, 3 * CLASSES)
    old = p.teacher("logits")["old_logits"]
    wide[:, ::3] = old
    strided = {
        "features": p.features.t().contiguous().t(),
        "weight": torch.cat((p.weight, p.weight), 1)[:, : p.weight.shape[1]],
        "target": p.target.repeat_interleave(2)[::2],
        "bias": p.bias.repeat_interleave(2)[::2],
    }
    for teacher in ({"old_logits": wide[:, ::3]}, {"old_logits": torch.cat((old, old), 1)[:, :CLASSES]}):
        for order in BOTH:
            with forced(order):
                tensors = {k: x.detach().requires_grad_(x.is_floating_point()) for k, x in strided.items()}
                value = gf.linear_focal_distillation_loss(**tensors, **teacher)
                value.backward()
            expected, gradients = ours(p, "logits", order)
            assert torch.allclose(value, expected, rtol=1e-6, atol=0)
            for name, gradient in zip(("features", "weight", "bias"), gradients, strict=True):
                assert_near(tensors[name].grad, gradient, 1e-6, name)


@pytest.mark.parametrize("order", BOTH, ids=str)
def test_double_backward_is_a_clear_error(order):
    p = problem()
    features, weight, bias = leaves(p)
    with forced(order):
        loss = gf.linear_focal_distillation_loss(features, weight, p.target, bias=bias, **p.teacher("head"))
    plain = torch.autograd.grad(loss, [features, weight, bias], retain_graph=True)
    gradients = torch.autograd.grad(loss, [features, weight, bias], create_graph=True)
    for gradient, expected in zip(gradients, plain, strict=True):
        assert torch.equal(gradient, expected)
        with pytest.raises(RuntimeError, match="differentiable once"):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize("order", BOTH, ids=str)
@pytest.mark.parametrize("kind", ["logits", "head_and_bias"])
def test_autocast_changes_nothing(kind, order):
    p = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours(p, kind, order)
    outside = ours(p, kind, order)
    assert inside[0].dtype == torch.float32
    assert torch.equal(inside[0], outside[0])
    assert all(torch.equal(a, b) for a, b in zip(inside[1], outside[1], strict=True))


@pytest.mark.parametrize("order", BOTH, ids=str)
def test_a_scaled_loss_has_scaled_gradients(order):
    p = problem()
    _, plain = ours(p, order=order)
    _, scaled = ours(p, order=order, incoming=torch.tensor(2.0**16))
    for a, b in zip(plain, scaled, strict=True):
        assert a.abs().max() > 0
        assert torch.equal(a * 2.0**16, b)


def test_without_gradients_the_value_is_the_same():
    p = problem()
    expected, _ = ours(p, order=Order("classes", 7))
    with forced(Order("classes", 7)), torch.no_grad():
        value = gf.linear_focal_distillation_loss(
            p.features, p.weight, p.target, bias=p.bias, **p.teacher("head_and_bias")
        )
    assert torch.equal(value, expected)
    assert not value.requires_grad


@pytest.mark.parametrize("order", BOTH, ids=str)
@pytest.mark.parametrize("kind", TEACHERS)
def test_no_input_is_written(kind, order):
    p = problem()
    teacher = p.teacher(kind)
    copies = [x.clone() for x in (*p, *teacher.values())]
    features, weight, bias = p.features.requires_grad_(), p.weight.requires_grad_(), p.bias.requires_grad_()
    with forced(order):
        gf.linear_focal_distillation_loss(features, weight, p.target, bias=bias, **teacher).backward()
    assert all(torch.equal(a, b) for a, b in zip((*p, *teacher.values()), copies, strict=True))


# --- memory and the choice of a loop order ----------------------------------------------------------------------------


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest storage of any result that is not of an input."""

    def __init__(self, *inputs):
        super().__init__()
        self.inputs = {x.untyped_storage().data_ptr() for x in inputs if x is not None}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.inputs:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("over", ["rows", "classes"])
@pytest.mark.parametrize("kind", ["logits", "head_and_bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mapped", [False, True])
def test_no_tensor_of_all_logits_is_held(kind, over, dtype, mapped):
    if over == "rows" and dtype == torch.bfloat16:
        pytest.skip("never walked over rows")
    rows, classes = 64, 20_000
    class_map = torch.arange(classes).flip(0) if mapped else None
    p = rounded(problem(rows, classes, width=8, old_width=8), dtype, dtype, dtype)
    workspace_bytes = rows * classes * 4 // 16
    features, weight, bias = leaves(p)
    teacher = p.teacher(kind)

    def chosen(size, workspace_bytes, device, rows_possible=True):
        orders = [choose_order(size, workspace_bytes, device, rows_possible=False)]
        orders.append(Order("rows", workspace_bytes // (4 * classes * (1 + (kind != "logits")))))
        return orders[over == "rows"]

    with (
        patch.object(_linear, "choose_order", side_effect=chosen),
        Watch(features, weight, bias, *teacher.values()) as watch,
    ):
        loss = gf.linear_focal_distillation_loss(
            features, weight, p.target, bias=bias, class_map=class_map, workspace_bytes=workspace_bytes, **teacher
        )
        loss.backward()
    assert torch.isfinite(loss)
    allowed = max(workspace_bytes, p.weight.nbytes, p.old_weight.nbytes)
    assert 0 < watch.largest <= allowed < rows * classes * 4


@pytest.mark.parametrize("old_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mapped", [False, True])
def test_beside_a_frozen_weight_nothing_is_larger_than_the_workspace(mapped, old_dtype):
    # 16 rows or 102 classes of both models fit: wide heads are cheaper to read again than to multiply with again
    rows, classes, width = 64, 2000, 256
    workspace_bytes = 1 << 18
    p = rounded(problem(rows, classes, width=width, old_width=width), torch.float32, torch.float32, old_dtype)
    features, weight, bias = leaves(p, (True, False, False))
    class_map = torch.arange(classes).flip(0) if mapped else None
    teacher = p.teacher("head")
    with Watch(features, weight, bias, *teacher.values()) as watch:
        loss = gf.linear_focal_distillation_loss(
            features, weight, p.target, bias=bias, class_map=class_map, workspace_bytes=workspace_bytes, **teacher
        )
        loss.backward()
    assert torch.isfinite(loss)
    assert 0 < watch.largest <= workspace_bytes


FITS = Size(rows=1024, classes=1000, width=512, old_width=512, element_size=4, weight_gradient=True)
FACES = Size(rows=1024, classes=1_000_000, width=512, old_width=512, element_size=4, weight_gradient=True)
MIB = 1 << 20


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_that_fits_is_walked_once_by_rows(device):
    assert choose_order(FITS, 64 * MIB, device) == Order("rows", 1024)
    assert choose_order(FITS._replace(old_width=0), 64 * MIB, device) == Order("rows", 1024)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_head_of_a_million_classes_is_walked_by_classes(device):
    over, length = choose_order(FACES, 64 * MIB, device)
    assert over == "classes"
    assert length >= 1000  # else products are too thin


@pytest.mark.parametrize("size", [FITS, FACES])
def test_rows_are_not_walked_where_gradients_cannot_be_made_in_forward(size):
    assert choose_order(size, 64 * MIB, "cpu", rows_possible=False).over == "classes"


@pytest.mark.parametrize(
    ("options", "possible"), [({}, True), ({"reduction": "sum"}, True), ({"reduction": "none"}, False)]
)
def test_gradients_are_made_in_forward_for_a_scalar_only(options, possible):
    with patch.object(_linear, "choose_order", wraps=choose_order) as chosen:
        ours(problem(), **options)
    size, _, device, rows_possible = chosen.call_args.args
    assert (size, device) == (Size(ROWS, CLASSES, 12, 10, 4, True), "cpu")
    assert rows_possible is possible


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", [FITS, FACES, FACES._replace(weight_gradient=False, rows=64), FITS._replace(rows=1)])
def test_a_larger_workspace_never_means_more_passes_and_its_bound_is_kept(size, device):
    orders = [(1 << i, choose_order(size, 1 << i, device)) for i in range(44)]
    rows = [order.over == "rows" for _, order in orders]
    assert rows == sorted(rows)  # once rows pay, they go on to pay
    for over in ("rows", "classes"):
        lengths = [order.length for _, order in orders if order.over == over]
        assert lengths == sorted(lengths)
    matrices = 1 + (size.old_width > 0)
    for workspace_bytes, (over, length) in orders:
        assert 1 <= length <= (size.rows if over == "rows" else size.classes)
        held = length * (size.classes if over == "rows" else size.rows) * matrices * size.element_size
        assert held <= workspace_bytes or (over, length) == ("classes", 1)


@pytest.mark.parametrize("workspace_bytes", [1, 500, 3000, 5000, 64 * MIB])
def test_the_chosen_order_agrees_for_any_workspace(workspace_bytes):
    p = problem()
    for kind in TEACHERS:
        value, gradients = ours(p, kind, workspace_bytes=workspace_bytes)
        expected, expected_gradients = theirs(p, kind)
        assert_near(value, expected, 2e-6, "value")
        for ours_, theirs_ in zip(gradients, expected_gradients, strict=True):
            assert_near(ours_, theirs_, 4e-6, "gradient")


def test_wide_heads_are_walked_by_chunks_of_rows_where_some_fit():
    p = problem(rows=60, classes=2000, width=256, old_width=256, ignored=(3, 59))
    orders = []
    with patch.object(_linear, "choose_order", side_effect=lambda *a: orders.append(choose_order(*a)) or orders[0]):
        value, gradients = ours(p, workspace_bytes=1 << 19)
    assert orders == [Order("rows", 32)]  # and 28
    expected, expected_gradients = theirs(p)
    assert_near(value, expected, 2e-6, "value")
    for ours_, theirs_ in zip(gradients, expected_gradients, strict=True):
        assert_near(ours_, theirs_, 4e-6, "gradient")


FACE_RECOGNITION = """
import sys, torch
import graceful_fast as gf

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))

rows, width, classes, workspace_bytes = 256, 512, 1_000_000, 64 << 20
generator = torch.Generator().manual_seed(0)
def normal(*shape):
    return torch.empty(*shape).normal_(generator=generator)

small = [normal(64, width).requires_grad_(), normal(5000, width).requires_grad_(), torch.arange(64)]
teacher = {"old_features": normal(64, width), "old_weight": normal(5000, width)}
gf.linear_focal_distillation_loss(*small, workspace_bytes=1 << 20, **teacher).backward()  # threads, libraries
features, old_features = normal(rows, width), normal(rows, width)
weight, old_weight = normal(classes, width).mul_(0.05), normal(classes, width).mul_(0.05)
target = torch.randint(0, classes, (rows,), generator=generator)
features.requires_grad_(), weight.requires_grad_()
features.grad, weight.grad = torch.zeros_like(features), None
before = kilobytes("VmRSS")
loss = gf.linear_focal_distillation_loss(
    features, weight, target, old_features=old_features, old_weight=old_weight, workspace_bytes=workspace_bytes
)
loss.backward()
growth = (kilobytes("VmHWM") - before) * 1024 - weight.nbytes  # the gradient of the weight
assert torch.isfinite(loss), loss
assert torch.isfinite(features.grad).all()
assert features.grad.abs().max() > 0
chunks = [weight.grad[i : i + 50_000] for i in range(0, classes, 50_000)]
assert all(torch.isfinite(x).all() for x in chunks)
assert all(x.abs().max() > 0 for x in chunks)
print(growth / workspace_bytes)
assert growth < 4 * workspace_bytes, growth / workspace_bytes
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_million_classes_take_a_few_workspaces_beside_inputs_and_gradients():
    run = subprocess.run([sys.executable, "-c", FACE_RECOGNITION], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# --- arguments, module, compiler, documentation -----------------------------------------------------------------------

P = problem()
BATCH = {"features": P.features, "weight": P.weight, "target": P.target, "bias": P.bias}
HEAD = {"old_features": P.old_features, "old_weight": P.old_weight}
OLD = P.teacher("logits")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, "features: expected a torch.Tensor, got list"),
        ({"features": P.features.int()}, TypeError, "features: expected float32, .*got torch.int32"),
        ({"features": P.features[0]}, ValueError, r"features: expected shape \(batch, width\), got \(12,\)"),
        ({"weight": P.weight.long()}, TypeError, "weight: expected float32, .*got torch.int64"),
        ({"weight": P.weight[:, 1:]}, ValueError, r"weight: expected shape \(classes, 12\) .*, got \(37, 11\)"),
        ({"weight": P.weight[:0]}, ValueError, r"weight: expected .* at least one class, got \(0, 12\)"),
        ({"weight": P.weight[0]}, ValueError, r"weight: expected shape \(classes, 12\)"),
        ({"bias": P.bias[:36]}, ValueError, r"bias: expected shape \(37,\), got \(36,\)"),
        ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got float"),
        ({"target": P.target.int()}, TypeError, "target: expected int64, got torch.int32"),
        ({"target": P.target[:2]}, ValueError, r"target: expected shape \(9,\), got \(2,\)"),
        ({"target": P.target[0] * 0 + torch.full((9,), 37)}, IndexError, "target: expected 0 <= target < 37, got 37"),
        ({"target": torch.full((9,), -1)}, IndexError, "target: expected 0 <= target < 37, got -1 at row 0"),
        ({"target": torch.full((9,), 1 << 40)}, IndexError, "target: expected 0 <= target < 37, got 1099511627776"),
        ({"old_logits": None}, ValueError, "old_logits: expected these, or .*, got none of them"),
        ({"old_logits": None, "old_weight": P.old_weight}, ValueError, "old_logits: .*, got only one of the latter"),
        ({"old_logits": None, "old_features": P.features}, ValueError, "old_logits: .*, got only one of the latter"),
        (HEAD, ValueError, "old_logits: expected these, or old_features and old_weight, got both"),
        ({"old_bias": P.old_bias}, ValueError, "old_logits: expected these, or .*, got both"),
        (
            {"old_logits": OLD["old_logits"][:3]},
            ValueError,
            r"old_logits: expected shape \(9, classes\), got \(3, 37\)",
        ),
        ({"old_logits": OLD["old_logits"].int()}, TypeError, "old_logits: expected float32"),
        (
            {"old_logits": None, **HEAD, "old_features": P.old_features[:3]},
            ValueError,
            r"old_features: expected shape \(9, width\), got \(3, 10\)",
        ),
        (
            {"old_logits": None, **HEAD, "old_weight": P.old_weight[:, 2:]},
            ValueError,
            r"old_weight: expected shape \(classes, 10\) as old_features, got \(37, 8\)",
        ),
        ({"old_logits": None, **HEAD, "old_bias": P.old_bias[:2]}, ValueError, r"old_bias: expected shape \(37,\)"),
        ({"divergence": "js"}, ValueError, "divergence: expected one of kl, logits, ldi, got 'js'"),
        ({"focus": "some"}, ValueError, "focus: expected one of old_correct, .*got 'some'"),
        ({"focus": torch.ones(2)}, ValueError, r"focus: expected shape \(9,\), got \(2,\)"),
        ({"reduction": "avg"}, ValueError, "reduction: expected one of mean, sum, none, got 'avg'"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive finite number, got 0.0"),
        ({"temperature": math.inf}, ValueError, "temperature: expected a positive finite number, got inf"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected 0 to 1, got 1.5"),
        ({"ldi_margin": -1.0}, ValueError, "ldi_margin: expected a finite number of at least 0, got -1.0"),
        ({"class_map": [0]}, TypeError, "class_map: expected an int64 torch.Tensor, got list"),
        ({"class_map": torch.arange(36)}, ValueError, r"class_map: expected shape \(37,\), got \(36,\)"),
        ({"class_map": torch.arange(37) + 1}, ValueError, "class_map: expected -1 <= class < 37, got 37 at class 36"),
        ({"class_map": torch.zeros(37).long()}, ValueError, "class_map: expected each old class at most once, got 0"),
        ({"count": 0}, ValueError, "count: expected a positive finite number, got 0"),
        ({"count": math.nan}, ValueError, "count: expected a positive finite number, got nan"),
        ({"count": torch.ones(2)}, ValueError, r"count: expected shape \(\), got \(2,\)"),
        ({"count": 2.0, "reduction": "sum"}, ValueError, "count: expected None unless reduction is"),
        ({"first_class": 3}, ValueError, "first_class: expected 0 without group=, got 3"),
        ({"group": "world"}, TypeError, "group: expected a torch.distributed.ProcessGroup, got str"),
        ({"workspace_bytes": 0}, ValueError, "workspace_bytes: expected a positive integer, got 0"),
    ],
)
def test_bad_arguments_raise_one_error_that_names_them(arguments, error, message):
    with pytest.raises(error, match=message):
        gf.linear_focal_distillation_loss(**{**BATCH, **OLD, **arguments})


def test_an_ignored_target_may_be_any_number():
    target = P.target.where(P.target != -100, -7)
    value = gf.linear_focal_distillation_loss(**{**BATCH, **OLD, "target": target}, ignore_index=-7)
    assert torch.equal(value, gf.linear_focal_distillation_loss(**BATCH, **OLD))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "divergence": "ldi",
            "ldi_margin": 0.2,
            "exclude_target": True,
            "reduction": "none",
            "alpha": 2.0,
            "beta": 0.5,
        },
        {"temperature": 3.0, "focus": "new_incorrect", "label_smoothing": 0.1, "ignore_index": 5, "reduction": "sum"},
        {"class_map": spread_map(37, 37, 20), "distillation_weight": 0.5, "cross_entropy_weight": 2.0},
        {"workspace_bytes": 1000, "divergence": "logits"},
    ],
)
def test_the_module_is_the_function_with_its_options(options):
    module = gf.LinearFocalDistillationLoss(**options)
    batch = {**BATCH, "target": P.target.where(P.target != -100, 5)} if "ignore_index" in options else BATCH
    for teacher in (OLD, HEAD, {**HEAD, "old_bias": P.old_bias}):
        count = {} if options.get("reduction", "mean") != "mean" else {"count": 4.0}
        value = module(**batch, **teacher, **count)
        assert torch.equal(value, gf.linear_focal_distillation_loss(**batch, **teacher, **count, **options))
    assert not list(module.parameters())
    for name, option in options.items():
        assert name == "class_map" or f"{name}={option!r}" in repr(module)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"divergence": "js"}, {"reduction": "max"}, {"first_class": 1}, {"ldi_margin": -1}]
)
def test_the_module_checks_its_options_at_construction(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        gf.LinearFocalDistillationLoss(**wrong)


# Dynamo makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["logits", "head_and_bias"])
@pytest.mark.parametrize("over", ["rows", "classes"])
def test_torch_compile_makes_one_graph_of_it(over, kind):
    p = problem()
    # "none" cannot be walked over rows; 3 blocks of classes
    options = {} if over == "rows" else {"reduction": "none", "workspace_bytes": 2400}

    def loss(features, weight, bias, target, teacher):
        return gf.linear_focal_distillation_loss(features, weight, target, bias=bias, **options, **teacher)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for run in (compiled, loss):
        tensors = leaves(p)
        results.append(gradients_of(run(*tensors, p.target, p.teacher(kind)), tensors, None))
    assert_near(results[0][0], results[1][0], 1e-6, "value")
    for ours_, theirs_ in zip(results[0][1], results[1][1], strict=True):
        assert_near(ours_, theirs_, 1e-6, "gradient")


# A class map's contents choose the blocks' columns: graphs with breaks, no single one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch, on resuming
def test_compiled_with_a_class_map_it_is_the_same():
    p, class_map = problem(), spread_map(CLASSES, CLASSES, 20)

    def loss(features, weight, bias):
        return gf.linear_focal_distillation_loss(
            features, weight, p.target, bias=bias, class_map=class_map, workspace_bytes=2400, **p.teacher("head")
        )

    results = []
    for run in (torch.compile(loss, backend="aot_eager"), loss):
        tensors = leaves(p)
        results.append(gradients_of(run(*tensors), tensors, None))
    assert_near(results[0][0], results[1][0], 1e-6, "value")
    for ours_, theirs_ in zip(results[0][1], results[1][1], strict=True):
        assert_near(ours_, theirs_, 1e-6, "gradient")


@pytest.mark.parametrize("module", [linear_losses, _ranks])
def test_docstring_examples_run(module):
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted >= 2


def test_blocks_of_very_different_levels_keep_the_gradients_digits():
    new = torch.tensor([[-0.0153, -0.00385, 10000.0078, 9999.9961, 10000.0025]])
    old = torch.tensor([[-7.6e-5, -0.0436, -0.1274, 0.0013, -0.0147]])
    options = {"temperature": 1.0, "focus": "all", "reduction": "none"}
    leaf, wide, target = new.clone().requires_grad_(), new.double().requires_grad_(), torch.tensor([4])
    gf.linear_focal_distillation_loss(
        leaf, torch.eye(5), target, old_logits=old, workspace_bytes=72, **options
    ).backward()
    reference.focal_distillation_loss(wide, old.double(), target, **options).backward()
    assert ((leaf.grad - wide.grad).abs() <= 1e-6 * wide.grad.abs().max()).all(), (leaf.grad, wide.grad)


def test_without_gradients_nothing_of_the_weights_size_is_made():
    features, weight = torch.randn(8, 4, requires_grad=True), torch.randn(50_000, 4, requires_grad=True)
    with torch.no_grad(), Watch(features, weight) as watch:
        gf.linear_focal_distillation_loss(
            features, weight, torch.arange(8), old_logits=torch.zeros(8, 10), workspace_bytes=1 << 16
        )
    assert 0 < watch.largest <= 1 << 16


def test_an_old_head_without_classes_distils_nothing():
    features, weight, target = torch.randn(4, 3), torch.randn(5, 3), torch.arange(4)
    loss = gf.linear_focal_distillation_loss(
        features, weight, target, old_features=torch.randn(4, 2), old_weight=torch.randn(0, 2)
    )
    expected = torch.nn.functional.cross_entropy(features @ weight.T, target)
    assert abs(loss - expected) <= 1e-6 * expected
