"""What the losses share: their options' types and the checks of their arguments."""

from numbers import Real
from typing import Any, Literal

import torch

from . import _ops

Divergence = Literal["kl", "logits", "ldi"]
Focus = Literal["old_correct", "negative_flip", "new_incorrect", "all"] | torch.Tensor
Reduction = Literal["mean", "sum", "none"]

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def check_tensor(tensor: Any, name: str) -> None:
    """A torch tensor of a floating type, whole on this process."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if type(tensor).__name__ == "DTensor":
        raise TypeError(
            f"{name}: expected a plain tensor, got a DTensor; pass its full_tensor(), or its shard and group="
        )
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


def focal_weights(focus: torch.Tensor, n: int, device: torch.device) -> torch.Tensor:
    """A focus of each row as the op takes it."""
    if focus.shape != (n,):
        wrong_shape("focus", f"({n},)", focus)
    if not focus.is_floating_point():
        raise TypeError(f"focus: expected a floating tensor, got {focus.dtype}")
    return focus.detach().to(device, torch.float64).contiguous()


def check_count(count: Any, reduction: str) -> None:
    """`count` is for the mean, and positive where that can be seen without waiting for a device."""
    if count is None:
        return
    if reduction != "mean":
        raise ValueError(f'count: expected None unless reduction is "mean", got {count} with {reduction!r}')
    if isinstance(count, torch.Tensor):
        if count.dim() != 0:
            wrong_shape("count", "()", count)
        if count.device.type == "cpu" and not torch.compiler.is_compiling() and not 0 < float(count) < float("inf"):
            raise ValueError(f"count: expected a positive finite number, got {float(count)}")
    elif not 0 < count < float("inf"):
        raise ValueError(f"count: expected a positive finite number, got {count}")


def divided(loss: torch.Tensor, count: float | torch.Tensor) -> torch.Tensor:
    """`loss` / `count` in the loss's dtype, whatever the count's is."""
    return loss / (count.to(loss) if isinstance(count, torch.Tensor) else count)


def check_class_map(class_map: Any) -> None:
    """An int64 tensor."""
    if not isinstance(class_map, torch.Tensor) or class_map.dtype != torch.int64:
        got = class_map.dtype if isinstance(class_map, torch.Tensor) else type(class_map).__name__
        raise TypeError(f"class_map: expected an int64 torch.Tensor, got {got}")


def shared_columns(class_map: Any, classes: int, old_classes: int, device: torch.device) -> _ops.Columns:
    """The columns of both logits that are one class; None: the first of both. `class_map`: old class of each new."""
    if class_map is None:
        return None, None
    check_class_map(class_map)
    if class_map.shape != (classes,):
        wrong_shape("class_map", f"({classes},)", class_map)
    if device.type == "cuda":  # its entries cannot be looked at without waiting for them
        return None, class_map.to(device, non_blocking=True).contiguous()
    class_map = class_map.to(device)
    new = (class_map >= 0).nonzero()[:, 0]
    old = class_map[new]
    wrong = ((class_map < -1) | (class_map >= old_classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"class_map: expected -1 <= class < {old_classes}, got {int(class_map[at])} at class {at}")
    if len(old.unique()) != len(old):
        twice = int(old.mode().values)
        raise ValueError(f"class_map: expected each old class at most once, got {twice} for several new classes")
    return new, old


def loss_options(
    divergence: Divergence,
    alpha: float,
    beta: float,
    temperature: float,
    focus: Focus,
    distillation_weight: float,
    cross_entropy_weight: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: Reduction,
    ldi_margin: float,
    exclude_target: bool,
) -> tuple[_ops.Distance, _ops.Total]:
    """The options of focal distillation, checked and as the ops take them."""
    numbers: dict[str, Any] = {
        "alpha": alpha,
        "beta": beta,
        "temperature": temperature,
        "distillation_weight": distillation_weight,
        "cross_entropy_weight": cross_entropy_weight,
        "label_smoothing": label_smoothing,
        "ldi_margin": ldi_margin,
    }
    for name, value in numbers.items():
        if type(value) is not float and not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    check_options(temperature, label_smoothing, reduction)
    if not 0 <= ldi_margin < float("inf"):
        raise ValueError(f"ldi_margin: expected a finite number of at least 0, got {ldi_margin}")
    code = choice(divergence, _ops.DIVERGENCES, "divergence")
    focus_code = _ops.FOCUS_BY_WEIGHT if isinstance(focus, torch.Tensor) else choice(focus, _ops.FOCUSES, "focus")
    return (
        _ops.Distance(code, ldi_margin, exclude_target, temperature, ignore_index),
        _ops.Total(
            focus_code,
            alpha,
            beta,
            distillation_weight,
            cross_entropy_weight,
            label_smoothing,
            _ops.REDUCTIONS[reduction],
        ),
    )


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
