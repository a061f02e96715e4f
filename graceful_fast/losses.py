"""Losses that fit a new model to what the old one left behind: functions and their nn.Module forms."""

from typing import TYPE_CHECKING, Any

import torch

from . import _ops
from ._influence import (
    FrozenHeadCrossEntropy,
    MarginType,
    Options,
    check_classes,
    check_influence_options,
    known_target,
)
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

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    ldi_margin: float = 0.5,
    exclude_target: bool = False,
    class_map: torch.Tensor | None = None,
    count: float | torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Cross-entropy plus a divergence from the old model's logits, weighted where the old model was right.

    Row i contributes ``cross_entropy_weight * CE_i + distillation_weight * w_i * D_i`` with

    * ``w_i = alpha + beta * [condition_i]``, per sample;
    * ``D_i = temperature**2 * KL(softmax(old_i / temperature) || softmax(new_i / temperature))`` for ``"kl"``;
    * ``D_i = mean_c (new_ic - old_ic)**2 / 2`` over the classes with a finite old logit for ``"logits"``;
    * ``D_i = mean_c max(|new_ic - old_ic| - ldi_margin, 0)**2`` over the same for ``"ldi"`` (logit
      difference inhibition).

    An old head with fewer classes than the new one: D over the shared first columns, and no distillation for rows
    whose target the old model never knew. Further columns of a wider old head are left out. A weight of 0 takes its
    term out even where it is infinite. A new logit of -inf where the old model has mass makes the loss infinite and
    its gradient finite. Row sums are float64 and large temperatures keep their digits; nothing of the logits' size is
    saved for the backward pass, and the result has the same bits for any number of threads.

    Args:
        new_logits: (B, C) float32, float64, bfloat16 or float16; rows may be strided. Gets the gradient.
        old_logits: (B, C_old) of any of these dtypes. Gets none. Float64 is never rounded: rows are then computed in
            float64, many times slower than in float32.
        target: (B,) int64, each 0 <= target < C or `ignore_index`.
        divergence: "kl", "logits" or "ldi". For an ensemble of old models, `old_logits` are the mean of its members'.
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
        ldi_margin: For "ldi": differences up to it are free; at least 0. ELODI's code uses 0.5 for a single old model,
            0 for an ensemble.
        exclude_target: For "ldi": the target's class adds 0 (the mean is still over all).
        class_map: (C,) int64, the old model's class for each new one, -1 for a class that it never knew; no old class
            twice. By default class c of either is the same class. Columns of the old head that no class has are left
            out; of equal old logits the one of the smaller new class is the argmax. On CUDA nobody waits for its
            entries to look at them: one outside -1..C_old-1 makes the loss NaN, one given twice counts twice.
        count: Divisor of the mean in place of the rows not ignored, a number or a () tensor: for accumulated gradients,
            and `global_count` where the rows of a batch are spread over ranks.

    Returns:
        () or, for "none", (B,); float64 for float64 `new_logits`, else float32. Differentiable once.

    Raises:
        TypeError: An argument of a wrong type or dtype.
        ValueError: A shape or an option that is not as above.
        RuntimeError: A target outside 0..C-1 (CPU; on CUDA the row's loss and gradient are NaN).

    Source:
        Yan et al., Positive-Congruent Training, CVPR 2021, eq. 5-9; "ldi": Zhao et al., ELODI, 2022. The published code
        multiplies weights (B, 1) by losses (B,), which averages them apart from each other; here each row has its own
        weight.

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
    check_count(count, reduction)
    new, old, target, weight = _check_rows(new_logits, old_logits, target, focus)
    columns = shared_columns(class_map, new.shape[1], old.shape[1], new.device)
    distance, total = loss_options(
        divergence, alpha, beta, temperature, focus, distillation_weight, cross_entropy_weight, label_smoothing,
        ignore_index, "sum" if count is not None else reduction, ldi_margin, exclude_target,
    )  # fmt: skip
    loss = _ops.distill(new, old, target, weight, columns, distance, total)
    return loss if count is None else divided(loss, count)


def _check_rows(
    new: torch.Tensor, old: torch.Tensor, target: torch.Tensor, focus: Focus
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The row arguments as the op takes them: unit stride within rows, the focus as float64 where it is a tensor."""
    check_tensor(new, "new_logits")
    check_tensor(old, "old_logits")
    n, _ = new.shape if new.dim() == 2 else wrong_shape("new_logits", "(batch, classes)", new)
    if old.dim() != 2 or old.shape[0] != n:
        wrong_shape("old_logits", f"({n}, classes)", old)
    check_target(target, n, new)
    if old.device != new.device:
        raise ValueError(f"old_logits: expected device {new.device} as new_logits, got {old.device}")
    if old.requires_grad:
        old = old.detach()
    weight = focal_weights(focus, n, new.device) if isinstance(focus, torch.Tensor) else None
    return unit_stride(new), unit_stride(old), target.contiguous(), weight


def influence_loss(
    features: torch.Tensor,
    old_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    old_bias: torch.Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    margin: float = 0.0,
    margin_type: MarginType = "cosine",
    class_map: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    count: float | torch.Tensor | None = None,
    group: "ProcessGroup | None" = None,
    first_class: int = 0,
    workspace_bytes: int = 16 << 20,
) -> torch.Tensor:
    r"""Cross-entropy of the new features through the frozen old classifier (backward-compatible training).

    ``CE(scale * (features[:, :D] @ old_weight.T + old_bias), target)``, where `normalize` divides features (their
    first D columns) and rows of `old_weight` by their Euclidean lengths: products become cosines. `margin` then makes
    the target's cosine, of angle t, harder:

    * ``"cosine"`` (CosFace): ``cos(t) - margin``;
    * ``"arc"`` (ArcFace): ``cos(t + margin)`` where ``t + margin <= pi``, else ``cos(t) - margin * sin(margin)``,
      which goes on falling (with a step at the seam). Its gradient is taken to be 0 at t = 0, where it has a kink.

    The head is walked over in blocks of classes with an online softmax: logits of all classes are never held, and the
    (B, D) gradient comes out of the same walk. The target's logit is computed in float64.

    Where the old model never knew a row's class, the row has no influence term. The share of a batch that has one
    varies from batch to batch, and with it the weight of a row under "mean"; with a `class_map` it is
    ``(class_map[target] >= 0).float().mean()``, and `count` fixes the divisor.

    Args:
        features: (B, D_new) float32, float64, bfloat16 or float16, D_new >= D; its first D columns are used.
        old_weight: (C, D) of any of these dtypes. Frozen: gets no gradient. With `group`, this rank's classes of it.
        target: (B,) int64, classes of the old head (of the new one, with `class_map`), or `ignore_index`.
        old_bias: (C,), or None; added to cosines, too. With `group`, this rank's classes of it.
        scale: Factor of the logits.
        normalize: Cosines in place of products.
        margin: At least 0, finite, below pi for "arc"; needs `normalize` unless 0.
        margin_type: "cosine" or "arc".
        class_map: (C_new,) int64: the old head's class for each new class, -1 where the old model never knew it;
            such rows are treated as ignored ones. `ignore_index` is compared with `target` as given.
        label_smoothing: Share of the uniform distribution in the target, 0 to 1.
        ignore_index: Rows with this target give no loss and no gradient and are not counted.
        reduction: "mean" over the rows not ignored (0 if there are none), "sum", or "none".
        count: Divisor of the mean in place of the number of rows not ignored: a positive number or a tensor of shape
            (), for gradient accumulation and, from `global_count`, for DistributedDataParallel.
        group: The classes are sharded over the ranks of this process group: each holds the rows `first_class`,
            `first_class` + 1, ... of the head, at least one. Features, targets and options are the same on all ranks;
            targets and `class_map` are numbers in the full head. The loss and the gradient of the features are the
            whole head's, on every rank; one collective forward and one backward.
        first_class: With `group`, the number of this rank's first class.
        workspace_bytes: Bound of a block's logits (and of a copy of its weights where one is needed).

    Returns:
        () or, for "none", (B,); float64 for float64 features, else float32. Differentiable once.

    Raises:
        TypeError: An argument of a wrong type or dtype.
        ValueError: A shape or an option that is not as above; features narrower than `old_weight`; an entry of
            `class_map` outside -1..C-1 (CPU); shards that do not cover 0..C-1 once (CPU).
        IndexError: A target outside 0..C-1 (CPU; on CUDA the row is NaN).

    Source:
        Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, eq. 4. Margins: Wang et al.,
        CosFace, CVPR 2018, eq. 4; Deng et al., ArcFace, CVPR 2019, eq. 3.

    Example:
        >>> import torch, graceful_fast as gf
        >>> features = torch.eye(2, 4, requires_grad=True)
        >>> loss = gf.influence_loss(features, torch.eye(3), torch.tensor([0, -100]), scale=2.0)
        >>> f"{loss:.4f}"
        '0.2395'
        >>> loss.backward()
        >>> features.grad.shape
        torch.Size([2, 4])
        >>> class_map = torch.tensor([2, -1, 0, 1])  # new class 1 is new
        >>> target = torch.tensor([2, 1])
        >>> options = {"normalize": True, "scale": 16.0, "margin": 0.3, "margin_type": "arc", "class_map": class_map}
        >>> f"{gf.influence_loss(features, torch.eye(3), target, **options):.2e}"
        '4.60e-07'
        >>> (class_map[target] >= 0).float().mean()
        tensor(0.5000)
        >>> gf.influence_loss(features, torch.ones(3, 5), torch.tensor([0, 1]))
        Traceback (most recent call last):
        ValueError: features: expected at least 5 columns as old_weight, got 4
    """
    _check_head(features, old_weight, old_bias, target)
    options = Options(
        scale, normalize, margin, margin_type, label_smoothing, reduction == "none", workspace_bytes, group, first_class
    )
    check_influence_options(options, reduction, class_map, count)
    known = known_target(target, class_map, ignore_index, len(old_weight) if group is None else None)
    if group is None:
        check_classes(known, class_map, len(old_weight))
    counted = known >= 0
    factor = counted.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    if reduction == "mean":
        factor = factor / (counted.sum().clamp(min=1) if count is None else count)
    if not torch.is_grad_enabled():  # an autograd.Function sees what requires a gradient, not whether one is wanted
        features = features.detach()
    loss: torch.Tensor = FrozenHeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features,
        old_weight.detach(),
        None if old_bias is None else old_bias.detach(),
        known,
        factor,
        class_map,
        options,
    )
    return loss


def _check_head(features: Any, weight: Any, bias: Any, target: Any) -> None:
    check_tensor(features, "features")
    if features.dim() != 2:
        wrong_shape("features", "(batch, width)", features)
    _check_old(weight, bias)
    if features.shape[1] < weight.shape[1]:
        raise ValueError(
            f"features: expected at least {weight.shape[1]} columns as old_weight, got {features.shape[1]}"
        )
    check_target(target, len(features), features)


def _check_old(weight: Any, bias: Any) -> None:
    check_tensor(weight, "old_weight")
    if weight.dim() != 2 or not len(weight):
        wrong_shape("old_weight", "(classes, width), at least one class", weight)
    if bias is not None:
        check_tensor(bias, "old_bias")
        if bias.shape != (len(weight),):
            wrong_shape("old_bias", f"({len(weight)},)", bias)


class FocalDistillationLoss(torch.nn.Module):
    """`focal_distillation_loss` with its options bound: ``loss(new_logits, old_logits, target, count=None)``.

    Example:
        >>> import torch, graceful_fast as gf
        >>> loss = gf.FocalDistillationLoss(beta=10.0, temperature=4.0)
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]))
        tensor(1.0986)
    """

    class_map: torch.Tensor | None

    def __init__(
        self,
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
        ldi_margin: float = 0.5,
        exclude_target: bool = False,
        class_map: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        loss_options(
            divergence, alpha, beta, temperature, focus, distillation_weight, cross_entropy_weight, label_smoothing,
            ignore_index, reduction, ldi_margin, exclude_target,
        )  # fmt: skip
        self.register_buffer("class_map", class_map, persistent=False)
        self.options: dict[str, Any] = {
            "divergence": divergence,
            "alpha": alpha,
            "beta": beta,
            "temperature": temperature,
            "focus": focus,
            "distillation_weight": distillation_weight,
            "cross_entropy_weight": cross_entropy_weight,
            "label_smoothing": label_smoothing,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "ldi_margin": ldi_margin,
            "exclude_target": exclude_target,
        }

    def forward(
        self,
        new_logits: torch.Tensor,
        old_logits: torch.Tensor,
        target: torch.Tensor,
        *,
        count: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `focal_distillation_loss`."""
        return focal_distillation_loss(
            new_logits, old_logits, target, class_map=self.class_map, count=count, **self.options
        )

    def extra_repr(self) -> str:
        """The options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class InfluenceLoss(torch.nn.Module):
    """`influence_loss` through one old head: ``loss(features, target)``. Head and class map are buffers, not trained.

    Example:
        >>> import torch, graceful_fast as gf
        >>> loss = gf.InfluenceLoss(torch.eye(3), scale=2.0)
        >>> loss(torch.eye(3), torch.arange(3))
        tensor(0.2395)
    """

    old_weight: torch.Tensor
    old_bias: torch.Tensor | None
    class_map: torch.Tensor | None

    def __init__(
        self,
        old_weight: torch.Tensor,
        *,
        old_bias: torch.Tensor | None = None,
        scale: float = 1.0,
        normalize: bool = False,
        margin: float = 0.0,
        margin_type: MarginType = "cosine",
        class_map: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        group: "ProcessGroup | None" = None,
        first_class: int = 0,
        workspace_bytes: int = 16 << 20,
    ) -> None:
        super().__init__()
        _check_old(old_weight, old_bias)
        walk = Options(
            scale,
            normalize,
            margin,
            margin_type,
            label_smoothing,
            reduction == "none",
            workspace_bytes,
            group,
            first_class,
        )
        check_influence_options(walk, reduction, class_map, None)
        if group is None:
            check_classes(None, class_map, len(old_weight))
        self.register_buffer("old_weight", old_weight.detach())
        self.register_buffer("old_bias", None if old_bias is None else old_bias.detach())
        self.register_buffer("class_map", class_map)
        self.options: dict[str, Any] = {
            "scale": scale,
            "normalize": normalize,
            "margin": margin,
            "margin_type": margin_type,
            "label_smoothing": label_smoothing,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "workspace_bytes": workspace_bytes,
        }
        if group is not None:
            self.options |= {"group": group, "first_class": first_class}

    def forward(
        self, features: torch.Tensor, target: torch.Tensor, *, count: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `influence_loss`."""
        return influence_loss(
            features,
            self.old_weight,
            target,
            old_bias=self.old_bias,
            class_map=self.class_map,
            count=count,
            **self.options,
        )

    def extra_repr(self) -> str:
        """The head's shape and the options."""
        head = f"classes={self.old_weight.shape[0]}, width={self.old_weight.shape[1]}"
        return ", ".join([head, *(f"{name}={value!r}" for name, value in self.options.items() if name != "group")])
