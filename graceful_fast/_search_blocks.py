"""A search over a gallery's blocks: read once, in order, within a limit of memory, from where it was stopped."""

import hashlib
import os
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import bytes_of
from ._checkpoint import Checkpoint
from ._devices import on_device
from ._progress import Progress, progress_of

if TYPE_CHECKING:
    import torch

    from ._ops import ScanStatus
    from .gallery import Gallery

_BLOCK_BYTES = 64 << 20
"""Of a block where no limit is given: long enough to forget what a block costs, short beside any memory."""
_FEWEST_ROWS = 256
"""A block of fewer rows would cost more in packing the queries than in products."""


class Labels(NamedTuple):
    """Ids or groups of queries and gallery, or None of both."""

    of_queries: "torch.Tensor | None" = None
    of_gallery: "torch.Tensor | None" = None

    def block(self, first: int, end: int) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
        """Those of all queries and of the gallery's rows first .. end - 1."""
        import torch

        if self.of_gallery is None:
            return self.of_queries, None
        return self.of_queries, self.of_gallery[first:end].to(torch.int64).contiguous()


class Search(NamedTuple):
    """Queries, and what they look for."""

    queries: "torch.Tensor"
    k: int
    metric: str
    ids: Labels
    groups: Labels
    coded: bool  # make codes of 8 bits of rows that have none
    prepared: bool  # scan the codes that the gallery has


class BlockPlan(NamedTuple):
    """How much of the gallery is in memory at once."""

    rows: int
    candidate_bytes: int
    coded_rows: int
    """Of codes, where those are scanned."""


def float_bytes(gallery: "Gallery") -> int:
    """Of a row: bytes become float32 for the scan, once more in the block and once in what is taken of it."""
    return 4 * gallery.dim if gallery.dtype.itemsize == 1 else 0


def most_rows(gallery: "Gallery") -> int:
    """Of a block, also where there is room for more."""
    return max(_FEWEST_ROWS, _BLOCK_BYTES // (float_bytes(gallery) or gallery.dim * gallery.dtype.itemsize))


def fewest_rows(gallery: "Gallery") -> int:
    """Of a block, also where there is room for less."""
    return min(_FEWEST_ROWS, len(gallery))


def plan_blocks(search: Search, gallery: "Gallery", memory_limit: int | None, *, whole: bool) -> BlockPlan:
    """The largest blocks within the limit; ValueError if it has no room for the queries and the smallest block.

    `whole`: rows in memory are one block.
    """
    from ._ops import CANDIDATE_BYTES, QUERIES_A_TASK, code_stride, threads

    count, dim = search.queries.shape
    itemsize = gallery.dtype.itemsize
    if gallery.array is not None and gallery.array.device == search.queries.device and memory_limit is None and whole:
        return BlockPlan(max(1, len(gallery)), CANDIDATE_BYTES, max(1, len(gallery)))
    stride = code_stride(dim)
    if memory_limit is None:
        return BlockPlan(most_rows(gallery), CANDIDATE_BYTES, max(_FEWEST_ROWS, _BLOCK_BYTES // stride))
    # Two blocks are in memory, one being read. Of codes also the facts, and the originals of whatever is listed, at
    # worst of the whole block; where it is scanned again, blocks of its rows instead.
    row_bytes = 2 * dim * itemsize + float_bytes(gallery)
    coded_bytes = 2 * (stride + 12) if search.prepared else 0
    listed = search.prepared and gallery.array is None
    listed_bytes = dim * itemsize + float_bytes(gallery) if listed else 0
    # The queries, should they be a copy or mapped; packed for each thread that scans; the best so far in three forms;
    # the scan's panels.
    packed = min(count, QUERIES_A_TASK) * (4 * dim + stride + 100)
    fixed = count * (search.queries.element_size() * dim + 40 * search.k) + threads() * (packed + (2 << 20))
    copies = 6 if listed else 1  # of candidates: the list made of them, its sorting
    least = copies * 16 * count * (search.k + 32)
    fewest = fewest_rows(gallery)
    needed = fixed + least + fewest * (row_bytes + coded_bytes + listed_bytes)
    if memory_limit < needed:
        raise ValueError(
            f"memory_limit: expected at least {needed} bytes for {count} queries of dim {dim} and k = {search.k}, "
            f"got {memory_limit}"
        )
    candidates = max(least, min(copies * CANDIDATE_BYTES, (memory_limit - fixed) // 4))
    free = memory_limit - fixed - candidates
    coded_rows = 0
    if listed:
        coded_rows = min(free // (coded_bytes + listed_bytes), _BLOCK_BYTES // stride)
        free -= coded_rows * coded_bytes
    rows = max(fewest, min(free // (row_bytes + (0 if listed else coded_bytes)), most_rows(gallery)))
    return BlockPlan(rows, candidates // copies, coded_rows or rows)


def search_blocks(
    search: Search,
    gallery: "Gallery",
    keys: "torch.Tensor",
    rows: "torch.Tensor",
    plan: BlockPlan,
    progress: bool | Progress,
    checkpoint: str | os.PathLike[str] | None,
) -> "Generator[tuple[int, ScanStatus], None, None]":
    """Bring all rows into `keys` and `rows`, the best so far; yields (first row, status) of each scan of a block.

    Whoever iterates checks the status; what was brought in before stays in the checkpoint.
    """
    gallery.check_unchanged()
    if checkpoint is None:
        yield from _search_from(0, search, gallery, keys, rows, plan, progress_of(progress, "searched"), None)
        return
    labels = [*search.ids, *search.groups]
    work = work_of(search.queries, gallery, labels, k=search.k, metric=search.metric)
    with Checkpoint(checkpoint, work) as saved:
        position = saved.load([keys, rows])
        shown = progress_of(progress, "searched", position)
        yield from _search_from(position, search, gallery, keys, rows, plan, shown, saved)


def _search_from(
    position: int,
    search: Search,
    gallery: "Gallery",
    keys: "torch.Tensor",
    rows: "torch.Tensor",
    plan: BlockPlan,
    progress: Progress,
    saved: Checkpoint | None,
) -> "Generator[tuple[int, ScanStatus], None, None]":
    total = len(gallery)
    done = position
    progress(done, total)
    try:
        for first, end, status in _Scan(search, gallery, keys, rows, plan).run(position):
            done = end
            yield first, status
            if done == total or (saved and saved.due):
                gallery.check_unchanged()  # rows of a file that was being changed are nobody's answer
                if saved:
                    saved.save(done, [keys, rows])
            progress(done, total)
    except (OSError, ValueError, GeneratorExit):
        # From reading, or from whoever iterates: the state is that of `done`. After an interrupt it may be ahead.
        if saved and done > position:
            gallery.check_unchanged()
            saved.save(done, [keys, rows])
        raise


class _Scan:
    """The scans of blocks; all bring their rows into `keys` and `rows`."""

    def __init__(
        self, search: Search, gallery: "Gallery", keys: "torch.Tensor", rows: "torch.Tensor", plan: BlockPlan
    ) -> None:
        self._search, self._gallery, self._keys, self._rows, self._plan = search, gallery, keys, rows, plan

    def run(self, start: int) -> "Generator[tuple[int, int, ScanStatus], None, None]":
        """(first row, end, status) of each scan of a block; rows before `end` are in, the block's if all went well."""
        if not self._search.prepared or self._gallery.codes is None:
            yield from self._plain(start, len(self._gallery))
            return
        coded = self._gallery.codes.blocks(self._plan.coded_rows, start)
        with closing(on_device(coded, self._search.queries.device)) as blocks:
            for first, codes, facts in blocks:
                end = first + len(codes)
                if self._gallery.array is not None:
                    status = self._collect(first, self._gallery.array[first:end], (codes, facts))
                    yield first, first if status.bad else end, status
                    continue
                status = self._shortlist(first, (codes, facts))
                yield first, first if status.gave_up or status.bad else end, status
                if status.gave_up:  # near-duplicates: more rows lie within the codes' bound than there is room for
                    yield from self._plain(first, end)

    def _plain(self, start: int, stop: int) -> "Generator[tuple[int, int, ScanStatus], None, None]":
        plain = self._gallery.blocks(self._plan.rows, start, stop)
        with closing(on_device(plain, self._search.queries.device)) as blocks:
            for first, block in blocks:
                status = self._collect(first, block, None)
                yield first, first if status.bad else first + len(block), status

    def _collect(
        self, first: int, block: "torch.Tensor", codes: "tuple[torch.Tensor, torch.Tensor] | None"
    ) -> "ScanStatus":
        from . import _ops
        from .search import as_scanned

        search, end = self._search, first + len(block)
        return _ops.scan_collect(
            search.queries,
            as_scanned(block),
            self._keys,
            self._rows,
            search.metric,
            first_row=first,
            codes=codes,
            ids=search.ids.block(first, end),
            groups=search.groups.block(first, end),
            coded=search.coded,
            candidate_bytes=self._plan.candidate_bytes,
        )

    def _shortlist(self, first: int, codes: "tuple[torch.Tensor, torch.Tensor]") -> "ScanStatus":
        from . import _ops
        from .search import as_scanned

        search, end = self._search, first + len(codes[0])
        offsets, listed, status = _ops.scan_shortlist(
            search.queries,
            codes,
            self._keys,
            self._rows,
            search.metric,
            ids=search.ids.block(first, end),
            groups=search.groups.block(first, end),
            candidate_bytes=self._plan.candidate_bytes,
        )
        if status.bad or status.gave_up:
            return status
        wanted, places = listed.unique(return_inverse=True)
        wanted += first
        taken = as_scanned(self._gallery.take(wanted.cpu().numpy()))
        settled = _ops.scan_settle(
            search.queries, taken, wanted, offsets, places, self._keys, self._rows, search.metric
        ).settled
        return status._replace(settled=settled)


def work_of(
    queries: "torch.Tensor", gallery: "Gallery", labels: "list[torch.Tensor | None]", **options: Any
) -> dict[str, Any]:
    """What a checkpoint belongs to: any difference would change the answer, or what the state means."""
    files = {f"file {path}": f"{size} bytes of mtime_ns {mtime_ns}" for path, size, mtime_ns in gallery.files}
    return {
        **files,  # the fingerprint tells them apart, too, but not which it is
        "queries": _fingerprint(queries),
        "gallery": gallery.fingerprint(),
        **options,
        "labels, ids and groups": [None if tensor is None else _fingerprint(tensor) for tensor in labels],
    }


def _fingerprint(tensor: "torch.Tensor") -> str:
    checksum = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    checksum.update(bytes_of(tensor))
    return checksum.hexdigest()[:32]
