"""Positive-congruent training: what a new model pays so that answers which the old one gets right stay right.

An objective takes the place of the criterion in any training loop: ``objective(model(inputs), inputs, target)``. It
runs the old model on the same inputs, so on the same augmented view, in eval mode and without gradient; autocast,
torch.compile and DistributedDataParallel are the caller's, around the new model or around the whole step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..losses import FocalDistillationLoss


class Ensemble(nn.Module):
    """The mean of its members' logits, as one model.

    Args:
        members: Models of equal output shape, at least one.

    Raises:
        ValueError: No members.

    Source:
        Yan et al., Positive-Congruent Training, CVPR 2021, eq. 10: softmax of the mean logits.

    Example:
        >>> import torch
        >>> from graceful_fast.training import pct
        >>> pct.Ensemble([torch.nn.Identity(), torch.nn.Softmax(dim=1)])(torch.zeros(1, 4))
        tensor([[0.1250, 0.1250, 0.1250, 0.1250]])
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise ValueError("members: expected at least one model, got none")

    def forward(self, inputs: Any) -> torch.Tensor:
        """Inputs of the members -> (B, C) logits."""
        return torch.stack([member(inputs) for member in self.members]).mean(0)


class Objective(nn.Module):
    """An old model, frozen: in eval mode whatever mode the module around it is in, its parameters without gradient.

    The module given is itself frozen, not a copy of it: start a new model from ``copy.deepcopy(old)``.
    """

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old = old.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Objective":
        """As ever, but the old model stays in eval mode: its dropout is off and its running averages are its own."""
        super().train(mode)
        self.old.eval()
        return self

    def old_logits(self, inputs: Any) -> torch.Tensor:
        """What the old model answers to these inputs.

        Raises:
            ValueError: The old model has been put into training mode since.
        """
        if self.old.training:
            raise ValueError("old: expected a model in eval mode, got one in training mode; call old.eval()")
        with torch.no_grad():
            logits: torch.Tensor = self.old(inputs)
        return logits


class FocalDistillation(Objective):
    """Cross-entropy plus a divergence from the old model's logits, most where the old model is right.

    `gf.focal_distillation_loss` of the new and the old model's logits; FD-KL by default, FD-LM is
    ``divergence="logits"``. A good `distillation_weight` depends on how much better the new model can become: 1 where
    old and new are alike, far less where the new one should leave the old one behind.

    Args:
        old: The model in use, or an `Ensemble`: inputs -> (B, C_old) logits. Frozen.
        options: Those of `gf.focal_distillation_loss` other than `count`.

    Raises:
        TypeError, ValueError: As `gf.focal_distillation_loss` does.

    Source:
        Yan et al., Positive-Congruent Training, CVPR 2021, eq. 5-9.

    Example:
        >>> import torch
        >>> from graceful_fast.training import pct
        >>> old, new = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)
        >>> objective = pct.FocalDistillation(old, divergence="logits")
        >>> inputs, target = torch.randn(4, 8), torch.tensor([0, 2, 1, 1])
        >>> objective(new(inputs), inputs, target).backward()
        >>> new.weight.grad.shape, old.weight.grad
        (torch.Size([3, 8]), None)
    """

    def __init__(self, old: nn.Module, **options: Any) -> None:
        super().__init__(old)
        self.loss = FocalDistillationLoss(**options)

    def forward(
        self,
        new_logits: torch.Tensor,
        inputs: Any,
        target: torch.Tensor,
        *,
        count: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss; `count` divides the sum over rows in place of their number, see `gf.global_count` for DDP."""
        loss: torch.Tensor = self.loss(new_logits, self.old_logits(inputs), target, count=count)
        return loss


def elodi(members: Iterable[nn.Module], **options: Any) -> FocalDistillation:
    """Distillation of an ensemble into one model by logit difference inhibition.

    ``0.2 * CE + 0.8 * mean_c (new_c - ensemble_c)**2`` with the target's class left out of the squares, over all
    rows alike. The teachers are an ensemble of the new model's own architecture and data. Where each release is
    distilled so, releases agree because ensembles do; no release needs to know the one before.

    Args:
        members: The teachers, at least one. Frozen.
        options: Those of `gf.focal_distillation_loss` in place of these defaults.

    Source:
        Zhao et al., ELODI: Ensemble Logit Difference Inhibition, 2022. The defaults are the published code's for an
        ensemble of teachers.

    Example:
        >>> import torch
        >>> from graceful_fast.training import pct
        >>> objective = pct.elodi([torch.nn.Linear(8, 3) for _ in range(4)])
        >>> objective(torch.zeros(2, 3), torch.randn(2, 8), torch.tensor([0, 2])).shape
        torch.Size([])
    """
    defaults = {
        "divergence": "ldi",
        "focus": "all",
        "ldi_margin": 0.0,
        "exclude_target": True,
        "distillation_weight": 0.8,
        "cross_entropy_weight": 0.2,
    }
    return FocalDistillation(Ensemble(members), **(defaults | options))


class NaiveReweighting(Objective):
    """Cross-entropy that counts a row more where the old model is right: ``mean_i (1 + weight * [old right]) * CE_i``.

    The baseline that focal distillation is measured against; it knows which answers of the old model were right, not
    how it reached them.

    Args:
        old: The model in use: inputs -> (B, C_old) logits. Frozen. On a row whose class it does not have it is wrong.
        weight: Added to the factor 1 where the old model's argmax (the first of equal ones) is the target; at least 0.
        class_map: As in `gf.focal_distillation_loss`.
        label_smoothing: Share of the uniform distribution in the target, 0 to 1.
        ignore_index: Rows with this target give no loss and are not counted.

    Raises:
        ValueError: `weight` is negative or not finite.

    Source:
        Yan et al., Positive-Congruent Training, CVPR 2021, eq. 6.

    Example:
        >>> import torch
        >>> from graceful_fast.training import pct
        >>> objective = pct.NaiveReweighting(torch.nn.Identity(), weight=2.0)
        >>> new, target = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> objective(new, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), target) / torch.log(torch.tensor(2.0))
        tensor(2.)
    """

    class_map: torch.Tensor | None

    def __init__(
        self,
        old: nn.Module,
        *,
        weight: float = 1.0,
        class_map: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(old)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight: expected a finite number, 0 or more, got {weight}")
        self.weight, self.label_smoothing, self.ignore_index = weight, label_smoothing, ignore_index
        self.register_buffer("class_map", class_map, persistent=False)

    def forward(
        self,
        new_logits: torch.Tensor,
        inputs: Any,
        target: torch.Tensor,
        *,
        count: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss; `count` as in `FocalDistillation`."""
        rows = F.cross_entropy(
            new_logits,
            target,
            reduction="none",
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )
        old = self.old_logits(inputs)[:, : new_logits.shape[1] if self.class_map is None else None]
        if self.class_map is not None:
            old = old[:, self.class_map.clamp(min=0)].masked_fill(self.class_map < 0, -torch.inf)
        right = old.argmax(1) == target
        divisor = (target != self.ignore_index).sum().clamp(min=1) if count is None else count
        return (rows * (1 + self.weight * right)).sum() / divisor
