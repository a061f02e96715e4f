"""NFR and relative NFR as torchmetrics metrics: integer states, so that shards and processes merge without rounding."""

from typing import Any

from .flips import FlipCounts, count_flips

try:
    import torch
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    if error.name not in ("torch", "torchmetrics"):
        raise
    raise ImportError(
        f"NegativeFlipRate, RelativeNegativeFlipRate: expected {error.name} to be installed: pip install {error.name}; "
        "graceful_fast.count_flips gives the same rates without it"
    ) from error


class _FlipMetric(Metric):
    """Sums the four outcomes over updates and processes."""

    is_differentiable = False
    full_state_update = False
    outcomes: torch.Tensor  # [4] int64: both correct, negative, positive, both wrong

    def __init__(self, *, topk: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.topk = topk
        self.add_state("outcomes", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, old: Any, new: Any, target: Any) -> None:
        """Add a batch; arguments as in `graceful_fast.count_flips`."""
        flips = count_flips(old, new, target, topk=self.topk)
        counts = [flips.both_correct, flips.negative, flips.positive, flips.both_wrong]
        self.outcomes += torch.tensor(counts, device=self.outcomes.device)

    def counts(self) -> FlipCounts:
        """The counts so far of this process, without the indices of what broke."""
        return FlipCounts(*self.outcomes.tolist())

    def _rate(self, rate: float) -> torch.Tensor:
        return torch.tensor(rate, dtype=torch.float64, device=self.outcomes.device)


class NegativeFlipRate(_FlipMetric):
    """Share of the samples that the old model got right and the new one gets wrong, over all updates.

    Args:
        topk: 1 or more; right means that fewer than `topk` classes are better than the label.
        **options: of `torchmetrics.Metric`.

    Returns: from `compute()`, a float64 scalar; NaN without samples.

    Raises: as `graceful_fast.count_flips`, from `update(old, new, target)`. ImportError without torchmetrics.

    Source: Yan et al., "Positive-Congruent Training", CVPR 2021, eq. 2.

    Example:
        >>> import torch
        >>> metric = NegativeFlipRate()
        >>> metric.update(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([2, 2]), torch.tensor([2, 2]), torch.tensor([1, 2]))
        >>> metric.compute().item()
        0.25
    """

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """Negative flips / samples."""
        return self._rate(self.counts().nfr)


class RelativeNegativeFlipRate(_FlipMetric):
    """NFR / ((1 - ER_old) * ER_new) over all updates: 1 when the two models' errors are independent.

    Args:
        topk: 1 or more; right means that fewer than `topk` classes are better than the label.
        **options: of `torchmetrics.Metric`.

    Returns: from `compute()`, a float64 scalar; NaN when the divisor is 0.

    Raises: as `graceful_fast.count_flips`, from `update(old, new, target)`. ImportError without torchmetrics.

    Source: Yan et al., "Positive-Congruent Training", CVPR 2021, eq. 11.

    Example:
        >>> import torch
        >>> metric = RelativeNegativeFlipRate()
        >>> metric.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 2]), torch.tensor([0, 1, 1, 2]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """NFR / ((1 - ER_old) * ER_new)."""
        return self._rate(self.counts().relative_nfr)
