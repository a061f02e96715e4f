"""The only file that talks to torch's dispatcher: loads the op library; an op's fake and autograd are neighbours."""

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
