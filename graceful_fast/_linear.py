"""Focal distillation from features and the weights of two heads: logits exist one block at a time.

Two loop orders, both within `workspace_bytes` for logits; D is the features' width:

* over classes: forward keeps the row statistics alone, backward computes the blocks' logits again. Four products of
  2 B D C operations (three if the weight is frozen), the weight and its gradient pass through memory once each way.
* over rows: a chunk of rows has all its logits, so forward makes its gradients at once. Three products (two), but the
  weight is read and its gradient read and written once per chunk, and the gradients are held until backward.

`choose_order` takes the cheaper one. Weight gradients accumulate in float32 (float64 for float64).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from . import _ops, _ranks
from ._ops import Columns, DifferentiableOnce, Distance, Total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Operations in the time of moving one byte. CPU: 130 to 320 Gop/s beside 26 GB/s, measured; CUDA: 700 Top/s, 3 TB/s.
_OPERATIONS_PER_BYTE = {"cpu": 8, "cuda": 230}


class Size(NamedTuple):
    """What the cost of a loop order depends on."""

    rows: int
    classes: int
    width: int
    old_width: int  # 0 if the old logits are given
    element_size: int
    weight_gradient: bool


class Order(NamedTuple):
    """A loop over chunks of `length` rows or classes."""

    over: Literal["rows", "classes"]
    length: int


def choose_order(size: Size, workspace_bytes: int, device: str, rows_possible: bool = True) -> Order:
    """The cheaper loop order, by operations and bytes; `rows_possible`: gradients may be made in forward."""
    matrices = 1 + (size.old_width > 0)  # logits that are held at a time
    row_bytes = size.element_size * max(1, size.classes) * matrices
    class_bytes = size.element_size * (max(1, size.rows) * matrices + size.width + size.old_width)
    over_classes = Order("classes", max(1, min(size.classes, workspace_bytes // class_bytes)))
    length = min(size.rows, workspace_bytes // row_bytes)
    if not rows_possible or length < 1:
        return over_classes

    product = 2 * size.rows * size.classes * size.width
    old_product = 2 * size.rows * size.classes * size.old_width
    weight = size.element_size * size.classes * size.width
    old_weight = size.element_size * size.classes * size.old_width
    chunks = -(-size.rows // length)
    trained = int(size.weight_gradient)
    per_byte = _OPERATIONS_PER_BYTE.get(device, _OPERATIONS_PER_BYTE["cuda"])
    classes_cost = (3 + trained) * product + 2 * old_product + per_byte * (weight * (2 + trained) + 2 * old_weight)
    # held from forward to backward: written once more, times the incoming gradient
    rows_bytes = chunks * (weight * (1 + 2 * trained) + old_weight) + 2 * trained * weight
    rows_cost = (2 + trained) * product + old_product + per_byte * rows_bytes
    return Order("rows", length) if rows_cost < classes_cost else over_classes


class Teacher(NamedTuple):
    """The old model: its logits, or its features and its head."""

    logits: torch.Tensor | None
    features: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def classes(self) -> int:
        """Width of the old logits."""
        if self.logits is not None:
            return self.logits.shape[1]
        assert self.weight is not None
        return len(self.weight)

    def rows(self, start: int, stop: int) -> "Teacher":
        """The same of some rows of the batch."""
        logits, features = (None if x is None else x[start:stop] for x in (self.logits, self.features))
        return Teacher(logits, features, self.weight, self.bias)

    def block(self, columns: Columns, start: int, stop: int) -> tuple[torch.Tensor, Columns]:
        """Old logits that classes start..stop-1 need, and which columns of the block and of them are one class."""
        new, old = columns
        if old is None:
            stop = min(stop, self.classes)
            return self._logits(slice(min(start, stop), stop)), columns
        if new is None:  # the old column of every class
            old = old[start:stop]
            if self.logits is not None:
                return self.logits, (None, old)
            known = (old >= 0) & (old < self.classes)
            own = torch.arange(stop - start, device=old.device)
            own = own.where(known, torch.where(old == -1, -1, torch.iinfo(torch.int64).max))  # the latter: none, NaN
            return self._logits(old.where(known, 0)), (None, own)
        first, last = torch.searchsorted(new, torch.tensor([start, stop], device=new.device)).tolist()
        new, old = new[first:last] - start, old[first:last]
        if self.logits is not None:
            return self.logits, (new, old)
        return self._logits(old), (new, torch.arange(last - first, device=old.device))

    def _logits(self, classes: "slice | torch.Tensor") -> torch.Tensor:
        if self.logits is not None:
            return self.logits[:, classes]
        assert self.features is not None
        assert self.weight is not None
        dtype = working_dtype(self.features, self.weight)
        return product(self.features.to(dtype), self.weight[classes], None if self.bias is None else self.bias[classes])


def working_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Products are float32, or float64 where any of the tensors is."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ weight.T + bias in the dtype of x; into the first elements of the buffer `out`."""
    view = None if out is None else out[: len(x) * len(weight)].view(len(x), len(weight))
    weight_t = weight.to(x.dtype).t()
    if bias is None:
        return torch.mm(x, weight_t, out=view)
    return torch.addmm(bias.to(x.dtype), x, weight_t, out=view)


class Options(NamedTuple):
    """What the loss depends on besides tensors."""

    distance: Distance
    total: Total
    workspace_bytes: int
    group: "ProcessGroup | None"
    first_class: int


class LinearDistillation(torch.autograd.Function):
    """The loss of checked arguments; differentiable once, in features, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        teacher: Teacher,
        target: torch.Tensor,
        focal_weight: torch.Tensor | None,
        columns: Columns,
        options: Options,
    ) -> torch.Tensor:
        """Walk over blocks of classes for the statistics, or over chunks of rows for loss and gradients."""
        needed = ctx.needs_input_grad[:3]
        dtype = working_dtype(features, weight)
        old_width = 0 if teacher.features is None else teacher.features.shape[1]
        classes, width = weight.shape
        widest = max((dtype, *(x.dtype for x in teacher[:2] if x is not None)), key=lambda x: x.itemsize)
        size = Size(len(features), classes, width, old_width, widest.itemsize, needed[1])
        scalar = options.total.reduction != _ops.REDUCTIONS["none"]
        # else every chunk of rows would need a copy of all weights
        uncopied = weight.dtype == dtype and (
            teacher.features is None
            or teacher.weight is None
            or (columns[1] is None and teacher.weight.dtype == teacher.features.dtype)
        )
        rows_possible = any(needed) and scalar and uncopied and options.group is None
        order = choose_order(size, options.workspace_bytes, features.device.type, rows_possible)
        walk = Walk(features.to(dtype), weight, bias, teacher, target, focal_weight, columns, options, order)
        ctx.order, ctx.options, ctx.dtypes = (
            order,
            options,
            [None if x is None else x.dtype for x in (features, weight, bias)],
        )
        with torch.autocast(features.device.type, enabled=False):
            if order.over == "rows":
                loss, gradients = walk.over_rows(needed)
                ctx.save_for_backward(features, *gradients)
                return loss
            loss, statistics, ctx.classes = walk.statistics()
        ctx.save_for_backward(features, weight, bias, *teacher, target, *columns, statistics)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of features, weight and bias."""
        needed = ctx.needs_input_grad[:3]
        gradients: tuple[torch.Tensor | None, ...]
        with torch.autocast(grad_output.device.type, enabled=False), torch.no_grad():
            if ctx.order.over == "rows":
                features, *kept = ctx.saved_tensors
                gradients = tuple(None if x is None else x * grad_output.to(x.dtype) for x in kept)
            else:
                features, weight, bias, *teacher, target, new_column, old_column, statistics = ctx.saved_tensors
                dtype, columns = working_dtype(features, weight), (new_column, old_column)
                walk = Walk(
                    features.to(dtype), weight, bias, Teacher(*teacher), target, None, columns, ctx.options, ctx.order
                )
                gradients = walk.gradients(grad_output, statistics, ctx.classes, needed)
        gradients = tuple(None if x is None else x.to(dtype) for x, dtype in zip(gradients, ctx.dtypes, strict=True))
        if torch.is_grad_enabled():  # create_graph=True
            gradients = tuple(
                None if x is None else DifferentiableOnce.apply(x, grad_output, features)  # type: ignore[no-untyped-call]
                for x in gradients
            )
        return *gradients, None, None, None, None, None


class Walk(NamedTuple):
    """One pass over the logits in blocks; `features` in the working dtype."""

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    teacher: Teacher
    target: torch.Tensor
    focal_weight: torch.Tensor | None
    columns: Columns
    options: Options
    order: Order

    def blocks(self) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor, Columns]]:
        """First and end class, new logits (in a buffer that the next block reuses), old logits, shared columns."""
        classes, step = len(self.weight), self.order.length
        buffer = self.features.new_empty(len(self.features) * step)
        for start in range(0, classes, step):
            stop = min(classes, start + step)
            bias = None if self.bias is None else self.bias[start:stop]
            new = product(self.features, self.weight[start:stop], bias, buffer)
            yield start, stop, new, *self.teacher.block(self.columns, start, stop)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Loss, row statistics and the number of all classes; one collective if they are sharded."""
        distance, total, _, group, first_class = self.options
        parts = None
        for start, _, new, old, columns in self.blocks():
            parts = _ops.distill_accumulate(parts, new, old, self.target, columns, first_class + start, distance)
        assert parts is not None
        classes = len(self.weight)
        if group is not None:
            shard = parts.new_zeros(1, parts.shape[1])
            shard[0, 0], shard[0, 1] = first_class, classes
            ranks = _ranks.gather(torch.cat((parts, shard)), group)
            classes = _ranks.check_tiling(ranks[:, -1, 0].long(), ranks[:, -1, 1].long())
            parts = _ops.distill_merge(ranks[:, :-1].contiguous(), distance)
        wide = self.features.dtype == torch.float64
        loss, statistics = _ops.distill_finish(parts, self.target, self.focal_weight, classes, wide, distance, total)
        return loss, statistics, classes

    def gradients(
        self, grad_output: torch.Tensor, statistics: torch.Tensor, classes: int, needed: tuple[bool, bool, bool]
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients by blocks of classes: the weight's are final block by block, the features' sum over them."""
        distance, total, _, group, first_class = self.options
        of_features = torch.zeros_like(self.features) if needed[0] else None
        of_weight = torch.empty_like(self.weight) if needed[1] else None
        of_bias = torch.empty_like(self.bias) if needed[2] and self.bias is not None else None
        for start, stop, new, old, columns in self.blocks():
            slope = _ops.distill_backward_(
                grad_output, new, old, self.target, statistics, columns, first_class + start, classes, distance,
                total.label_smoothing,
            )  # fmt: skip
            if of_features is not None:
                of_features.addmm_(slope, self.weight[start:stop].to(slope.dtype))
            if of_weight is not None:
                if of_weight.dtype == slope.dtype:
                    torch.mm(slope.t(), self.features, out=of_weight[start:stop])
                else:
                    of_weight[start:stop] = torch.mm(slope.t(), self.features)
            if of_bias is not None:
                of_bias[start:stop] = slope.sum(0)
        if group is not None and of_features is not None:
            _ranks.all_sum(of_features, group)
        return of_features, of_weight, of_bias

    def over_rows(self, needed: tuple[bool, bool, bool]) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Reduced loss, and its gradients for an incoming gradient of 1, accumulated over chunks of rows."""
        distance, total, *_ = self.options
        x, n, classes = self.features, len(self.features), len(self.weight)
        of_features = torch.empty_like(x) if needed[0] else None
        of_weight = x.new_empty(self.weight.shape) if needed[1] else None
        of_bias = x.new_zeros(classes) if needed[2] and self.bias is not None else None
        share = x.new_ones(())
        if total.reduction == _ops.REDUCTIONS["mean"]:
            share = share / (self.target != distance.ignore_index).sum().clamp(min=1)
        rows = total._replace(reduction=_ops.REDUCTIONS["none"])
        losses = x.new_empty(n)
        buffer = x.new_empty(self.order.length * classes)
        for start in range(0, n, self.order.length):
            chunk = slice(start, min(n, start + self.order.length))
            new = product(x[chunk], self.weight, self.bias, buffer)
            old, columns = self.teacher.rows(chunk.start, chunk.stop).block(self.columns, 0, classes)
            target = self.target[chunk]
            focal = None if self.focal_weight is None else self.focal_weight[chunk]
            losses[chunk], statistics = _ops.distill_forward(new, old, target, focal, columns, distance, rows)
            slope = _ops.distill_backward_(
                share, new, old, target, statistics, columns, 0, classes, distance, total.label_smoothing
            )
            if of_features is not None:
                torch.mm(slope, self.weight, out=of_features[chunk])
            if of_weight is not None:
                of_weight.addmm_(slope.t(), x[chunk], beta=float(start > 0))
            if of_bias is not None:
                of_bias += slope.sum(0)
        loss = (losses.sum(dtype=torch.float64) * share.double()).to(x.dtype)
        return loss, (of_features, of_weight, of_bias)
