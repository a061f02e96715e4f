"""Backward-compatible training: a new embedding whose queries find their like in the gallery that the old one left.

An objective takes the place of the criterion in any training loop, ``objective(model(inputs), inputs, target)``, around
a model that returns (embeddings, logits): the logits are those of its own head, on its own classes.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..losses import InfluenceLoss
from .pct import Objective

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Output = tuple[torch.Tensor, torch.Tensor]
"""(B, D) embeddings and (B, C) logits of one batch."""


def fit_width(embeddings: torch.Tensor, width: int) -> torch.Tensor:
    """Embeddings of another width as a gallery of this `width` sees them: the first columns, or zeros behind the last.

    Training and search must do the same: what the influence loss shaped are these columns. A cosine is of their own
    length, not of the whole embedding's.

    Args:
        embeddings: (B, D) of the new model.
        width: D of the old head or gallery.

    Returns:
        (B, width), a view where nothing is added.

    Example:
        >>> import torch
        >>> from graceful_fast.training import bct
        >>> bct.fit_width(torch.ones(1, 3), 2), bct.fit_width(torch.ones(1, 3), 4)
        (tensor([[1., 1.]]), tensor([[1., 1., 1., 0.]]))
    """
    missing = width - embeddings.shape[1]
    return F.pad(embeddings, (0, missing)) if missing > 0 else embeddings[:, :width]


def synthesised_head(
    features: torch.Tensor,
    target: torch.Tensor,
    *,
    classes: int,
    old_weight: torch.Tensor | None = None,
    class_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """The old head as it would be had the old model known all classes: its own rows, and mean features for the others.

    Args:
        features: (N, D) embeddings of the training samples by the old model, as the old gallery holds them: of unit
            length where it is searched by cosine. The rows are means of these and shorter than they, so use the head
            with ``normalize=True``, where only directions count.
        target: (N,) int64 classes of the new model.
        classes: Of the new model.
        old_weight: (C_old, D) rows of the old head, kept as they are; None where there is no head: all rows are means.
        class_map: (classes,) int64: the row of `old_weight` for each new class, -1 for classes to synthesise; with
            `old_weight`.

    Returns:
        (classes, D), of the features' dtype, without gradient: row c for new class c, so no class map is needed.

    Raises:
        ValueError: A class to synthesise without a sample; shapes that do not match; one of `old_weight` and
            `class_map` without the other; an entry of it that is no row.
        IndexError: A target outside 0..classes - 1.

    Source:
        Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020: synthesised classifier weights, as
        in weight imprinting, Qi et al., CVPR 2018.

    Example:
        >>> import torch
        >>> from graceful_fast.training import bct
        >>> features, target = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 0, 1])
        >>> bct.synthesised_head(
        ...     features, target, classes=2, old_weight=torch.tensor([[5.0, 0.0]]), class_map=torch.tensor([0, -1])
        ... )
        tensor([[5., 0.],
                [0., 2.]])
    """
    if features.dim() != 2 or target.shape != features.shape[:1]:
        raise ValueError(
            f"features, target: expected shapes (N, D) and (N,), got {tuple(features.shape)} and {tuple(target.shape)}"
        )
    if (old_weight is None) != (class_map is None):
        raise ValueError("old_weight, class_map: expected both or neither, got one")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise IndexError(f"target: expected 0..{classes - 1}, got {int(target.min())}..{int(target.max())}")
    features = features.detach()
    counts = torch.bincount(target, minlength=classes)
    sums = features.new_zeros(classes, features.shape[1], dtype=torch.float64)
    head = sums.index_add_(0, target, features.double()) / counts[:, None]
    made = torch.ones_like(counts, dtype=torch.bool)
    if old_weight is not None and class_map is not None:
        if old_weight.dim() != 2 or old_weight.shape[1] != features.shape[1]:
            raise ValueError(f"old_weight: expected (C, {features.shape[1]}), got {tuple(old_weight.shape)}")
        if class_map.shape != (classes,) or bool(((class_map < -1) | (class_map >= len(old_weight))).any()):
            raise ValueError(f"class_map: expected ({classes},) of -1..{len(old_weight) - 1}, got {class_map.tolist()}")
        made = class_map < 0
        head[~made] = old_weight.detach()[class_map[~made]].double()
    if bool((made & (counts == 0)).any()):
        without = int((made & (counts == 0)).nonzero()[0])
        raise ValueError(f"target: expected a sample of every class to synthesise, got none of class {without}")
    return head.to(features.dtype)


class BackwardCompatible(nn.Module):
    """The own loss plus ``weight`` times the influence loss through the old model's frozen head, or several models'.

    Args:
        heads: An `InfluenceLoss` of each old model that the new embedding must fit, at least one. Embeddings of another
            width than a head's pass through `fit_width`. Options, margins and class maps are theirs.
        weight: Of each influence term; at least 0, finite.
        criterion: (logits, target) -> the own loss; cross-entropy by default.

    Attributes:
        share: (heads,) of the batch last seen, the share of the rows that had an influence term: less than 1 where a
            class map leaves classes out. The term is a mean over those rows: each weighs 1 / share as much as its own
            loss does.

    Raises:
        ValueError: No heads, or a bad weight.

    Source:
        Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020, eq. 4.

    Example:
        >>> import torch, graceful_fast as gf
        >>> from graceful_fast.training import bct
        >>> old_head = gf.InfluenceLoss(torch.eye(3), normalize=True, scale=8.0, class_map=torch.tensor([0, 1, 2, -1]))
        >>> objective = bct.BackwardCompatible(old_head, weight=2.0)
        >>> embeddings, logits = torch.randn(4, 3, requires_grad=True), torch.randn(4, 4)
        >>> objective((embeddings, logits), None, torch.tensor([0, 3, 1, 1])).backward()
        >>> embeddings.grad.shape, objective.share
        (torch.Size([4, 3]), tensor([0.7500]))
    """

    share: torch.Tensor

    def __init__(self, *heads: InfluenceLoss, weight: float = 1.0, criterion: Criterion = F.cross_entropy) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads: expected at least one InfluenceLoss, got none")
        self.heads = nn.ModuleList(heads)
        self.weight, self.criterion = checked_weight(weight), criterion
        self.register_buffer("share", torch.zeros(len(heads)), persistent=False)

    def forward(self, output: Output, inputs: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch; the inputs are not looked at."""
        embeddings, logits = output
        loss, shares = self.criterion(logits, target), []
        for head in cast(Iterable[InfluenceLoss], self.heads):
            loss = loss + self.weight * head(fit_width(embeddings, head.old_weight.shape[1]), target)
            counted = target != head.options["ignore_index"]
            if head.class_map is not None:
                counted &= head.class_map[target.where(counted, 0)] >= 0
            shares.append(counted.float().mean())
        self.share = torch.stack(shares)
        return loss


class L2Compatible(Objective):
    """The own loss plus ``weight`` times the mean squared distance of unit embeddings, new from old.

    The baseline that falls short of compatibility: it asks the new model for the old one's mistakes, too.

    Args:
        old: The old embedding model: inputs -> (B, D). Frozen.
        weight: Of the distance; at least 0, finite.
        criterion: As in `BackwardCompatible`.

    Source:
        The naive baseline of Shen et al., Towards Backward-Compatible Representation Learning, CVPR 2020.

    Example:
        >>> import torch
        >>> from graceful_fast.training import bct
        >>> objective = bct.L2Compatible(torch.nn.Identity(), criterion=lambda logits, target: logits.sum())
        >>> objective((torch.eye(2), torch.zeros(2, 2)), torch.eye(2).flip(0), torch.tensor([0, 1]))
        tensor(2.)
    """

    def __init__(self, old: nn.Module, *, weight: float = 1.0, criterion: Criterion = F.cross_entropy) -> None:
        super().__init__(old)
        self.weight, self.criterion = checked_weight(weight), criterion

    def forward(self, output: Output, inputs: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        embeddings, logits = output
        old = F.normalize(self.old_logits(inputs))  # an embedding model's answer
        new = F.normalize(fit_width(embeddings, old.shape[1]))
        return self.criterion(logits, target) + self.weight * (new - old).square().sum(1).mean()


class HotRefresh(Objective):
    """The own loss plus ``weight`` times a contrast: a new embedding is to find its own old one before all others.

    ``-log(p / (p + sum_j exp(<new_i, old_j> / T) + sum_j exp(<new_i, new_j> / T)))`` with unit embeddings,
    ``p = exp(<new_i, old_i> / T)`` and j over the rows of the batch with another target. The new-new negatives keep
    apart what a gallery in the middle of its backfill holds of both models.

    Args:
        old: The old embedding model: inputs -> (B, D). Frozen. No head is needed.
        temperature: T, positive.
        new_negatives: With the second sum.
        weight: Of the contrast; at least 0, finite.
        criterion: As in `BackwardCompatible`.

    Raises:
        ValueError: A bad temperature or weight.

    Source:
        Zhang et al., Hot-Refresh Model Upgrades with Regression-Alleviating Compatible Training in Image Retrieval,
        ICLR 2022.

    Example:
        >>> import torch
        >>> from graceful_fast.training import bct
        >>> own = lambda logits, target: logits.sum()
        >>> objective = bct.HotRefresh(torch.nn.Identity(), temperature=1.0, criterion=own)
        >>> objective((torch.eye(2), torch.zeros(2, 2)), torch.eye(2), torch.tensor([0, 1]))  # log((e + 1 + 1) / e)
        tensor(0.5514)
    """

    def __init__(
        self,
        old: nn.Module,
        *,
        temperature: float = 0.05,
        new_negatives: bool = True,
        weight: float = 1.0,
        criterion: Criterion = F.cross_entropy,
    ) -> None:
        super().__init__(old)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.temperature, self.new_negatives = temperature, new_negatives
        self.weight, self.criterion = checked_weight(weight), criterion

    def forward(self, output: Output, inputs: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        embeddings, logits = output
        old = F.normalize(self.old_logits(inputs))  # an embedding model's answer
        new = F.normalize(fit_width(embeddings, old.shape[1]))
        own = torch.eye(len(target), dtype=torch.bool, device=target.device)
        alike = target[:, None] == target
        scores = (new @ old.T / self.temperature).masked_fill(alike & ~own, -torch.inf)
        if self.new_negatives:
            scores = torch.cat([scores, (new @ new.T / self.temperature).masked_fill(alike, -torch.inf)], dim=1)
        contrast = F.cross_entropy(scores, torch.arange(len(target), device=target.device))
        return self.criterion(logits, target) + self.weight * contrast


def checked_weight(weight: float) -> float:
    """The weight of a term."""
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight: expected a finite number, 0 or more, got {weight}")
    return weight
