"""The only file that talks to torch's dispatcher: loads the op library; an op's fake and autograd are neighbours here."""

from importlib.resources import files

import torch

from . import _C

isa: str = _C.load(str(files(__package__).joinpath("graceful_fast_cpu.so")))
"""Name of the instruction set that the CPU kernels run with."""

_ops = torch.ops.graceful_fast

# --- flips ------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("graceful_fast::flips")
def _flips_fake(
    old: torch.Tensor, new: torch.Tensor, target: torch.Tensor, topk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return target.new_empty(target.shape, dtype=torch.uint8), target.new_empty(1)


def flips(old: torch.Tensor, new: torch.Tensor, target: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outcome byte of each sample and the first bad target; see csrc/cpu/flips.h."""
    outcome: tuple[torch.Tensor, torch.Tensor] = _ops.flips.default(old, new, target, topk)
    return outcome


# --- scan -------------------------------------------------------------------------------------------------------------

METRICS = {"ip": 0, "l2": 1, "cosine": 2}
"""Numbers of the metrics, as in csrc/cpu/scan.h."""


@torch.library.register_fake("graceful_fast::scan_collect")
def _scan_collect_fake(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    k: int,
    metric: int,
    query_ids: torch.Tensor | None,
    gallery_ids: torch.Tensor | None,
    query_groups: torch.Tensor | None,
    gallery_groups: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (queries.shape[0], k)
    return (
        queries.new_empty(shape, dtype=torch.float32),
        queries.new_empty(shape, dtype=torch.int64),
        queries.new_empty(4, dtype=torch.int64),
    )


def scan_collect(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    k: int,
    metric: str,
    ids: tuple[torch.Tensor | None, torch.Tensor | None],
    groups: tuple[torch.Tensor | None, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, indices and status of the k best gallery rows of each query; see csrc/cpu/scan.cpp."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _ops.scan_collect.default(
        queries, gallery, k, METRICS[metric], *ids, *groups
    )
    return found
