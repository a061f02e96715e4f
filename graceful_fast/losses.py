"""Losses that fit a new model to what the old one left behind: functions and their nn.Module forms."""

from typing import Any, Literal

import torch

from . import _ops

Divergence = Literal["kl", "logits"]
Focus = Literal["old_correct", "negative_flip", "new_incorrect", "all"] | torch.Tensor
Reduction = Literal["mean", "sum", "none"]

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def focal_distillation_loss(
    new_logits: torch.Tensor,
    old_logits: torch.Tensor,
    target: torch.Tensor,
    *,
    divergence: Divergence = "kl",
    alpha: float = 1.0,
    beta: float = 5.0,
    temperature: float = 100.0,
    focus: Focus = "old_correct",
    distillation_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    r"""Cross-entropy plus a divergence from the old model's logits, weighted where the old model was right.

    Row i contributes ``cross_entropy_weight * CE_i + distillation_weight * w_i * D_i`` with

    * ``w_i = alpha + beta * [condition_i]``, per sample;
    * ``D_i = temperature**2 * KL(softmax(old_i / temperature) || softmax(new_i / temperature))`` for ``"kl"``;
    * ``D_i = mean_c (new_ic - old_ic)**2 / 2`` over the classes with a finite old logit for ``"logits"``.

    An old head with fewer classes than the new one: D over the shared first columns, and no distillation for rows
    whose target the old model never knew. Further columns of a wider old head are left out. A weight of 0 takes its
    term out even where it is infinite. A new logit of -inf where the old model has mass makes the loss infinite and
    its gradient finite. Row sums are float64 and large temperatures keep their digits; nothing of the logits' size is
    saved for the backward pass, and the result has the same bits for any number of threads.

    Args:
        new_logits: (B, C) float32, float64, bfloat16 or float16; rows may be strided. Gets the gradient.
        old_logits: (B, C_old) of any of these dtypes. Gets none.
        target: (B,) int64, each 0 <= target < C or `ignore_index`.
        divergence: "kl" or "logits".
        alpha: Focal weight of every row.
        beta: Added to it where the condition of `focus` holds.
        temperature: Softens both distributions of "kl"; positive, finite.
        focus: "old_correct": argmax of the old logits is the target (the first of equal ones); "negative_flip": that,
            and the new argmax is not; "new_incorrect": the new argmax is not the target; "all": w_i = 1;
            a (B,) floating tensor: w_i itself.
        distillation_weight: Factor of the divergence.
        cross_entropy_weight: Factor of the cross-entropy.
        label_smoothing: Share of the uniform distribution in the cross-entropy's target, 0 to 1.
        ignore_index: Rows with this target give no loss and no gradient and are not counted.
        reduction: "mean" over the rows not ignored (0 if there are none), "sum", or "none".

    Returns:
        () or, for "none", (B,); float64 for float64 `new_logits`, else float32. Differentiable once.

    Raises:
        TypeError: An argument of a wrong type or dtype.
        ValueError: A shape or an option that is not as above.
        RuntimeError: A target outside 0..C-1 (CPU).

    Source:
        Yan et al., Positive-Congruent Training, CVPR 2021, eq. 5-9. The published code multiplies weights (B, 1) by
        losses (B,), which averages them apart from each other; here each row has its own weight.

    Example:
        >>> import torch, graceful_fast as gf
        >>> new = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]], requires_grad=True)
        >>> old = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> loss = gf.focal_distillation_loss(new, old, torch.tensor([0, 1]), divergence="logits")
        >>> loss.shape, loss.dtype, f"{loss:.4f}"
        (torch.Size([]), torch.float32, '1.6462')
        >>> loss.backward()
        >>> new.grad.shape
        torch.Size([2, 3])
        >>> gf.focal_distillation_loss(new, old, torch.tensor([0]))
        Traceback (most recent call last):
        ValueError: target: expected shape (2,), got (1,)
    """
    new, old, target, weight = _check_rows(new_logits, old_logits, target, focus)
    _check_options(temperature, label_smoothing, reduction)
    return _ops.distill(
        new,
        old,
        target,
        _choice(divergence, _ops.DIVERGENCES, "divergence"),
        weight,
        alpha,
        beta,
        temperature,
        distillation_weight,
        cross_entropy_weight,
        label_smoothing,
        ignore_index,
        _ops.REDUCTIONS[reduction],
    )


def _check_rows(
    new: torch.Tensor, old: torch.Tensor, target: torch.Tensor, focus: Focus
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int | torch.Tensor]:
    """The row arguments as the op takes them: unit stride within rows, an old head no wider than the new one."""
    _check_tensor(new, "new_logits")
    _check_tensor(old, "old_logits")
    n, classes = new.shape if new.dim() == 2 else _wrong_shape("new_logits", "(batch, classes)", new)
    if old.dim() != 2 or old.shape[0] != n:
        _wrong_shape("old_logits", f"({n}, classes)", old)
    _check_target(target, n, new)
    if old.device != new.device:
        raise ValueError(f"old_logits: expected device {new.device} as new_logits, got {old.device}")
    if old.shape[1] > classes:
        old = old[:, :classes]
    if isinstance(focus, torch.Tensor):
        if focus.shape != (n,):
            _wrong_shape("focus", f"({n},)", focus)
        weight: int | torch.Tensor = focus.detach().to(new.device, torch.float64).contiguous()
    else:
        weight = _choice(focus, _ops.FOCUSES, "focus")
    return _unit_stride(new), _unit_stride(old.detach()), target.contiguous(), weight


def _check_tensor(tensor: Any, name: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")


def _check_target(target: Any, n: int, rows: torch.Tensor) -> None:
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: expected a torch.Tensor, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64, got {target.dtype}")
    if target.dim() != 1 or target.shape[0] != n:
        _wrong_shape("target", f"({n},)", target)
    if target.device != rows.device:
        raise ValueError(f"target: expected device {rows.device} as the rows, got {target.device}")


def _check_options(temperature: float, label_smoothing: float, reduction: str) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 to 1, got {label_smoothing}")
    _choice(reduction, _ops.REDUCTIONS, "reduction")


def _wrong_shape(name: str, expected: str, tensor: torch.Tensor) -> Any:
    raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")


def _choice(value: Any, choices: dict[str, int], name: str) -> int:
    code = choices.get(value) if isinstance(value, str) else None
    if code is None:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return code


def _unit_stride(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()
