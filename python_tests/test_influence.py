"""influence_loss against its float64 reference, its memory, and the docstrings of graceful_fast.losses."""

import doctest

import pytest
import torch

import graceful_fast as gf
from graceful_fast import losses, reference

WHOLE, TINY = 8 << 20, 1  # one block, one class a block


def head(rows=6, classes=37, width=12, extra=0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width + extra, generator=generator).to(dtype)
    weight = torch.randn(classes, width, generator=generator)
    bias = torch.randn(classes, generator=generator)
    return features, weight, bias, torch.randint(0, classes, (rows,), generator=generator)


def value_and_gradient(loss, features, weight, target, grad_output=None, **options):
    leaf = features.detach().requires_grad_()
    value = loss(leaf, weight, target, **options)
    value.backward(torch.ones_like(value) if grad_output is None else grad_output.to(value.dtype))
    return value.detach(), leaf.grad


def assert_agrees(features, weight, target, tolerance=2e-6, workspace_bytes=WHOLE, **options):
    value, gradient = value_and_gradient(
        gf.influence_loss, features, weight, target, workspace_bytes=workspace_bytes, **options
    )
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
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


def test_docstrings_run():
    results = doctest.testmod(losses)
    assert results.attempted > 0
    assert results.failed == 0


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
