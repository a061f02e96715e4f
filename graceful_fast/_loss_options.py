"""What the losses share: their options' types and the checks of their arguments."""

from typing import Any, Literal

import torch

from . import _ops

Divergence = Literal["kl", "logits"]
Focus = Literal["old_correct", "negative_flip", "new_incorrect", "all"] | torch.Tensor
Reduction = Literal["mean", "sum", "none"]

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def check_tensor(tensor: Any, name: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_target(target: Any, n: int, rows: torch.Tensor) -> None:
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: expected a torch.Tensor, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64, got {target.dtype}")
    if target.dim() != 1 or target.shape[0] != n:
        wrong_shape("target", f"({n},)", target)
    if target.device != rows.device:
        raise ValueError(f"target: expected device {rows.device} as the rows, got {target.device}")


def check_options(temperature: float, label_smoothing: float, reduction: str) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 to 1, got {label_smoothing}")
    choice(reduction, _ops.REDUCTIONS, "reduction")


def wrong_shape(name: str, expected: str, tensor: torch.Tensor) -> Any:
    raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")


def choice(value: Any, choices: dict[str, int], name: str) -> int:
    code = choices.get(value) if isinstance(value, str) else None
    if code is None:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return code


def unit_stride(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.is_contiguous() or rows.stride(1) == 1 else rows.contiguous()
