"""The only file that talks to torch's dispatcher: loads the op library; an op's fake and autograd are neighbours."""

from collections.abc import Iterable
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from . import _C

isa: str = _C.load(str(files(__package__).joinpath("graceful_fast_cpu.so")))
"""Name of the instruction set that the CPU kernels run with."""

# Beside a torch without CUDA it does not load: it needs the CUDA stream of torch.
_cuda_library = files(__package__).joinpath("graceful_fast_cuda.so")
cuda: bool = bool(torch.version.cuda) and _cuda_library.is_file()
"""Whether the ops take CUDA tensors."""
if cuda:
    torch.ops.load_library(str(_cuda_library))

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


# --- distill ----------------------------------------------------------------------------------------------------------

_ROW_PART, _ROW_STATISTICS = 22, 11  # csrc/math/row_statistics.h
DIVERGENCES = {"kl": 0, "logits": 1, "ldi": 2}
FOCUSES = {"old_correct": 0, "negative_flip": 1, "new_incorrect": 2, "all": 3}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}
FOCUS_BY_WEIGHT = 4


class Distance(NamedTuple):
    """What each row's distance between the models depends on, in the ops' order."""

    divergence: int
    margin: float
    exclude_target: bool
    temperature: float
    ignore_index: int


class Total(NamedTuple):
    """How cross-entropies and distances become the loss, in the ops' order."""

    focus: int
    alpha: float
    beta: float
    distillation_weight: float
    cross_entropy_weight: float
    label_smoothing: float
    reduction: int


Columns = tuple[torch.Tensor | None, torch.Tensor | None]
"""New and old columns that are one class, ascending in the first; None: the first columns of both. On CUDA the first
alone may be None: then the second has the old column of every new one, or -1, and nobody waited for their number."""


def _loss_like(rows: torch.Tensor, n: int, wide: bool, reduction: int) -> torch.Tensor:
    shape = (n,) if reduction == REDUCTIONS["none"] else ()
    return rows.new_empty(shape, dtype=torch.float64 if wide else torch.float32)


@torch.library.register_fake("graceful_fast::distill_forward")
def _distill_forward_fake(new_logits: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    n, reduction = new_logits.shape[0], arguments[-1]
    statistics = new_logits.new_empty((n, _ROW_STATISTICS), dtype=torch.float64)
    return _loss_like(new_logits, n, new_logits.dtype == torch.float64, reduction), statistics


@torch.library.register_fake("graceful_fast::distill_backward")
def _distill_backward_fake(grad_output: torch.Tensor, new_logits: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return new_logits.new_empty(new_logits.shape)


@torch.library.register_fake("graceful_fast::distill_accumulate")
def _distill_accumulate_fake(parts: torch.Tensor | None, new_logits: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return new_logits.new_empty((new_logits.shape[0], _ROW_PART), dtype=torch.float64)


@torch.library.register_fake("graceful_fast::distill_merge")
def _distill_merge_fake(parts: torch.Tensor, temperature: float) -> torch.Tensor:
    return parts.new_empty(parts.shape[1:])


@torch.library.register_fake("graceful_fast::distill_finish")
def _distill_finish_fake(
    parts: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, classes: int, wide: bool, *arguments: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    n, reduction = target.shape[0], arguments[-1]
    return _loss_like(parts, n, wide, reduction), parts.new_empty((n, _ROW_STATISTICS))


@torch.library.register_fake("graceful_fast::distill_backward_")
def _distill_backward_in_place_fake(*arguments: Any) -> None:
    pass


class DifferentiableOnce(torch.autograd.Function):
    """A gradient whose own gradient is an error, not silently 0."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *depends_on: torch.Tensor) -> torch.Tensor:
        """`gradient`, as a result of what it depends on."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> None:
        """Raise."""
        raise RuntimeError("graceful_fast losses are differentiable once: a second derivative is not defined")


# autograd.Function outside the raw ops: register_autograd costs 17 us a call.
class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        new_logits: torch.Tensor,
        old_logits: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        columns: Columns,
        distance: Distance,
        total: Total,
    ) -> torch.Tensor:
        loss, statistics = _ops.distill_forward.default(
            new_logits, old_logits, target, weight, *columns, *distance, *total
        )
        ctx.save_for_backward(new_logits, old_logits, target, statistics, *columns)
        ctx.options = *distance, total.label_smoothing
        out: torch.Tensor = loss
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = _ops.distill_backward.default(grad_output, *ctx.saved_tensors, *ctx.options)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = DifferentiableOnce.apply(gradient, grad_output, ctx.saved_tensors[0])  # type: ignore[no-untyped-call]
        return gradient, None, None, None, None, None, None


def distill(
    new_logits: torch.Tensor,
    old_logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    columns: Columns,
    distance: Distance,
    total: Total,
) -> torch.Tensor:
    """Focal distillation loss of checked arguments, unit stride within rows; differentiable once, in new_logits."""
    # Forward-mode AD goes the same way, to its error: the raw op's tangent would be silently 0.
    if (new_logits.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        loss: torch.Tensor = _Distill.apply(new_logits, old_logits, target, weight, columns, distance, total)  # type: ignore[no-untyped-call]
    else:
        loss = _ops.distill_forward.default(new_logits, old_logits, target, weight, *columns, *distance, *total)[0]
    return loss


def distill_forward(
    new_logits: torch.Tensor,
    old_logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    columns: Columns,
    distance: Distance,
    total: Total,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and statistics, without autograd."""
    out: tuple[torch.Tensor, torch.Tensor] = _ops.distill_forward.default(
        new_logits, old_logits, target, weight, *columns, *distance, *total
    )
    return out


def distill_accumulate(
    parts: torch.Tensor | None,
    new_logits: torch.Tensor,
    old_logits: torch.Tensor,
    target: torch.Tensor,
    columns: Columns,
    first_class: int,
    distance: Distance,
) -> torch.Tensor:
    """Parts (B, fields) of a block of classes whose first is `first_class`, merged with `parts` of other classes."""
    merged: torch.Tensor = _ops.distill_accumulate.default(
        parts, new_logits, old_logits, target, *columns, first_class, *distance
    )
    return merged


def distill_merge(parts: torch.Tensor, distance: Distance) -> torch.Tensor:
    """Parts (shards, B, fields) of disjoint classes as one (B, fields)."""
    merged: torch.Tensor = _ops.distill_merge.default(parts, distance.temperature)
    return merged


def distill_finish(
    parts: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    classes: int,
    wide: bool,
    distance: Distance,
    total: Total,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and statistics from the parts of all `classes`; the loss is float64 if `wide`."""
    finished: tuple[torch.Tensor, torch.Tensor] = _ops.distill_finish.default(
        parts,
        target,
        weight,
        classes,
        wide,
        distance.divergence,
        distance.temperature,
        distance.ignore_index,
        *total,
    )
    return finished


def distill_backward_(
    grad_output: torch.Tensor,
    new_logits: torch.Tensor,
    old_logits: torch.Tensor,
    target: torch.Tensor,
    statistics: torch.Tensor,
    columns: Columns,
    first_class: int,
    classes: int,
    distance: Distance,
    label_smoothing: float,
) -> torch.Tensor:
    """The gradient of a block of classes, in place of its logits; `classes` in all."""
    _ops.distill_backward_.default(
        grad_output,
        new_logits,
        old_logits,
        target,
        statistics,
        *columns,
        first_class,
        classes,
        *distance,
        label_smoothing,
    )
    return new_logits


# --- influence --------------------------------------------------------------------------------------------------------


@torch.library.register_fake("graceful_fast::influence")
def _influence_fake(
    logits: torch.Tensor,
    statistics: torch.Tensor,
    target: torch.Tensor,
    factor: torch.Tensor | None,
    bias: torch.Tensor | None,
    first_class: int,
) -> torch.Tensor:
    return logits.new_empty((logits.shape[0], 1))


def influence(
    logits: torch.Tensor,
    statistics: torch.Tensor,
    target: torch.Tensor,
    factor: torch.Tensor | None,
    bias: torch.Tensor | None,
    first_class: int,
) -> torch.Tensor:
    """Raises the (B, 2) statistics by a block of CPU products and turns it into exponentials; see cpu/influence.h."""
    shrink: torch.Tensor = _ops.influence.default(logits, statistics, target, factor, bias, first_class)
    return shrink


# --- scan -------------------------------------------------------------------------------------------------------------

METRICS = {"ip": 0, "l2": 1, "cosine": 2}
"""Numbers of the metrics, as in csrc/math/scan_units.h."""


SCANS = {"cpu": ("int8", "float32"), "cuda": ("int8", "float16")}
"""Precisions of a scan, by the type of the device that the queries are on."""


CANDIDATE_BYTES = 256 << 20
"""What rows that are not settled yet may take: beyond, threads share the queries instead of the gallery."""


QUERIES_A_TASK = 4096 + 16
"""Most queries that a thread packs at a time: kMostQueriesATask of csrc/cpu/scan.cpp, and a panel."""


class ScanStatus(NamedTuple):
    """What a scan op found, as numbered in csrc/cpu/scan.cpp."""

    bad: int  # 1 queries, 2 gallery, 0 none
    row: int
    fault: int
    settled: int
    cuts: int
    coded_rows: int
    plain_rows: int
    gave_up: int


@torch.library.register_fake("graceful_fast::scan_collect")
def _scan_collect_fake(queries: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return queries.new_empty(len(ScanStatus._fields), dtype=torch.int64)


@torch.library.register_fake("graceful_fast::scan_settle")
def _scan_settle_fake(queries: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return queries.new_empty(len(ScanStatus._fields), dtype=torch.int64)


@torch.library.register_fake("graceful_fast::scan_shortlist")
def _scan_shortlist_fake(queries: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        queries.new_empty(queries.shape[0] + 1, dtype=torch.int64),
        queries.new_empty(count, dtype=torch.int64),
        queries.new_empty(len(ScanStatus._fields), dtype=torch.int64),
    )


@torch.library.register_fake("graceful_fast::scan_quantize")
def _scan_quantize_fake(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count, dim = rows.shape
    return (
        rows.new_empty((count, code_stride(dim)), dtype=torch.int8),
        rows.new_empty((count, 3), dtype=torch.float32),
        rows.new_empty(2, dtype=torch.int64),
    )


def _on(device: torch.device, tensors: Iterable[torch.Tensor | None]) -> list[Any]:
    """The tensors where the queries are: a scan runs there, whatever brought the rest of its arguments."""
    return [tensor if tensor is None else tensor.to(device) for tensor in tensors]


def threads() -> int:
    """How many threads the ops use."""
    return torch.get_num_threads()


def code_stride(dim: int) -> int:
    """Bytes of a row of codes: `dim` rounded up to a multiple of 16."""
    return (dim + 15) // 16 * 16


def scan_collect(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    keys: torch.Tensor,
    rows: torch.Tensor,
    metric: str,
    *,
    first_row: int = 0,
    codes: tuple[torch.Tensor, torch.Tensor] | None = None,
    ids: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    groups: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    coded: bool = False,
    candidate_bytes: int = CANDIDATE_BYTES,
) -> ScanStatus:
    """Brings a block of the gallery into `keys` and `rows`, the (Q, k) best so far; see csrc/library.cpp."""
    block = _on(queries.device, (gallery, *(codes or (None, None))))
    labels = _on(queries.device, (*ids, *groups))
    arguments = (queries, *block, keys, rows, first_row, METRICS[metric], *labels)
    return ScanStatus(*_ops.scan_collect.default(*arguments, coded, candidate_bytes).tolist())


def scan_shortlist(
    queries: torch.Tensor,
    codes: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    rows: torch.Tensor,
    metric: str,
    *,
    ids: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    groups: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    candidate_bytes: int = CANDIDATE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor, ScanStatus]:
    """Rows of the codes that may be among the best of each query, from offsets[i] to offsets[i + 1] of the second."""
    block, labels = _on(queries.device, codes), _on(queries.device, (*ids, *groups))
    offsets, listed, status = _ops.scan_shortlist.default(
        queries, *block, keys, rows, METRICS[metric], *labels, candidate_bytes
    )
    return offsets, listed, ScanStatus(*status.tolist())


def scan_settle(
    queries: torch.Tensor,
    taken: torch.Tensor,
    numbers: torch.Tensor,
    offsets: torch.Tensor,
    places: torch.Tensor,
    keys: torch.Tensor,
    rows: torch.Tensor,
    metric: str,
) -> ScanStatus:
    """Brings a shortlist, as places among the taken rows of these numbers, into `keys` and `rows`."""
    arguments = (queries, *_on(queries.device, (taken, numbers, offsets, places)), keys, rows, METRICS[metric])
    return ScanStatus(*_ops.scan_settle.default(*arguments).tolist())


def scan_quantize(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Codes (n, code_stride) int8, facts (n, 3) float32: scale, residual, norm; (first bad row or -1, fault)."""
    codes, facts, status = _ops.scan_quantize.default(rows)
    row, fault = status.tolist()
    return codes, facts, (row, fault)


@torch.library.register_fake("graceful_fast::scan_count")
def _scan_count_fake(queries: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return queries.new_empty(len(ScanStatus._fields), dtype=torch.int64)


class Positives(NamedTuple):
    """The positives of all queries, best first for each query, rows ascending among equal keys."""

    start: torch.Tensor  # (Q + 1,) int64: where each query's begin
    keys: torch.Tensor  # (P,) float64
    rows: torch.Tensor  # (P,) int64: their numbers


def scan_count(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    metric: str,
    positives: Positives,
    counts: torch.Tensor,
    first_row: int = 0,
) -> ScanStatus:
    """Adds to (3, P) int64 the rows better than, equal to, equal and before each positive; see csrc/library.cpp."""
    block, *sorted_positives, sums = _on(queries.device, (gallery, *positives, counts))
    status = _ops.scan_count.default(queries, block, first_row, METRICS[metric], *sorted_positives, sums)
    if sums is not counts:
        counts.copy_(sums)
    return ScanStatus(*status.tolist())


Sides = tuple[torch.Tensor | None, torch.Tensor | None]


@torch.library.register_fake("graceful_fast::scan_histogram")
def _scan_histogram_fake(a: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
    bins, _, capacity = arguments[-3:]
    types = (torch.float32, torch.int64, torch.uint8)
    kept = (a.new_empty(capacity, dtype=dtype) for dtype in types)
    return _counts_fake(a, bins), *kept, a.new_empty(1, dtype=torch.float64), *_status_fake(a)


@torch.library.register_fake("graceful_fast::scan_between")
def _scan_between_fake(a: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
    bins, capacity = arguments[-2:]
    kept = (a.new_empty(capacity, dtype=dtype) for dtype in (torch.float64, torch.uint8))
    return _counts_fake(a, bins), *kept, *_status_fake(a)


@torch.library.register_fake("graceful_fast::scan_pairs")
def _scan_pairs_fake(
    a: torch.Tensor, b: torch.Tensor, metric: int, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    return a.new_empty(rows.shape, dtype=torch.float64)


def _counts_fake(a: torch.Tensor, bins: int) -> torch.Tensor:
    return a.new_empty((2, bins), dtype=torch.int64)


def _status_fake(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a.new_empty(1, dtype=torch.int64), a.new_empty(len(ScanStatus._fields), dtype=torch.int64)


class Histogram(NamedTuple):
    """All pairs by bins of their scan scores, and some of them, on the CPU; see csrc/library.cpp."""

    counts: torch.Tensor  # (2, bins) int64: impostors, genuine
    places: torch.Tensor  # (kept,) float32, in bins
    pairs: torch.Tensor  # (kept,) int64: a's row * rows of b + b's row
    kinds: torch.Tensor  # (kept,) uint8: 1 genuine, 0 impostor
    kept: int  # how many there are; above the capacity the others are incomplete
    margin: float
    status: ScanStatus


def scan_histogram(
    a: torch.Tensor,
    b: torch.Tensor,
    metric: str,
    labels: Sides,
    ids: Sides,
    within: bool,
    *,
    origin: float,
    width: float,
    bins: int,
    keep: torch.Tensor,
    capacity: int,
) -> Histogram:
    """All pairs by bins of their scan scores; `keep`: (ranges, 2) int64 bins whose pairs are kept."""
    b, *values, keep = _on(a.device, (b, *labels, *ids, keep))
    counts, *pairs, margin, kept, status = _ops.scan_histogram.default(
        a, b, METRICS[metric], *values, within, origin, width, bins, keep, capacity
    )
    places, which, kinds = (column[: int(kept)].cpu() for column in pairs)
    return Histogram(counts.cpu(), places, which, kinds, int(kept), float(margin), ScanStatus(*status.tolist()))


class Between(NamedTuple):
    """All pairs by bins of their exact scores, and those between the first and the last, on the CPU."""

    counts: torch.Tensor  # (2, bins) int64: impostors, genuine
    keys: torch.Tensor  # (kept,) float64
    kinds: torch.Tensor  # (kept,) uint8: 1 genuine, 0 impostor
    kept: int  # how many there are; above the capacity the others are incomplete
    status: ScanStatus


def scan_between(
    a: torch.Tensor,
    b: torch.Tensor,
    metric: str,
    labels: Sides,
    ids: Sides,
    within: bool,
    *,
    lowest: int,
    shift: int,
    bins: int,
    capacity: int,
) -> Between:
    """All pairs by bins of their exact scores, `lowest` and above by 2^shift values a bin."""
    b, *values = _on(a.device, (b, *labels, *ids))
    counts, *pairs, kept, status = _ops.scan_between.default(
        a, b, METRICS[metric], *values, within, lowest, shift, bins, capacity
    )
    keys, kinds = (column[: int(kept)].cpu() for column in pairs)
    return Between(counts.cpu(), keys, kinds, int(kept), ScanStatus(*status.tolist()))


def scan_pairs(
    a: torch.Tensor, b: torch.Tensor, metric: str, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """(P,) float64 scores on the CPU, larger is better, of the pairs (rows[i], columns[i])."""
    keys: torch.Tensor = _ops.scan_pairs.default(
        a, *_on(a.device, (b,)), METRICS[metric], *_on(a.device, (rows, columns))
    )
    return keys.cpu()
