"""Cross-entropy through a frozen linear head, one block of classes at a time: attention with keys = values = W.

Two products per block: logits, and their exponentials times W, from which the gradient of the features follows. The
target's class stays out of the running sums, so that a confident row keeps the digits of its loss and gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F

from ._ops import DifferentiableOnce


class FrozenHeadCrossEntropy(torch.autograd.Function):
    """Loss rows times `factor` (B,), summed unless `rows`; the (B, D) gradient is made in forward and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target: torch.Tensor,
        factor: torch.Tensor,
        options: tuple[float, bool, float, bool, int],
    ) -> torch.Tensor:
        """Walk over the head's blocks; `options`: scale, normalize, label_smoothing, rows, workspace_bytes."""
        with torch.autocast(features.device.type, enabled=False):
            loss, gradient = _walk(features, weight, bias, target, ctx.needs_input_grad[0], *options[:3], options[4])
            loss = (loss * factor.double()).where(factor != 0, 0)
            if gradient is not None:
                gradient = (gradient * factor[:, None]).where(factor[:, None] != 0, 0)
                ctx.save_for_backward(gradient, features)
        ctx.shape, ctx.dtype = features.shape, features.dtype
        return (loss if options[3] else loss.sum()).to(factor.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kept gradient times what comes in; features beyond the head's width get 0."""
        kept, features = ctx.saved_tensors
        gradient = (kept * (grad_output[:, None] if grad_output.dim() else grad_output)).to(ctx.dtype)
        gradient = F.pad(gradient, (0, ctx.shape[1] - gradient.shape[1]))
        if torch.is_grad_enabled():  # create_graph=True
            gradient = DifferentiableOnce.apply(gradient.detach(), grad_output, features)  # type: ignore[no-untyped-call]
        return gradient, None, None, None, None, None


def _walk(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    with_gradient: bool,
    scale: float,
    normalize: bool,
    label_smoothing: float,
    workspace_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss of each row in float64, and its gradient in the first weight.shape[1] features."""
    (classes, width), n = weight.shape, len(features)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    x = features[:, :width].to(dtype)
    if normalize:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        x = x / length
    copied = weight.dtype != dtype or normalize
    step = max(1, min(classes, workspace_bytes // (x.element_size() * max(1, n + copied * width))))
    buffer = x.new_empty(step * n)

    query = x * scale
    top = x.new_full((n, 1), torch.finfo(dtype).min)  # running maximum of the logits
    others = x.new_zeros(n, dtype=torch.float64)  # sum over classes but the target of exp(logit - top)
    at_target = x.new_zeros(n, 1)
    total = x.new_zeros(n, dtype=torch.float64)  # sum of the logits
    pulled = torch.zeros_like(x) if with_gradient else None  # sum of exp(logit - top) times the class's weights
    mean_weight = x.new_zeros(width)
    for start in range(0, classes, step):
        block = weight[start : start + step].to(dtype)
        if normalize:
            block = F.normalize(block)
        logits = torch.mm(query, block.t(), out=buffer[: n * len(block)].view(n, len(block)))
        if bias is not None:
            logits += bias[start : start + step].to(dtype) * scale
        if label_smoothing:
            total += logits.sum(1, dtype=torch.float64)
            mean_weight += block.sum(0) / classes
        local = target[:, None] - start
        here = (local >= 0) & (local < len(block))
        local = local.clamp(0, len(block) - 1)
        at_target = logits.gather(1, local).where(here, at_target)
        raised = torch.maximum(top, logits.amax(1, keepdim=True))
        shrink = (top - raised).exp()
        top = raised
        e = logits.sub_(top).exp_()
        e.scatter_(1, local, e.gather(1, local).masked_fill(here, 0))
        others = others * shrink[:, 0] + e.sum(1, dtype=dtype)
        if pulled is not None:
            pulled.mul_(shrink).addmm_(e, block)

    distance = (at_target - top)[:, 0].double()
    loss = F.softplus(others.log() - distance)
    if label_smoothing:
        # an infinite loss stays: the uniform part is as infinite, and their difference would be NaN
        loss = torch.where(loss == torch.inf, loss, loss + label_smoothing * (at_target[:, 0] - total / classes))
    if pulled is None:
        return loss, None
    own = weight[target, :width].to(dtype)
    if normalize:
        own = F.normalize(own)
    mass = others + distance.exp()
    gradient = pulled * mass.reciprocal().to(dtype)[:, None] - own * (others / mass).to(dtype)[:, None]
    if label_smoothing:
        gradient += label_smoothing * (own - mean_weight)
    gradient *= scale
    if normalize:
        gradient = (gradient - x * (x * gradient).sum(1, keepdim=True)) / length
    return loss, gradient
