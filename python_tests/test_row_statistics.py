"""Parts of a row merge to the whole: any blocks of its classes, in any order and grouping, give its loss and gradient.

What csrc/math/row_statistics.h promises, through the ops that classes sharded over devices and heads walked over in
blocks use: distill_accumulate, distill_merge, distill_finish and distill_backward_.
"""

from random import Random
from typing import NamedTuple

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distill import GRADIENT_ERROR, ULP

from graceful_fast import _ops

INFINITY = float("inf")
MARGIN, ALPHA, BETA = 0.5, 1.0, 5.0


# --- rows -------------------------------------------------------------------------------------------------------------


def _randn(n, generator):
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _near(n, generator, spread, step):
    old = spread * _randn(n, generator)
    return old + step * _randn(n, generator), old


def _ties(n, generator):
    return torch.randint(-2, 3, (2, n), generator=generator).double().unbind()


def _drift(n, generator):
    new, old = _near(n, generator, 3.0, 1.0)
    ramp = torch.linspace(0, 50, n, dtype=torch.float64)
    return new + ramp, old + (ramp if torch.rand((), generator=generator) < 0.5 else ramp.flip(0))


# (new, old) logits of n classes.
KINDS = {
    "random": lambda n, g: _near(n, g, 3.0, 1.0),
    "unrelated": lambda n, g: _near(n, g, 1.0, 8.0),
    "peaked": lambda n, g: _near(n, g, 40.0, 40.0),
    "nearly_equal": lambda n, g: _near(n, g, 3.0, 1e-3),
    "equal": lambda n, g: _near(n, g, 3.0, 0.0),
    "constant": lambda n, g: (torch.full((n,), 1 / 3).double(), torch.full((n,), 1 / 7).double()),
    "ties": _ties,
    "drift": _drift,
}
SHIFTS = (0.0, 300.0, -300.0, 2.0**24, -(2.0**24))
# -inf in the models named, at scattered classes or in all of one block
MASKS = (
    "nowhere", "scattered old", "scattered new", "scattered old new", "block old", "block new", "block old new",
    "all old",
)  # fmt: skip
TARGETS = ("old argmax", "new argmax", "first", "last", "random", "ignored")


class Case(NamedTuple):
    """Rows, blocks [bounds[b], bounds[b + 1]) of their classes in the order they are merged, and the options."""

    new: torch.Tensor
    old: torch.Tensor
    target: torch.Tensor
    columns: _ops.Columns
    bounds: list[int]
    order: list[int]
    tree: Random
    distance: _ops.Distance
    total: _ops.Total
    weight: torch.Tensor | None


@st.composite
def cases(draw, dtype=torch.float32):
    classes = draw(st.sampled_from((1, 2, 3, 9, 40, 130, 1100, 2600)))
    bounds = sorted({0, classes, *draw(st.lists(st.integers(0, classes), max_size=7))})
    order = draw(st.permutations(range(len(bounds) - 1)))
    shift = st.sampled_from(SHIFTS)
    row = st.tuples(st.sampled_from(sorted(KINDS)), shift, shift, st.sampled_from(MASKS), st.sampled_from(TARGETS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    made = [_row(classes, bounds, generator, dtype, *r) for r in draw(st.lists(row, min_size=1, max_size=6))]
    new, old, target = (torch.stack(x) for x in zip(*made, strict=True))
    columns: _ops.Columns = (None, None)
    heads = draw(st.sampled_from(("same", "same", "narrower", "mapped")))
    if heads == "narrower":
        old = old[:, : draw(st.integers(0, classes))]
    elif heads == "mapped":
        shared = torch.randperm(classes, generator=generator)[: draw(st.integers(0, classes))].sort().values
        place = torch.randperm(classes, generator=generator)
        mapped = torch.empty_like(old)
        mapped[:, place] = old
        old, columns = mapped, (shared, place[shared])
    focus = draw(st.integers(0, 4))
    distance = _ops.Distance(
        divergence=draw(st.sampled_from((0, 0, 0, 1, 2))),
        margin=MARGIN,
        exclude_target=draw(st.booleans()),
        temperature=draw(st.sampled_from((0.5, 0.7, 1.0, 2.0, 5.0, 20.0, 37.5, 100.0))),
        ignore_index=-100,
    )
    total = _ops.Total(
        focus,
        ALPHA,
        BETA,
        distillation_weight=draw(st.sampled_from((1.0, 0.25))),
        cross_entropy_weight=draw(st.sampled_from((1.0, 0.0))),
        # At offsets of 2^24 the uniform part has float32's digits only, in float64 too.
        label_smoothing=draw(st.sampled_from((0.0, 0.0, 0.1 if dtype == torch.float32 else 0.0))),
        reduction=_ops.REDUCTIONS["none"],
    )
    weight = torch.rand(len(made), generator=generator, dtype=torch.float64) if focus == _ops.FOCUS_BY_WEIGHT else None
    return Case(
        new, old, target, columns, bounds, list(order), Random(draw(st.integers(0, 2**32))), distance, total, weight
    )


def _row(classes, bounds, generator, dtype, kind, new_shift, old_shift, mask, target):
    new, old = KINDS[kind](classes, generator)
    new, old = (new + new_shift).to(dtype), (old + old_shift).to(dtype)
    where, *models = mask.split()
    if where == "scattered":
        hidden = torch.rand(classes, generator=generator) < 0.2
    else:
        b = int(torch.randint(0, len(bounds) - 1, (), generator=generator))
        place = torch.arange(classes)
        hidden = (
            torch.ones(classes, dtype=torch.bool) if where == "all" else (bounds[b] <= place) & (place < bounds[b + 1])
        )
    if "old" in models:
        old = old.masked_fill(hidden, -INFINITY)
    at = {
        "old argmax": int(_first_argmax(old[None])),
        "new argmax": int(_first_argmax(new[None])),
        "first": 0,
        "last": classes - 1,
        "random": int(torch.randint(0, classes, (), generator=generator)),
        "ignored": -100,
    }[target]
    if "new" in models:
        hidden[max(at, 0)] = False  # an impossible target is another test's
        new = new.masked_fill(hidden, -INFINITY)
    return new, old, torch.tensor(at)


# --- what they should give --------------------------------------------------------------------------------------------


def _first_argmax(logits):
    return (logits == logits.amax(1, keepdim=True)).to(torch.int8).argmax(1)


def exact_kl(new, old, temperature):
    """T^2 KL of float64 rows and its gradient. From differences: sum p log(p/q) itself has no digits at large T."""
    if new.shape[1] == 0:
        return torch.zeros(len(new), dtype=torch.float64), torch.zeros_like(new)
    known = old > -INFINITY
    both = known & (new > -INFINITY)
    top = old.argmax(1, keepdim=True)
    old_frame, new_frame = old.gather(1, top), new.gather(1, top)
    old_frame = old_frame.where(old_frame > -INFINITY, 0.0)
    new_frame = new_frame.where(new_frame > -INFINITY, new.amax(1, keepdim=True))
    new_frame = new_frame.where(new_frame > -INFINITY, 0.0)
    from_new, from_old = new - new_frame, old - old_frame
    log_k = (from_old / temperature).logsumexp(1, keepdim=True)
    p = (from_old / temperature - log_k).exp().where(known, 0.0)
    d = ((from_new - from_old) / temperature).where(both, 0.0)
    mean = (p * d).sum(1, keepdim=True)
    log_v = from_new / temperature - log_k - mean  # log(p exp(d - mean)) where the old model has mass
    ratio = (p * (d - mean).expm1()).where(both, 0.0) + log_v.exp().where(~known, 0.0)
    near = ratio.sum(1)
    kl = near.log1p().where(near.abs() < 0.5, log_v.logsumexp(1))
    kl = kl.where(~(known & ~both).any(1), INFINITY).where(known.any(1), 0.0)
    small = near.abs()[:, None] < 0.5
    close = p * ((d - mean).expm1() - near[:, None]) / (1 + near[:, None])
    slope = close.where(small & both, (from_new / temperature).softmax(1) - p)
    return temperature**2 * kl, temperature * slope.where(known.any(1, keepdim=True), 0.0)


def cross_entropy(new, label, smoothing):
    """Of float64 rows. log1p keeps the digits of a small one."""
    top = new.argmax(1, keepdim=True)
    from_max = new - new.gather(1, top)
    log_sum = from_max.exp().scatter(1, top, 0.0).sum(1).log1p()
    entropy = log_sum - from_max.gather(1, label[:, None])[:, 0]
    return entropy if smoothing == 0 else (1 - smoothing) * entropy + smoothing * (log_sum - from_max.mean(1))


def squares(new, old, margin, skipped):
    """Mean of max(|new - old| - margin, 0)^2 over the finite old logits, and its gradient."""
    finite = old > -INFINITY
    infinite = (finite & (new == -INFINITY) & ~skipped).any(1)
    difference = (new - old).where(finite & (new > -INFINITY) & ~skipped, 0.0)
    beyond = difference.sign() * (difference.abs() - margin).clamp(min=0)
    count = finite.sum(1).clamp(min=1)
    return (beyond**2).sum(1).div(count).where(~infinite, INFINITY), 2 * beyond / count[:, None]


def expected(case):
    """Loss, gradient and unweighted cross-entropy of each row, in float64."""
    new, distance, total = case.new.double(), case.distance, case.total
    shared, old = _aligned(case)
    compared, old = new[:, shared], old.double()
    counted = case.target >= 0
    label = case.target.clamp(min=0)
    at_target = label[:, None] == shared
    known = at_target.any(1) & counted
    old_correct = torch.zeros_like(known)
    if len(shared):
        old_correct = known & at_target.gather(1, _first_argmax(old)[:, None])[:, 0]
    new_correct = _first_argmax(new) == label
    focus = [old_correct, old_correct & ~new_correct, ~new_correct]
    if total.focus < 3:
        weight = ALPHA + BETA * focus[total.focus].double()
    else:
        weight = torch.ones(len(new), dtype=torch.float64) if case.weight is None else case.weight
    weight = total.distillation_weight * weight.where(known, 0.0)
    if distance.divergence == _ops.DIVERGENCES["kl"]:
        divergence, slope = exact_kl(compared, old, distance.temperature)
    else:
        ldi = distance.divergence == _ops.DIVERGENCES["ldi"]
        skipped = at_target if ldi and distance.exclude_target else torch.zeros_like(at_target)
        divergence, slope = squares(compared, old, MARGIN if ldi else 0.0, skipped)
        divergence, slope = (divergence, slope) if ldi else (divergence / 2, slope / 2)
    entropy = cross_entropy(new, label, total.label_smoothing)
    smoothed = new.softmax(1)
    others = smoothed.scatter(1, label[:, None], 0.0).sum(1, keepdim=True)
    smoothed = (
        smoothed.scatter(1, label[:, None], total.label_smoothing - others) - total.label_smoothing / new.shape[1]
    )
    smoothed = smoothed.where(counted[:, None], 0.0)
    loss = (total.cross_entropy_weight * entropy).where(counted & (total.cross_entropy_weight != 0), 0.0)
    gradient = total.cross_entropy_weight * smoothed
    gradient[:, shared] += (weight[:, None] * slope).where(weight[:, None] != 0, 0.0)
    return loss + (weight * divergence).where(weight != 0, 0.0), gradient, entropy.where(counted, 0.0)


def torch_losses(case):
    """The rows' losses (kl) as torch gives them in float32, with float64 focal weights."""
    shared, old = _aligned(case)
    wide_loss, *_ = expected(case._replace(total=case.total._replace(cross_entropy_weight=0.0)))
    wide_divergence, _ = exact_kl(case.new.double()[:, shared], old.double(), case.distance.temperature)
    weight = (wide_loss / wide_divergence).where(wide_divergence > 0, 0.0).float()
    log_p, log_q = ((x / case.distance.temperature).log_softmax(1) for x in (old, case.new[:, shared]))
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * case.distance.temperature**2
    entropy = F.cross_entropy(
        case.new, case.target, reduction="none", label_smoothing=case.total.label_smoothing, ignore_index=-100
    )
    return case.total.cross_entropy_weight * entropy + (weight * divergence).where(weight != 0, 0.0)


def _aligned(case):
    """The shared new classes, and the old logits of each."""
    if case.columns[0] is None:
        return torch.arange(case.old.shape[1]), case.old
    return case.columns[0], case.old[:, case.columns[1]]


# --- what the ops give ------------------------------------------------------------------------------------------------


def block(case, b):
    """New and old logits, columns and first class of block b."""
    start, stop = case.bounds[b], case.bounds[b + 1]
    if case.columns[0] is None:
        return case.new[:, start:stop], case.old[:, start:stop], (None, None), start
    here = (case.columns[0] >= start) & (case.columns[0] < stop)
    return case.new[:, start:stop], case.old, (case.columns[0][here] - start, case.columns[1][here]), start


def accumulate(case, parts, b):
    new, old, columns, start = block(case, b)
    return _ops.distill_accumulate(parts, new, old, case.target, columns, start, case.distance)


def merged(case, blocks):
    """The parts of `blocks` by a random tree of both ways to merge."""
    if len(blocks) == 1:
        return accumulate(case, None, blocks[0])
    cut = case.tree.randrange(1, len(blocks))
    first = merged(case, blocks[:cut])
    if case.tree.random() < 0.5:
        for b in blocks[cut:]:
            first = accumulate(case, first, b)
        return first
    rest = blocks[cut:]
    again = case.tree.randrange(len(rest))
    groups = [g for g in (rest[:again], rest[again:]) if g]
    return _ops.distill_merge(torch.stack([first, *(merged(case, g) for g in groups)]), case.distance)


def by_parts(case):
    """Losses, and gradients for an incoming gradient of 1, block by block."""
    wide, classes = case.new.dtype == torch.float64, case.bounds[-1]
    losses, statistics = _ops.distill_finish(
        merged(case, case.order), case.target, case.weight, classes, wide, case.distance, case.total
    )
    gradient = case.new.clone()
    for b in case.order:
        _, old, columns, start = block(case, b)
        _ops.distill_backward_(
            torch.ones_like(losses), gradient[:, start : case.bounds[b + 1]], old, case.target, statistics, columns,
            start, classes, case.distance, case.total.label_smoothing,
        )  # fmt: skip
    return losses, gradient


def whole(case):
    losses, statistics = _ops.distill_forward(
        case.new, case.old, case.target, case.weight, case.columns, case.distance, case.total
    )
    gradient = torch.ops.graceful_fast.distill_backward(
        torch.ones_like(losses), case.new, case.old, case.target, statistics, *case.columns, *case.distance,
        case.total.label_smoothing,
    )  # fmt: skip
    return losses, gradient


# --- tests ------------------------------------------------------------------------------------------------------------


def errors(losses, exact, entropy):
    """Of each row, relative to its terms or 1e-6; 0 where both are the same infinity, inf where only one is."""
    error = (losses.double() - exact).abs() / torch.maximum(exact, entropy).clamp(min=1e-6)
    error = error.where(exact.isfinite(), INFINITY).where(losses.double() != exact, 0.0)
    return error.where(~error.isnan(), INFINITY)


def assert_merges_to_the_whole(case):
    dtype = case.new.dtype
    unit = ULP if dtype == torch.float32 else 2.0**-38
    ulps = 4 if case.distance.temperature <= 5 else 16
    exact, exact_gradient, entropy = expected(case)
    losses, gradient = by_parts(case)
    whole_losses, whole_gradient = whole(case)
    error = errors(losses, exact, entropy)
    assert (error <= ulps * unit).all(), (losses, whole_losses, exact, error / unit)
    if dtype == torch.float32 and case.distance.divergence == _ops.DIVERGENCES["kl"]:
        torchs = errors(torch_losses(case), exact, entropy)
        assert (error <= torchs + 2 * unit).all(), (error / unit, torchs / unit)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(whole_gradient).all()
    finite = exact.isfinite()
    for other in (whole_gradient.double(), exact_gradient):
        wrong = (gradient.double() - other).abs()[finite]
        smallest = 2.0**-20 if dtype == torch.float32 else 2.0**-14  # below it float64 itself has no more digits
        bound = GRADIENT_ERROR[dtype] * other.abs().amax(1, keepdim=True).clamp(min=smallest) + _rounding(case, unit)
        assert (wrong <= bound[finite]).all(), (wrong / bound[finite], gradient, other)


def _rounding(case, unit):
    """What a gradient near 0 may differ by where classes are at -inf: the rounding of softmaxes that cancel."""
    masked = (case.new == -INFINITY).any(1) | (case.old == -INFINITY).any(1)
    kl = case.distance.divergence == _ops.DIVERGENCES["kl"]
    return 2 * unit * (masked * kl * (ALPHA + BETA) * case.distance.temperature)[:, None]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(cases())
def test_blocks_in_any_order_and_grouping_merge_to_the_row(case):
    assert_merges_to_the_whole(case)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(cases(torch.float64))
def test_float64_blocks_merge_to_the_row_in_float64(case):
    assert_merges_to_the_whole(case)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("temperature", [0.5, 100.0])
def test_the_expected_divergence_is_the_one_of_50_digits(kind, temperature):
    new, old = KINDS[kind](30, torch.Generator().manual_seed(4))
    new, old = (new + 2.0**24).float().double(), (old - 300).float().double()
    old[3], new[4], old[4] = -INFINITY, -INFINITY, -INFINITY
    with mpmath.workdps(50):
        p, q = ([mpmath.exp((mpmath.mpf(x) - shift) / temperature) for x in row.tolist()]
                for row, shift in ((old, -300), (new, 2**24)))  # fmt: skip
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        expected_kl = temperature**2 * sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        slope = [temperature * (b - a) for a, b in zip(p, q, strict=True)]
        (kl,), (gradient,) = exact_kl(new[None], old[None], temperature)
        assert abs(kl.item() - expected_kl) <= 1e-10 * expected_kl + 1e-14
        assert max(abs(a - b) for a, b in zip(gradient.tolist(), slope, strict=True)) <= 1e-11


@pytest.mark.parametrize("tied", [0, 9, 11, 29])
@pytest.mark.parametrize("model", ["old", "new"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_a_class_tied_with_the_target_in_any_block_decides_by_its_index(tied, model, order):
    old = torch.arange(30.0).sin()[None].repeat(1, 1)
    new = old.flip(1).clone()
    target = 10
    for row, right in ((old, True), (new, model == "new")):
        if right:
            row[0, target] = 5.0
    (old if model == "old" else new)[0, tied] = 5.0
    correct = tied > target
    weights = {  # of the divergence, by focus
        "old_correct": 1.0 + 5.0 * (correct or model == "new"),
        "negative_flip": 1.0 + 5.0 * (correct if model == "old" else not correct),
        "new_incorrect": 1.0 + 5.0 * (model == "old" or not correct),
    }
    for focus, weight in weights.items():
        total = _ops.Total(_ops.FOCUSES[focus], 1.0, 5.0, 1.0, 0.0, 0.0, _ops.REDUCTIONS["none"])
        distance = _ops.Distance(_ops.DIVERGENCES["logits"], 0.0, False, 1.0, -100)
        case = Case(
            new, old, torch.tensor([target]), (None, None), [0, 10, 20, 30], order, Random(0), distance, total, None
        )
        losses, _ = by_parts(case)
        assert torch.isclose(losses, weight * ((new - old) ** 2).mean(1) / 2, rtol=1e-6).all()
