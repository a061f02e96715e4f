"""Classes sharded over ranks: the collectives that the linear losses use, and the count of a global batch."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gather(rows: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """(ranks, *rows.shape): `rows` of every rank, in rank order; one collective."""
    ranks = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(ranks, rows.contiguous(), group=group)
    return torch.stack(ranks)


def all_sum(tensor: torch.Tensor, group: "ProcessGroup") -> torch.Tensor:
    """Sum of `tensor` over the ranks, in place; one collective."""
    dist.all_reduce(tensor, group=group)
    return tensor


def check_shard(group: Any, first_class: Any) -> None:
    """`group=` and `first_class=` go together: a rank must know which classes its rows of the weight are."""
    if group is None:
        if first_class != 0:
            raise ValueError(f"first_class: expected 0 without group=, got {first_class}")
        return
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: expected a torch.distributed.ProcessGroup, got {type(group).__name__}")
    if not isinstance(first_class, int) or first_class < 0:
        raise ValueError(f"first_class: expected the number of this rank's first class, got {first_class!r}")


def check_tiling(first: torch.Tensor, count: torch.Tensor) -> int:
    """The number of all classes, of which rank r has `first[r]`, `first[r]` + 1, ..., `count[r]` of them."""
    order = first.argsort()
    begin, end = first[order], (first + count)[order]
    if begin[0] != 0 or not torch.equal(begin[1:], end[:-1]):
        shards = ", ".join(f"{int(a)}..{int(a + n) - 1}" for a, n in zip(first, count, strict=True))
        raise ValueError(f"first_class: expected shards that cover 0..C-1 once, got {shards}")
    return int(end[-1])


def global_count(
    target: torch.Tensor, group: "ProcessGroup | None" = None, *, ignore_index: int = -100
) -> torch.Tensor:
    """What a loss takes as `count` so that DistributedDataParallel's mean of gradients is that of the global batch.

    The number of rows not ignored over all ranks, divided by the number of ranks: DDP averages the ranks' gradients,
    each rank's loss is the sum of its rows divided by this. Right however unevenly rows are spread over the ranks,
    a rank without any included.

    Args:
        target: (B,) int64, this rank's targets.
        group: The ranks that share the batch; all of them by default. Without torch.distributed: this process alone.
        ignore_index: Targets that are not counted.

    Returns:
        () float64, at least 1 / ranks, on the device of `target`; no host synchronisation.

    Example:
        >>> import torch, graceful_fast as gf
        >>> gf.global_count(torch.tensor([3, -100, 1]))
        tensor(2., dtype=torch.float64)
    """
    count = (target != ignore_index).sum(dtype=torch.float64)
    if not (dist.is_available() and dist.is_initialized()):
        return count.clamp_(min=1)
    return all_sum(count, group or dist.group.WORLD).clamp_(min=1) / dist.get_world_size(group)  # type: ignore[arg-type]
