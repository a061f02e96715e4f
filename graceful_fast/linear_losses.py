"""Focal distillation straight from features and a classifier's weight: for so many classes that logits do not fit."""

from typing import TYPE_CHECKING, Any

import torch

from . import _ranks
from ._linear import LinearDistillation, Options, Teacher, working_dtype
from ._loss_options import (
    Divergence,
    Focus,
    Reduction,
    check_count,
    check_target,
    check_tensor,
    divided,
    focal_weights,
    loss_options,
    shared_columns,
    unit_stride,
    wrong_shape,
)
from .losses import FocalDistillationLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_focal_distillation_loss(
    features: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    old_logits: torch.Tensor | None = None,
    old_features: torch.Tensor | None = None,
    old_weight: torch.Tensor | None = None,
    old_bias: torch.Tensor | None = None,
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
    ldi_margin: float = 0.5,
    exclude_target: bool = False,
    class_map: torch.Tensor | None = None,
    count: float | torch.Tensor | None = None,
    group: "ProcessGroup | None" = None,
    first_class: int = 0,
    workspace_bytes: int = 64 << 20,
) -> torch.Tensor:
    r"""`focal_distillation_loss` of ``features @ weight.T + bias``, whose (B, C) logits never exist.

    The old model comes as its logits, or as its features and head, whose logits do not exist either. Logits are
    computed in blocks of classes (twice: for the statistics, and for the gradients) or of rows, whichever costs less
    operations and bytes within `workspace_bytes`. Products are float32 (float64 where an input is), under autocast,
    too, and the weight's gradient accumulates in float32.

    Args:
        features: (B, D) float32, float64, bfloat16 or float16. Gets a gradient, as do `weight` and `bias`.
        weight: (C, D), the new classifier. With `group`, this rank's classes of it.
        target: (B,) int64, each 0 <= target < C or `ignore_index`.
        bias: (C,), or None.
        old_logits: (B, C_old); or else both of the next two.
        old_features: (B, D_old), of the old model on the same batch.
        old_weight: (C_old, D_old), the old classifier. Column j is of class j; C_old may be less than C, or see
            `class_map`. With `group`, this rank's: its j-th class is the j-th of this rank's part of `weight`, too.
        old_bias: (C_old,), or None.
        divergence: This and all further options as in `focal_distillation_loss`.
        alpha: See there.
        beta: See there.
        temperature: See there.
        focus: See there.
        distillation_weight: See there.
        cross_entropy_weight: See there.
        label_smoothing: See there.
        ignore_index: See there.
        reduction: See there.
        ldi_margin: See there.
        exclude_target: See there.
        class_map: See there. With `group`, of this rank's classes and old columns.
        count: See there.
        group: The classes are sharded over the ranks of this process group: each holds the rows `first_class`,
            `first_class` + 1, ... of the classifier, at least one. Features, targets and options are the same on all
            ranks, targets are numbers in the full classifier. Loss and gradients are those of the whole classifier;
            one collective of 22 numbers a row forward, and one of the features' gradient backward.
        first_class: With `group`, the number of this rank's first class.
        workspace_bytes: Bound of the logits (of both models) that exist at a time, and of copies of weights that are
            not of the products' type. Inputs and gradients are not counted.

    Returns:
        () or, for "none", (B,); float64 if `features` or `weight` are, else float32. Differentiable once.

    Raises:
        TypeError: An argument of a wrong type or dtype.
        ValueError: A shape or an option that is not as above; shards that do not cover 0..C-1 once.
        IndexError, RuntimeError: A target outside 0..C-1 (CPU).

    Source:
        As `focal_distillation_loss`.

    Example:
        >>> import torch, graceful_fast as gf
        >>> features, weight = torch.eye(2, 4, requires_grad=True), torch.eye(3, 4).requires_grad_()
        >>> old = {"old_features": torch.eye(2), "old_weight": torch.eye(3, 2)}
        >>> loss = gf.linear_focal_distillation_loss(features, weight, torch.tensor([0, 1]), **old)
        >>> f"{loss:.4f}"
        '0.5514'
        >>> loss.backward()
        >>> features.grad.shape, weight.grad.shape
        (torch.Size([2, 4]), torch.Size([3, 4]))
        >>> gf.linear_focal_distillation_loss(features, weight, torch.tensor([0, 1]))
        Traceback (most recent call last):
        ValueError: old_logits: expected these, or old_features and old_weight, got none of them
    """
    check_count(count, reduction)
    _ranks.check_shard(group, first_class)
    _check_workspace(workspace_bytes)
    _check_head("features", features, "weight", weight, "bias", bias, least=1)
    check_target(target, len(features), features)
    teacher = _teacher(features, old_logits, old_features, old_weight, old_bias)
    columns = shared_columns(class_map, len(weight), teacher.classes, features.device)
    distance, total = loss_options(
        divergence, alpha, beta, temperature, focus, distillation_weight, cross_entropy_weight, label_smoothing,
        ignore_index, "sum" if count is not None else reduction, ldi_margin, exclude_target,
    )  # fmt: skip
    if group is None:
        _check_classes(target, ignore_index, len(weight))
    if not torch.is_grad_enabled():  # an autograd.Function sees what requires a gradient, not whether one is wanted
        features, weight, bias = features.detach(), weight.detach(), None if bias is None else bias.detach()
    loss: torch.Tensor = LinearDistillation.apply(  # type: ignore[no-untyped-call]
        features,
        weight,
        bias,
        teacher,
        target.contiguous(),
        focal_weights(focus, len(features), features.device) if isinstance(focus, torch.Tensor) else None,
        columns,
        Options(distance, total, workspace_bytes, group, first_class),
    )
    return loss if count is None else divided(loss, count)


def _check_head(
    features_name: str, features: Any, weight_name: str, weight: Any, bias_name: str, bias: Any, least: int
) -> None:
    """(B, D) features, (C, D) weight, (C,) bias or None; C is at least `least`."""
    check_tensor(features, features_name)
    check_tensor(weight, weight_name)
    if features.dim() != 2:
        wrong_shape(features_name, "(batch, width)", features)
    if weight.dim() != 2 or len(weight) < least or weight.shape[1] != features.shape[1]:
        some = ", at least one class" * least
        wrong_shape(weight_name, f"(classes, {features.shape[1]}) as {features_name}{some}", weight)
    if bias is not None:
        check_tensor(bias, bias_name)
        if bias.shape != (len(weight),):
            wrong_shape(bias_name, f"({len(weight)},)", bias)
    for name, tensor in ((weight_name, weight), (bias_name, bias)):
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{name}: expected device {features.device} as {features_name}, got {tensor.device}")


def _teacher(features: torch.Tensor, logits: Any, old_features: Any, weight: Any, bias: Any) -> Teacher:
    """The old model's part, checked and without gradients."""
    n, of_head = len(features), (old_features, weight)
    if logits is not None:
        if any(x is not None for x in (*of_head, bias)):
            raise ValueError("old_logits: expected these, or old_features and old_weight, got both")
        check_tensor(logits, "old_logits")
        if logits.dim() != 2 or len(logits) != n:
            wrong_shape("old_logits", f"({n}, classes)", logits)
        if logits.device != features.device:
            raise ValueError(f"old_logits: expected device {features.device} as features, got {logits.device}")
        return Teacher(unit_stride(logits.detach()), None, None, None)
    if old_features is None or weight is None:
        got = "none of them" if old_features is weight else "only one of the latter"
        raise ValueError(f"old_logits: expected these, or old_features and old_weight, got {got}")
    _check_head("old_features", old_features, "old_weight", weight, "old_bias", bias, least=0)
    if len(old_features) != n:
        wrong_shape("old_features", f"({n}, width)", old_features)
    if old_features.device != features.device:
        raise ValueError(f"old_features: expected device {features.device} as features, got {old_features.device}")
    dtype = working_dtype(old_features, weight)
    return Teacher(None, old_features.detach().to(dtype), weight.detach(), None if bias is None else bias.detach())


def _check_workspace(workspace_bytes: int) -> None:
    if type(workspace_bytes) is not int or workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes: expected a positive integer, got {workspace_bytes!r}")


def _check_classes(target: torch.Tensor, ignore_index: int, classes: int) -> None:
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise IndexError(f"target: expected 0 <= target < {classes}, got {int(target[row])} at row {row}")


class LinearFocalDistillationLoss(FocalDistillationLoss):
    """`linear_focal_distillation_loss` with its options bound; tensors are given to each call.

    Options are those of `FocalDistillationLoss`, and `group`, `first_class`, `workspace_bytes`.

    Example:
        >>> import torch, graceful_fast as gf
        >>> loss = gf.LinearFocalDistillationLoss(temperature=4.0)
        >>> head = torch.nn.Linear(8, 5)
        >>> features, old_logits = torch.randn(2, 8), torch.randn(2, 5)
        >>> loss(features, head.weight, torch.tensor([0, 4]), bias=head.bias, old_logits=old_logits).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        group: "ProcessGroup | None" = None,
        first_class: int = 0,
        workspace_bytes: int = 64 << 20,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _ranks.check_shard(group, first_class)
        _check_workspace(workspace_bytes)
        self.options |= {"group": group, "first_class": first_class, "workspace_bytes": workspace_bytes}

    def forward(  # type: ignore[override]
        self,
        features: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        old_logits: torch.Tensor | None = None,
        old_features: torch.Tensor | None = None,
        old_weight: torch.Tensor | None = None,
        old_bias: torch.Tensor | None = None,
        count: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `linear_focal_distillation_loss`."""
        return linear_focal_distillation_loss(
            features,
            weight,
            target,
            bias=bias,
            old_logits=old_logits,
            old_features=old_features,
            old_weight=old_weight,
            old_bias=old_bias,
            class_map=self.class_map,
            count=count,
            **self.options,
        )
