"""Cross-entropy through a frozen linear head, one block of classes at a time: attention with keys = values = W.

Two products per block: logits, and their exponentials times W, from which the gradient of the features follows. The
target's class stays out of the running maximum and sums and is computed in float64, so that a confident row keeps the
digits of its loss and gradient.
"""

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F

from . import _ops, _ranks
from ._loss_options import check_class_map, check_count, check_options, choice, wrong_shape
from ._ops import DifferentiableOnce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MarginType = Literal["cosine", "arc"]

_MARGIN_TYPES = {"cosine": 0, "arc": 1}

# Logits of a block, unless workspace_bytes is less: they and the block's weights stay in the cache from product to
# product. Measured at 256 rows, width 256 (2 x 1 MiB of L2, 32 MiB of L3): 512 to 4,096 classes a block are equal
# within 4 %, 8,192 takes 6 % longer, 16,384 (16 MiB) 10 %. The largest of the equal ones: each block ends in barriers
# between threads, which cost a scheduler's time slice each where other processes want the same cores.
_BLOCK_BYTES = 4 << 20
_SHORTEST_BLOCK = 512  # classes: below, products lose their speed
_SMALLEST_ANGLE = 1e-8  # below, float64 no longer knows the direction from a feature to its class


class Options(NamedTuple):
    """What the walk needs besides tensors."""

    scale: float
    normalize: bool
    margin: float
    margin_type: str
    label_smoothing: float
    rows: bool
    workspace_bytes: int
    group: "ProcessGroup | None"
    first_class: int


def check_influence_options(options: Options, reduction: str, class_map: Any, count: Any) -> None:
    """Everything that does not depend on the batch."""
    check_options(1.0, options.label_smoothing, reduction)
    check_count(count, reduction)
    choice(options.margin_type, _MARGIN_TYPES, "margin_type")
    highest = math.pi if options.margin_type == "arc" else math.inf
    if not 0 <= options.margin < highest:
        limit = "finite" if highest == math.inf else "below pi"
        raise ValueError(f"margin: expected at least 0, {limit}, got {options.margin}")
    if options.margin and not options.normalize:
        raise ValueError(f"margin: expected 0 without normalize=True, got {options.margin}")
    if options.workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes: expected a positive number, got {options.workspace_bytes}")
    _ranks.check_shard(options.group, options.first_class)
    if class_map is not None:
        check_class_map(class_map)
        if class_map.dim() != 1 or not len(class_map):
            wrong_shape("class_map", "(new classes,), at least one class", class_map)


def _may_read(tensor: torch.Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


_NO_CLASS = torch.iinfo(torch.int64).max


def known_target(
    target: torch.Tensor, class_map: torch.Tensor | None, ignore_index: int, classes: int | None
) -> torch.Tensor:
    """(B,) classes of the old head, -1 for rows without a loss.

    A target outside 0..`classes` - 1 (None where other ranks have some) or outside the map raises where it can be
    looked at, else becomes a number beyond any head.
    """
    limit = classes if class_map is None else len(class_map)
    counted = target != ignore_index
    wrong = counted & ((target < 0) | (target >= (_NO_CLASS if limit is None else limit)))
    if _may_read(target) and bool(wrong.any()):
        _wrong_target(target, wrong, limit)
    known = target.where(counted & ~wrong, 0)
    if class_map is not None:
        known = class_map[known]
    return known.where(counted, -1).masked_fill(wrong, _NO_CLASS)


def check_classes(known: torch.Tensor | None, class_map: torch.Tensor | None, classes: int) -> None:
    """Targets and the entries of the map are classes of the old head, as far as they can be looked at."""
    if class_map is not None and _may_read(class_map):
        wrong = (class_map < -1) | (class_map >= classes)
        if bool(wrong.any()):
            entry = int(wrong.nonzero()[0])
            raise ValueError(f"class_map: expected -1..{classes - 1}, got {int(class_map[entry])} at entry {entry}")
    if known is not None and _may_read(known) and bool((known >= classes).any()):
        _wrong_target(known, known >= classes, classes)


def _wrong_target(target: torch.Tensor, wrong: torch.Tensor, classes: int | None) -> None:
    row, below = int(wrong.nonzero()[0]), "" if classes is None else f" < {classes}"
    raise IndexError(f"target: expected 0 <= target{below}, got {int(target[row])} at row {row}")


class FrozenHeadCrossEntropy(torch.autograd.Function):
    """Loss rows times `factor` (B,), summed unless `rows`; the (B, D) gradient is made in forward and kept.

    `target`: (B,) numbers in the full head, -1 where `factor` is 0. A target beyond the head makes its row NaN.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target: torch.Tensor,
        factor: torch.Tensor,
        class_map: torch.Tensor | None,
        options: Options,
    ) -> torch.Tensor:
        """Walk over the head's blocks."""
        with torch.autocast(features.device.type, enabled=False):
            loss, gradient, classes = _loss(features, weight, bias, target, ctx.needs_input_grad[0], options)
            if options.group is not None and isinstance(classes, int):
                check_classes(target, class_map, classes)
            factor = factor.masked_fill(target >= classes, torch.nan)
            loss = (loss * factor.double()).where(factor != 0, 0)
            if gradient is not None:
                gradient = (gradient * factor[:, None]).where(factor[:, None] != 0, 0).to(factor.dtype)
                ctx.save_for_backward(gradient, features)
        ctx.shape, ctx.dtype, ctx.group = features.shape, features.dtype, options.group
        return (loss if options.rows else loss.sum()).to(factor.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kept gradient times what comes in, summed over the ranks; features beyond the head's width get 0."""
        kept, features = ctx.saved_tensors
        gradient = kept * (grad_output[:, None] if grad_output.dim() else grad_output)
        gradient = gradient.masked_fill(kept == 0, 0)  # rows without a loss, whatever comes in
        if ctx.group is not None:
            gradient = _ranks.all_sum(gradient, ctx.group)
        gradient = F.pad(gradient.to(ctx.dtype), (0, ctx.shape[1] - gradient.shape[1]))
        if torch.is_grad_enabled():  # create_graph=True
            gradient = DifferentiableOnce.apply(gradient.detach(), grad_output, features)  # type: ignore[no-untyped-call]
        return gradient, None, None, None, None, None, None


class _Walk(NamedTuple):
    """Sums over this rank's classes but the target's; logit = scale * (cosine or product + bias)."""

    top: torch.Tensor  # (B,) float64: maximum of the logits
    others: torch.Tensor  # (B,) float64: sum of exp(logit - top)
    pulled: torch.Tensor | None  # (B, D): sum of exp(logit - top) times the class's weights
    weight_sum: torch.Tensor  # (D,) float64: sum of the weights, the target's included; only for label smoothing


class _Own(NamedTuple):
    """The target's class, float64; 0 where it is another rank's."""

    here: torch.Tensor  # (B,) bool
    weight: torch.Tensor  # (B, D)
    logit: torch.Tensor  # (B,) with the margin
    moved: torch.Tensor  # (B,) what the margin added to the logit
    direction: torch.Tensor  # (B, D) derivative of logit / scale in x


def _loss(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    with_gradient: bool,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
    """Loss of each row, this rank's part of its gradient in the first weight.shape[1] features, and the classes."""
    scale, smoothing = options.scale, options.label_smoothing
    x = features[:, : weight.shape[1]].double()
    if options.normalize:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        x = x / length
    local = target - options.first_class
    walk = _walk((x * scale).to(_working_dtype(features)), weight, bias, local, with_gradient, options)
    own = _own_class(x, weight, bias, local, options)
    total = torch.zeros_like(own.logit)  # sum of the logits
    if smoothing:
        total = scale * (x @ walk.weight_sum) + own.moved
        if bias is not None:
            total = total + scale * bias.double().sum()
    statistics = torch.stack((walk.top, walk.others, own.logit, total), 1)
    top, others, logit, total, classes = _merge(statistics, len(weight), options)

    loss = torch.logaddexp(others.log() + (top - logit), torch.zeros_like(top))
    if smoothing:
        # an infinite loss stays: the uniform part is as infinite, and their difference would be NaN
        loss = torch.where(loss == torch.inf, loss, loss + smoothing * (logit - total / classes))
    if walk.pulled is None:
        return loss, None, classes
    mass = others + (logit - top).exp()
    gradient = walk.pulled.double() * ((walk.top - top).exp() / mass)[:, None]
    gradient += (smoothing * (1 - 1 / classes) - others / mass)[:, None].where(own.here[:, None], 0) * own.direction
    if smoothing:
        gradient += (own.weight - walk.weight_sum) * (smoothing / classes)
    gradient *= scale
    if options.normalize:
        gradient = (gradient - x * (x * gradient).sum(1, keepdim=True)) / length
    return loss, gradient, classes


def _working_dtype(features: torch.Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _walk(
    query: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    local: torch.Tensor,
    with_gradient: bool,
    options: Options,
) -> _Walk:
    """One read of `weight`, block by block. Rows of a normalized head are not copied: their factor goes to the op."""
    (classes, width), n, dtype = weight.shape, len(query), query.dtype
    step = _block_length(query, weight, options.workspace_bytes)
    buffer = query.new_empty(step * n)
    statistics = query.new_zeros((n, 2), dtype=torch.float64)
    statistics[:, 0] = torch.finfo(dtype).min
    pulled = torch.zeros_like(query) if with_gradient else None
    weight_sum = query.new_zeros(width, dtype=torch.float64)
    for start in range(0, classes, step):
        block = weight[start : start + step].to(dtype)
        logits = torch.mm(query, block.t(), out=buffer[: n * len(block)].view(n, len(block)))
        factor = torch.linalg.vector_norm(block, dim=1).clamp_min_(1e-12).reciprocal_() if options.normalize else None
        offset = None if bias is None else bias[start : start + step].to(dtype) * options.scale
        shrink = softmax_block(logits, statistics, local, factor, offset, start)
        if pulled is not None:
            pulled.mul_(shrink).addmm_(logits, block)
        if options.label_smoothing:
            weight_sum += block.sum(0) if factor is None else factor @ block
    return _Walk(statistics[:, 0], statistics[:, 1], pulled, weight_sum)


def _block_length(query: torch.Tensor, weight: torch.Tensor, workspace_bytes: int) -> int:
    """Classes a block: within the workspace, a copy of the weights included, and within the cache."""
    n, size = max(1, len(query)), query.element_size()
    copied = weight.shape[1] if weight.dtype != query.dtype else 0
    cached = max(_SHORTEST_BLOCK, _BLOCK_BYTES // (size * n))
    return max(1, min(len(weight), cached, workspace_bytes // (size * (n + copied))))


def softmax_block(
    logits: torch.Tensor,
    statistics: torch.Tensor,
    local: torch.Tensor,
    factor: torch.Tensor | None,
    offset: torch.Tensor | None,
    start: int,
) -> torch.Tensor:
    """The op `influence` (csrc/cpu/influence.h), or the same in torch on a device that has no ops."""
    if logits.device.type == "cpu" or (logits.device.type == "cuda" and _ops.cuda):
        return _ops.influence(logits, statistics, local, factor, offset, start)
    return softmax_block_in_torch(logits, statistics, local, factor, offset, start)


def softmax_block_in_torch(
    logits: torch.Tensor,
    statistics: torch.Tensor,
    local: torch.Tensor,
    factor: torch.Tensor | None,
    offset: torch.Tensor | None,
    start: int,
) -> torch.Tensor:
    """Products -> factor * exp(factor * product + offset - top), 0 at the target; raises (top, others)."""
    if factor is not None:
        logits *= factor
    if offset is not None:
        logits += offset
    column = torch.arange(start, start + logits.shape[1], device=logits.device)
    logits.masked_fill_(local[:, None] == column, -torch.inf)
    before = statistics[:, 0].clone()
    statistics[:, 0] = torch.maximum(before, logits.amax(1).double())
    shrink = (before - statistics[:, 0]).exp()
    logits.sub_(statistics[:, :1].to(logits.dtype)).exp_()
    statistics[:, 1] = statistics[:, 1] * shrink + logits.sum(1, dtype=torch.float64)
    if factor is not None:
        logits *= factor
    return shrink[:, None].to(logits.dtype)


def _own_class(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, local: torch.Tensor, options: Options
) -> _Own:
    """The target's logit, its margin and its derivative: B rows, in float64."""
    here = (local >= 0) & (local < len(weight))
    row = local.where(here, 0)
    own = weight[row].double()
    if options.normalize:
        own = own / torch.linalg.vector_norm(own, dim=1, keepdim=True).clamp_min(1e-12)
    product = (x * own).sum(1)
    moved, direction = torch.zeros_like(product), own
    if options.margin and options.margin_type == "cosine":
        moved = torch.full_like(product, -options.margin)
    elif options.margin:
        moved, direction = _arc_margin(x, own, product, options.margin)
    logit = product + moved
    if bias is not None:
        logit = logit + bias[row].double()
    logit, moved = (options.scale * logit).where(here, 0), (options.scale * moved).where(here, 0)
    return _Own(here, own.where(here[:, None], 0), logit, moved, direction.where(here[:, None], 0))


def _arc_margin(
    x: torch.Tensor, own: torch.Tensor, cosine: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the margin adds to the cosine, and the derivative of their sum in the unit vector x (across x only).

    The sine comes from the part of `own` across x, not from 1 - cosine^2, which has no digits near cosine = +-1. At
    angle 0, where cos(angle + margin) has a kink, the derivative is 0: the mean of those in all directions.
    """
    across = own - cosine[:, None] * x
    sine = torch.linalg.vector_norm(across, dim=1)
    angle = torch.atan2(sine, cosine) + margin
    within = angle <= math.pi
    moved = torch.where(within, angle.cos() - cosine, -margin * math.sin(margin))
    slope = torch.where(within, angle.sin() / sine.clamp_min(_SMALLEST_ANGLE), 1.0)
    return moved, slope[:, None] * across


def _merge(
    statistics: torch.Tensor, classes: int, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    """Top, others, the target's logit, total and classes of the whole head, after one collective if it is sharded."""
    if options.group is None:
        top, others, logit, total = statistics.unbind(1)
        return top, others, logit, total, classes
    shard = statistics.new_tensor([[options.first_class, classes, 0, 0]])
    ranks = _ranks.gather(torch.cat((statistics, shard)), options.group)
    first, count, ranks = ranks[:, -1, 0], ranks[:, -1, 1], ranks[:, :-1]
    everything = _ranks.check_tiling(first.long(), count.long()) if first.device.type == "cpu" else count.sum()
    top = ranks[..., 0].amax(0)
    others = (ranks[..., 1] * (ranks[..., 0] - top).exp()).sum(0)
    return top, others, ranks[..., 2].sum(0), ranks[..., 3].sum(0), everything
