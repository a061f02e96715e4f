"""influence_loss against its float64 reference, its op, its memory, and what a compiled graph makes of it."""

import math
import os
import subprocess
import sys

import engines
import pytest
import torch

import graceful_fast as gf
from graceful_fast import _influence, _ops, reference

WHOLE, TINY = 8 << 20, 1  # one block, one class a block


def head(rows=6, classes=37, width=12, extra=0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width + extra, generator=generator).to(dtype)
    weight = torch.randn(classes, width, generator=generator)
    bias = torch.randn(classes, generator=generator)
    return features, weight, bias, torch.randint(0, classes, (rows,), generator=generator)


everywhere = pytest.mark.usefixtures("engine")  # on every engine of engines.py, not the CPU alone


def value_and_gradient(loss, features, weight, target, grad_output=None, **options):
    """On the engine in use."""
    place = engines.current.place
    leaf = place(features.detach()).requires_grad_()
    value = loss(leaf, place(weight), place(target), **{name: place(option) for name, option in options.items()})
    value.backward(torch.ones_like(value) if grad_output is None else place(grad_output).to(value.dtype))
    return value.detach().cpu(), leaf.grad.cpu()


def assert_agrees(features, weight, target, tolerance=2e-6, workspace_bytes=WHOLE, **options):
    value, gradient = value_and_gradient(
        gf.influence_loss, features, weight, target, workspace_bytes=workspace_bytes, **options
    )
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in options.items()}
    expected, expected_gradient = value_and_gradient(
        reference.influence_loss, features.double(), weight.double(), target, **wide
    )
    assert value.dtype == (torch.float64 if features.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == features.dtype
    assert gradient.shape == features.shape
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= tolerance * expected.abs() + 2e-8).all(), (value, expected)
    if gradient.numel():
        loosest = max(tolerance, torch.finfo(features.dtype).eps)
        assert ((gradient - expected_gradient).abs() <= 2 * loosest * (expected_gradient.abs().max() + 1e-6)).all()


@everywhere
@pytest.mark.parametrize("workspace_bytes", [TINY, 1000, WHOLE])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [False, True])
def test_values_and_gradients_agree_with_the_float64_reference(workspace_bytes, reduction, normalize):
    features, weight, bias, target = head()
    target[2] = -100
    for options in ({}, {"old_bias": bias, "scale": 3.0}, {"label_smoothing": 0.2, "scale": 0.5}):
        assert_agrees(
            features,
            weight,
            target,
            workspace_bytes=workspace_bytes,
            reduction=reduction,
            normalize=normalize,
            **options,
        )


@everywhere
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("old_dtype", [torch.float32, torch.bfloat16])
def test_every_dtype_of_features_and_head(dtype, old_dtype):
    features, weight, _, target = head(dtype=dtype)
    assert_agrees(features, weight.to(old_dtype), target, workspace_bytes=500)


@pytest.mark.parametrize("normalize", [False, True])
def test_wider_features_use_the_first_columns_and_the_rest_gets_no_gradient(normalize):
    features, weight, _, target = head(extra=5)
    assert_agrees(features, weight, target, normalize=normalize)
    _, gradient = value_and_gradient(gf.influence_loss, features, weight, target, normalize=normalize)
    assert (gradient[:, 12:] == 0).all()


@everywhere
def test_confident_rows_keep_their_digits():
    features, weight = torch.eye(4) * torch.tensor([12.0, 16.0, 25.0, 40.0]), torch.eye(4)
    for workspace_bytes in (TINY, WHOLE):
        for target in (torch.arange(4), torch.tensor([1, 2, 3, 0])):
            value, gradient = value_and_gradient(
                gf.influence_loss, features, weight, target, reduction="none", workspace_bytes=workspace_bytes
            )
            expected, expected_gradient = value_and_gradient(
                reference.influence_loss, features.double(), weight.double(), target, reduction="none"
            )
            assert torch.allclose(value.double(), expected, rtol=1e-5, atol=1e-16)
            assert torch.allclose(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-16)


@everywhere
@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_count_gives_loss_0_and_no_gradient(rows):
    features, weight, _, _ = head(rows=rows)
    value, gradient = value_and_gradient(gf.influence_loss, features, weight, torch.full((rows,), -100))
    assert value.item() == 0.0
    assert gradient.shape == features.shape
    assert (gradient == 0).all()


def test_each_row_gets_its_own_incoming_gradient_and_the_graph_can_be_used_again():
    features, weight, _, target = head()
    leaf = features.requires_grad_()
    rows = gf.influence_loss(leaf, weight, target, reduction="none")
    incoming = torch.arange(6.0) - 2
    (weighted,) = torch.autograd.grad(rows, leaf, incoming, retain_graph=True)
    (ones,) = torch.autograd.grad(rows, leaf, torch.ones(1).expand(6))
    assert torch.allclose(weighted, ones * incoming[:, None])


def test_the_old_head_gets_no_gradient():
    features, weight, bias, target = head()
    weight.requires_grad_(), bias.requires_grad_()
    gf.influence_loss(features.requires_grad_(), weight, target, old_bias=bias).backward()
    assert weight.grad is None
    assert bias.grad is None


def test_gradcheck_in_float64():
    features, weight, bias, target = head(rows=3, classes=5, width=4, extra=1, dtype=torch.float64)
    for normalize in (False, True):

        def rows(x, normalize=normalize):
            return gf.influence_loss(
                x,
                weight.double(),
                target,
                old_bias=bias.double(),
                normalize=normalize,
                reduction="none",
                workspace_bytes=64,
            )

        assert torch.autograd.gradcheck(rows, features.requires_grad_())


def test_double_backward_is_a_clear_error():
    features, weight, _, target = head()
    leaf = features.requires_grad_()
    (gradient,) = torch.autograd.grad(gf.influence_loss(leaf, weight, target), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


def test_autocast_changes_nothing():
    features, weight, _, target = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(gf.influence_loss, features, weight, target)
    outside = value_and_gradient(gf.influence_loss, features, weight, target)
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])


def test_no_tensor_of_all_logits_is_held():
    features, weight, _, target = head(rows=64, classes=20_000, width=8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    workspace_bytes = 64 * 20_000 * 4 // 16
    with Watch():
        value_and_gradient(gf.influence_loss, features, weight, target, workspace_bytes=workspace_bytes)
    assert 0 < largest <= max(workspace_bytes, weight.nbytes)


@pytest.mark.parametrize("bad", [-1, 37])
def test_a_target_outside_the_old_classes_raises(bad):
    features, weight, _, target = head()
    target[1] = bad
    with pytest.raises(IndexError, match=f"target: expected 0 <= target < 37, got {bad} at row 1"):
        gf.influence_loss(features, weight, target)


FEATURES, WEIGHT, BIAS, TARGET = head()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((FEATURES[:, :11], WEIGHT, TARGET), {}, ValueError, "features: expected at least 12 columns .*, got 11"),
        ((FEATURES[0], WEIGHT, TARGET), {}, ValueError, r"features: expected shape \(batch, width\), got \(12,\)"),
        ((FEATURES, WEIGHT[:0], TARGET), {}, ValueError, r"old_weight: expected shape .*, got \(0, 12\)"),
        ((FEATURES, WEIGHT, TARGET[:2]), {}, ValueError, r"target: expected shape \(6,\), got \(2,\)"),
        ((FEATURES, WEIGHT, TARGET.float()), {}, TypeError, "target: expected int64, got torch.float32"),
        ((FEATURES, WEIGHT.int(), TARGET), {}, TypeError, "old_weight: expected float32"),
        (
            (FEATURES, WEIGHT, TARGET),
            {"old_bias": BIAS[:3]},
            ValueError,
            r"old_bias: expected shape \(37,\), got \(3,\)",
        ),
        ((FEATURES, WEIGHT, TARGET), {"reduction": "max"}, ValueError, "reduction: expected one of"),
        (
            (FEATURES, WEIGHT, TARGET),
            {"label_smoothing": -0.1},
            ValueError,
            "label_smoothing: expected 0 to 1, got -0.1",
        ),
        ((FEATURES, WEIGHT, TARGET), {"margin": 0.1}, ValueError, "margin: expected 0 without normalize=True, got 0.1"),
        ((FEATURES, WEIGHT, TARGET), {"margin": -0.1, "normalize": True}, ValueError, "margin: expected at least 0"),
        ((FEATURES, WEIGHT, TARGET), {"margin": math.nan, "normalize": True}, ValueError, "margin: expected at least"),
        ((FEATURES, WEIGHT, TARGET), {"margin": math.inf, "normalize": True}, ValueError, "margin: expected at least"),
        (
            (FEATURES, WEIGHT, TARGET),
            {"margin": math.pi, "margin_type": "arc", "normalize": True},
            ValueError,
            "margin: expected at least 0, below pi, got 3.14",
        ),
        ((FEATURES, WEIGHT, TARGET), {"margin_type": "sphere"}, ValueError, "margin_type: expected one of cosine, arc"),
        ((FEATURES, WEIGHT, TARGET), {"class_map": [0]}, TypeError, "class_map: expected an int64 .*, got list"),
        ((FEATURES, WEIGHT, TARGET), {"class_map": TARGET.int()}, TypeError, "class_map: .*, got torch.int32"),
        ((FEATURES, WEIGHT, TARGET), {"class_map": TARGET[:0]}, ValueError, r"class_map: expected .*, got \(0,\)"),
        (
            (FEATURES, WEIGHT, TARGET),
            {"class_map": torch.tensor([0, 37, -2])},
            IndexError,
            "target: expected 0 <= target < 3, got",
        ),
        (
            (FEATURES, WEIGHT, torch.zeros_like(TARGET)),
            {"class_map": torch.tensor([0, 36, 37, -2])},
            ValueError,
            r"class_map: expected -1..36, got 37 at entry 2",
        ),
        ((FEATURES, WEIGHT, TARGET), {"count": 0.0}, ValueError, "count: expected a positive finite number, got 0.0"),
        ((FEATURES, WEIGHT, TARGET), {"count": math.nan}, ValueError, "count: expected a positive finite number"),
        ((FEATURES, WEIGHT, TARGET), {"count": torch.ones(1)}, ValueError, r"count: expected shape \(\), got \(1,\)"),
        ((FEATURES, WEIGHT, TARGET), {"count": 2.0, "reduction": "sum"}, ValueError, "count: expected None unless"),
        ((FEATURES, WEIGHT, TARGET), {"first_class": 1}, ValueError, "first_class: expected 0 without group=, got 1"),
        ((FEATURES, WEIGHT, TARGET), {"group": 1}, TypeError, "group: expected a torch.distributed.ProcessGroup"),
        ((FEATURES, WEIGHT, TARGET), {"workspace_bytes": 0}, ValueError, "workspace_bytes: expected a positive number"),
    ],
)
def test_bad_arguments_raise_one_error_that_names_them(arguments, options, error, message):
    with pytest.raises(error, match=message):
        gf.influence_loss(*arguments, **options)


def test_the_module_keeps_the_head_as_a_buffer():
    module = gf.InfluenceLoss(WEIGHT, old_bias=BIAS, scale=2.0, reduction="sum")
    ours = gf.influence_loss(FEATURES, WEIGHT, TARGET, old_bias=BIAS, scale=2.0, reduction="sum")
    assert torch.equal(module(FEATURES, TARGET), ours)
    assert set(module.state_dict()) == {"old_weight", "old_bias"}
    assert not list(module.parameters())
    assert module.double().old_weight.dtype == torch.float64


# --- classes masked by a bias of -inf ---------------------------------------------------------------------------------


def test_a_masked_target_is_infinite_with_label_smoothing_too() -> None:
    bias = torch.tensor([-torch.inf, 0.0])
    for label_smoothing in (0.0, 0.1):
        loss = gf.influence_loss(
            torch.eye(2),
            torch.eye(2),
            torch.tensor([0, 1]),
            old_bias=bias,
            label_smoothing=label_smoothing,
            reduction="none",
        )
        assert loss[0] == torch.inf
        assert not loss[1].isnan()


@everywhere
def test_every_class_masked_but_one_leaves_its_neighbours_right() -> None:
    features, weight, bias, target = head()
    target[:3] = torch.tensor([5, 20, 36])
    bias[:] = -torch.inf
    bias[[5, 20, 36]] = torch.tensor([0.5, 2.0, -1.0])
    for workspace_bytes in (TINY, 100, WHOLE):  # whole blocks of -inf, the first included
        options = {"old_bias": bias, "reduction": "none", "workspace_bytes": workspace_bytes}
        assert_agrees(features[:3], weight, target[:3], **options)
    bias[[20, 36]] = -torch.inf
    value, gradient = value_and_gradient(gf.influence_loss, features[:1], weight, target[:1], old_bias=bias)
    assert value == 0
    assert (gradient == 0).all()


# --- hostile logits ---------------------------------------------------------------------------------------------------


@everywhere
def test_targets_at_the_edges_of_blocks() -> None:
    features, weight, _, _ = head(rows=8)
    target = torch.tensor([0, 6, 7, 8, 13, 14, 35, 36])
    for classes in (1, 7, 14, 36, 37):
        assert_agrees(features, weight, target, workspace_bytes=classes * 8 * 4, reduction="none")


@everywhere
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 31, 33, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_length_of_a_row(classes, dtype) -> None:
    features, weight, bias, target = head(classes=classes, dtype=dtype)
    for options in ({}, {"old_bias": bias}, {"normalize": True, "scale": 9.0}, {"old_bias": bias, "normalize": True}):
        assert_agrees(features, weight, target, reduction="none", **options)


@everywhere
def test_huge_logits_stay_right() -> None:
    features, weight = torch.eye(3) * 2.0**20, torch.eye(3) * torch.tensor([16.0, 16.0, -16.0])
    for target in (torch.tensor([0, 0, 0]), torch.tensor([1, 1, 2])):
        assert_agrees(features, weight, target, reduction="none", workspace_bytes=20)


@pytest.mark.parametrize("workspace_bytes", [TINY, WHOLE])
def test_a_nan_makes_its_row_nan_and_no_other(workspace_bytes) -> None:
    features, weight, _, target = head()
    expected, expected_gradient = value_and_gradient(
        gf.influence_loss, features, weight, target, reduction="none", workspace_bytes=workspace_bytes
    )
    features[2, 3] = torch.nan
    value, gradient = value_and_gradient(
        gf.influence_loss, features, weight, target, reduction="none", workspace_bytes=workspace_bytes
    )
    others = torch.arange(6) != 2
    assert value[2].isnan()
    assert gradient[2].isnan().all()
    assert torch.equal(value[others], expected[others])
    assert torch.equal(gradient[others], expected_gradient[others])
    weight[5, 0] = torch.nan
    assert gf.influence_loss(FEATURES, weight, target, reduction="none", workspace_bytes=workspace_bytes).isnan().all()


# --- margins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin_type", ["cosine", "arc"])
@pytest.mark.parametrize("margin", [0.2, 0.5, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_agree_with_the_reference(margin_type, margin, dtype) -> None:
    features, weight, bias, target = head(rows=40, dtype=dtype)
    target[3] = -100
    options = {"normalize": True, "scale": 10.0, "margin": margin, "margin_type": margin_type}
    for extra in ({}, {"old_bias": bias, "label_smoothing": 0.2}, {"reduction": "none", "label_smoothing": 1.0}):
        assert_agrees(features, weight, target, workspace_bytes=2000, **options, **extra)


def test_gradcheck_with_an_arc_margin_on_both_sides_of_the_seam() -> None:
    features, weight, _, target = head(rows=8, classes=5, width=4, dtype=torch.float64)
    options = {"normalize": True, "scale": 3.0, "margin": 1.2, "margin_type": "arc", "reduction": "none"}
    angle = torch.nn.functional.cosine_similarity(features, weight[target].double()).acos() + 1.2
    assert (angle > math.pi).any()
    assert (angle < math.pi).any()
    assert torch.autograd.gradcheck(
        lambda x: gf.influence_loss(x, weight.double(), target, **options), features.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_arc_margin_at_angle_0_and_pi_moves_the_loss_and_adds_no_gradient(dtype, sign) -> None:
    _, weight, _, target = head(dtype=dtype)
    features = (sign * weight[target] * 4).to(dtype)  # exactly parallel
    options = {"normalize": True, "scale": 4.0}
    value, gradient = value_and_gradient(
        gf.influence_loss, features, weight, target, margin=0.4, margin_type="arc", **options
    )
    # The target's logit as a constant: what is left of the gradient comes from the other classes.
    x = features.double().requires_grad_()
    unit, rows = torch.nn.functional.normalize(x), torch.nn.functional.normalize(weight.double())
    moved = math.cos(0.4) if sign > 0 else -1 - 0.4 * math.sin(0.4)
    logits = (unit @ rows.T).scatter(1, target[:, None], moved) * 4
    expected = torch.nn.functional.cross_entropy(logits, target)
    expected.backward()
    assert abs(value - expected) < 2e-6
    assert torch.allclose(gradient.double(), x.grad, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-4


def test_an_arc_margin_near_angle_0_pulls_with_its_full_strength() -> None:
    for angle in (1e-2, 1e-4, 1e-6):
        features = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        _, gradient = value_and_gradient(
            gf.influence_loss,
            features,
            torch.eye(2)[:1].repeat(2, 1).mul(torch.tensor([[1.0], [-1.0]])),
            torch.tensor([0]),
            normalize=True,
            margin=0.5,
            margin_type="arc",
        )
        other = -math.cos(angle)
        p = 1 / (1 + math.exp(math.cos(angle + 0.5) - other))
        # d loss / d angle: the target's logit falls by sin(angle + margin), the other's rises by sin(angle)
        expected = p * (math.sin(angle + 0.5) + math.sin(angle))
        tangent = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=torch.float64)
        assert abs((gradient[0] * tangent).sum().item() - expected) < 1e-8


def test_the_arc_margin_goes_on_falling_past_pi() -> None:
    angle = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    features = torch.stack((angle.cos(), angle.sin()), 1)
    weight, target = torch.tensor([[1.0, 0.0]]).repeat(2, 1), torch.zeros(400, dtype=torch.int64)
    bias = torch.tensor([0.0, 0.0])
    for margin in (0.5, 2.0):
        options = {"normalize": True, "margin": margin, "margin_type": "arc", "old_bias": bias, "reduction": "none"}
        loss = gf.influence_loss(features, weight, target, **options)
        # loss = softplus(cos t - f(t)): its inverse gives f
        moved = angle.cos() - loss.expm1().log()
        assert (moved.diff() < 1e-12).all()


# --- class maps and counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_a_class_map_takes_out_what_the_old_model_never_knew(reduction, ignore_index) -> None:
    features, weight, bias, _ = head(rows=7)
    class_map = torch.tensor([36, -1, 0, 17, -1, 17])
    target = torch.tensor([0, 1, 2, 3, 4, 5, ignore_index])
    options = {"class_map": class_map, "reduction": reduction, "ignore_index": ignore_index}
    assert_agrees(features, weight, target, old_bias=bias, workspace_bytes=900, **options)
    by_hand = class_map[target.where(target != ignore_index, 1)]  # class 1 is unknown
    ours = value_and_gradient(gf.influence_loss, features, weight, target, **options)
    plain = value_and_gradient(gf.influence_loss, features, weight, by_hand, ignore_index=-1, reduction=reduction)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    assert (ours[1][[1, 4]] == 0).all()


@pytest.mark.parametrize("count", [3.0, 3, torch.tensor(3.0), torch.tensor(3), torch.tensor(3.0, dtype=torch.float64)])
def test_count_replaces_the_number_of_rows(count) -> None:
    features, weight, _, target = head()
    target[0] = -100
    assert_agrees(features, weight, target, count=count)
    ours = value_and_gradient(gf.influence_loss, features, weight, target, count=count)
    summed = value_and_gradient(gf.influence_loss, features, weight, target, reduction="sum")
    assert torch.allclose(ours[0], summed[0] / 3)
    assert torch.allclose(ours[1], summed[1] / 3)


def test_parts_of_a_batch_with_one_count_add_up_to_its_mean() -> None:
    features, weight, _, target = head(rows=8)
    target[:3] = -100
    count = gf.global_count(target)
    parts = [gf.influence_loss(features[i : i + 2], weight, target[i : i + 2], count=count) for i in range(0, 8, 2)]
    assert torch.allclose(sum(parts), gf.influence_loss(features, weight, target))


def test_the_module_takes_every_option_and_checks_it_at_construction() -> None:
    class_map = torch.tensor([4, -1, 30])
    options = {"normalize": True, "scale": 8.0, "margin": 0.3, "margin_type": "arc", "class_map": class_map}
    module = gf.InfluenceLoss(WEIGHT, old_bias=BIAS, **options)
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    ours = gf.influence_loss(FEATURES, WEIGHT, target, old_bias=BIAS, count=5.0, **options)
    assert torch.equal(module(FEATURES, target, count=5.0), ours)
    assert torch.equal(module.state_dict()["class_map"], class_map)
    assert "margin=0.3" in repr(module)
    for wrong in (
        {"margin": 0.3},
        {"margin": 4.0, "margin_type": "arc", "normalize": True},
        {"class_map": torch.tensor([37])},
        {"first_class": 2},
        {"workspace_bytes": 0},
        {"old_bias": BIAS[:2]},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            gf.InfluenceLoss(WEIGHT, **wrong)


# --- the op -----------------------------------------------------------------------------------------------------------


def block(rows=5, classes=300, dtype=torch.float32, first_class=40):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(rows, classes, generator=generator) * 4).to(dtype)
    factor = (torch.rand(classes, generator=generator) + 0.5).to(dtype)
    bias = torch.randn(classes, generator=generator).to(dtype)
    statistics = torch.tensor([[3.0, 2.0]], dtype=torch.float64).repeat(rows, 1)
    target = first_class + torch.tensor([-1, 0, classes // 2, classes - 1, classes])[torch.arange(rows) % 5]
    return logits, statistics, target, factor, bias, first_class


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("classes", [300, 4097])
def test_the_op_and_its_torch_form_agree_with_float64(dtype, given, classes) -> None:
    logits, statistics, target, factor, bias, first = block(classes=classes, dtype=dtype)
    factor, bias = (tensor if used else None for tensor, used in zip((factor, bias), given, strict=True))
    wide = [None if t is None else t.double() for t in (logits, factor, bias)]
    expected = wide[0].clone(), statistics.clone()
    expected_shrink = _influence.softmax_block_in_torch(*expected, target, *wide[1:], first)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    place = engines.current.place
    for run in (_influence.softmax_block, _influence.softmax_block_in_torch):
        ours, row = place(logits.clone()), place(statistics.clone())
        shrink = run(ours, row, place(target), place(factor), place(bias), first).cpu()
        ours, row = ours.cpu(), row.cpu()
        assert torch.allclose(ours.double(), expected[0], rtol=tolerance, atol=1e-30)
        assert torch.allclose(row, expected[1], rtol=tolerance)
        assert torch.allclose(shrink.double(), expected_shrink, rtol=tolerance)
        assert ours[1, 0] == 0
        assert ours[2, classes // 2] == 0
        assert ours[3, classes - 1] == 0


def test_the_op_has_the_same_bits_for_any_number_of_threads() -> None:
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            logits, statistics, *rest = block(rows=130, classes=2000)
            shrink = _ops.influence(logits, statistics, *rest)
            results.append((logits, statistics, shrink))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_op_passes_opcheck(rows, dtype) -> None:
    torch.library.opcheck(torch.ops.graceful_fast.influence.default, block(rows=rows, dtype=dtype))
    logits, statistics, target, _, _, first = block(rows=rows, dtype=dtype)
    torch.library.opcheck(torch.ops.graceful_fast.influence.default, (logits, statistics, target, None, None, first))


def test_the_op_refuses_what_its_kernel_could_not_read() -> None:
    logits, statistics, target, factor, bias, first = block()
    for wrong in (
        (logits.half(), statistics, target, None, None, first),
        (logits.t(), statistics, target, None, None, first),
        (logits, statistics.float(), target, None, None, first),
        (logits, statistics[:3], target, None, None, first),
        (logits, statistics, target.int(), None, None, first),
        (logits, statistics, target, factor[:7], None, first),
        (logits, statistics, target, factor, bias.double(), first),
    ):
        with pytest.raises(RuntimeError, match=r"\[influence\] .*expected"):
            _ops.influence(*wrong)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
def test_every_other_instruction_set_agrees(isa) -> None:
    if isa == _ops.isa:
        pytest.skip("the one that every test runs")
    chosen = ["-k", "reference or every_length or the_op_and or confident or minus", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *chosen, __file__],
        env={**os.environ, "GRACEFUL_FAST_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "GRACEFUL_FAST_ISA: expected one of" in run.stdout + run.stderr:
        pytest.skip(f"this CPU lacks {isa}")
    assert run.returncode == 0, run.stdout


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"normalize": True, "margin": 0.3, "margin_type": "arc"}])
def test_torch_compile_makes_one_graph_of_it(options) -> None:
    features, weight, bias, target = head()
    options = {"old_bias": bias, "label_smoothing": 0.1, "class_map": torch.arange(37), **options}

    def loss(x, w, y, **more):
        return gf.influence_loss(x, w, y, workspace_bytes=600, **options, **more)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    ours = value_and_gradient(compiled, features, weight, target)
    plain = value_and_gradient(loss, features, weight, target)
    assert torch.allclose(ours[0], plain[0], rtol=1e-6)
    assert torch.allclose(ours[1], plain[1], rtol=1e-5, atol=1e-7)


def test_an_ignored_row_gets_no_gradient_whatever_comes_in() -> None:
    features = torch.eye(2, 3, requires_grad=True)
    rows = gf.influence_loss(features, torch.eye(3), torch.tensor([-100, 1]), reduction="none")
    rows.backward(torch.tensor([torch.nan, 1.0]))
    assert features.grad is not None
    assert (features.grad[0] == 0).all()
    assert torch.isfinite(features.grad[1]).all()
