"""Exact search: the k nearest gallery rows of each query."""

import operator
import os
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union

from ._arrays import as_tensor, like
from ._progress import Progress
from ._search_blocks import Labels, Search, plan_blocks, search_blocks
from .gallery import Gallery
from .gallery_rows import ITEMSIZE, LARGEST_CODED_DIM, ArrayRows, mapping_of

if TYPE_CHECKING:
    import torch

    from ._ops import ScanStatus

Metric = Literal["cosine", "ip", "l2"]
Scan = Literal["auto", "int8", "float32"]

_FAULTS = {
    1: "expected finite numbers, got NaN or infinity",
    2: "cosine of a zero vector is undefined, got norm 0",
    3: "expected a norm below 2^510, got one whose square leaves the range of float64",
}


class _Pair(NamedTuple):
    scores: Any
    indices: Any


class Neighbors(_Pair):
    """The best gallery rows of each query, best first.

    Attributes:
        scores: (Q, k) float32; for "l2" squared distances, smallest first.
        indices: (Q, k) int64 gallery rows, -1 where fewer than k rows are allowed.
        info: facts about the search when asked for, else None.
    """

    info: dict[str, Any] | None = None


def knn(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    metric: Metric = "cosine",
    scan: Scan = "auto",
    query_ids: Any = None,
    gallery_ids: Any = None,
    query_groups: Any = None,
    gallery_groups: Any = None,
    progress: bool | Progress = False,
    memory_limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    info: bool = False,
) -> Neighbors:
    """Exact k nearest neighbours of each query in the gallery.

    Scores are defined in float64 on the values as given: ip = sum q_i x_i, l2 = sum (q_i - x_i)^2,
    cosine = ip / (sqrt(q.q) sqrt(x.x)), each sum in eight lanes i mod 8, then ((0+1)+(2+3))+((4+5)+(6+7)). Equal scores
    rank by the smaller index. A scan of float32 or of codes of 8 bits with a proven error bound finds the candidates,
    float64 settles them: the answer is the same, bit for bit, for every scan, CPU, number of threads, order of queries
    and size of block.

    A gallery of files is read once, in blocks, and may be larger than memory; all queries stay in memory. Of a gallery
    that `Gallery.prepare` has made codes of, the codes are read once and then, in ascending order, the rows that may
    matter.

    Args:
        queries: (Q, D) embeddings, float16, bfloat16, float32, float64 or an integer dtype of 8 bits; Q may be 0.
        gallery: (N, D) embeddings, in any of these dtypes: an array, or a `Gallery`.
        k: how many neighbours, 1 to N.
        metric: "cosine", "ip" (inner product) or "l2" (squared Euclidean distance).
        scan: precision of the scan: "int8", "float32", or "auto" for the fastest there is; never changes the answer. A
            prepared gallery is scanned by its codes unless this is "float32".
        query_ids: (Q,) integers, with `gallery_ids`: a query never finds a row of its own id.
        gallery_ids: (N,) integers.
        query_groups: (Q,) integers, with `gallery_groups`: a query never finds a row of its own group.
        gallery_groups: (N,) integers.
        progress: print progress on standard error, or call with (rows done, rows in all).
        memory_limit: bytes by which the process may grow above what it has when the call begins, the gallery's blocks
            included; up to 128 MiB for threads and libraries come on top. None: blocks of 64 MiB.
        checkpoint: a directory, made if it is not there, that keeps what is found so far: the same call, started again
            after it was stopped anywhere, goes on from there.
        info: also fill `.info`: the scan, the instruction set, how many scores float64 settled, and what fell back.

    Returns:
        Neighbors: `scores` (Q, k) float32, best first, rounded once after ranking, and `indices` (Q, k) int64, arrays
        of the queries' kind. Where fewer than k rows are allowed: index -1, score -inf (+inf for "l2").

    Raises:
        ValueError: shapes that do not match, k out of range, an unknown option, NaN or infinity in an embedding, a
            zero vector under "cosine", a limit without room for the queries, a checkpoint of another search.
        TypeError: a wrong type or dtype.
        OSError: a file of the gallery or of the checkpoint that cannot be read or has changed.

    Example:
        >>> import numpy as np
        >>> import graceful_fast as gf
        >>> gallery = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
        >>> gf.knn(np.array([[2, 1]], dtype=np.float32), gallery, k=2, metric="l2").indices
        array([[2, 0]])
    """
    check_choice("metric", metric, ("cosine", "ip", "l2"))
    check_choice("scan", scan, ("auto", "int8", "float32"))
    q = as_embeddings(queries, "queries")
    x = as_gallery(gallery)
    k = check_shapes(q, x, k)
    memory_limit = as_bytes(memory_limit)
    if scan == "int8" and x.dim > LARGEST_CODED_DIM:
        raise ValueError(f"scan: expected 'auto' or 'float32' for a dim above {LARGEST_CODED_DIM}, got 'int8'")
    from . import _ops

    search = Search(
        q,
        k,
        metric,
        Labels(*label_pair("ids", query_ids, gallery_ids, q, x, lazy=True)),
        Labels(*label_pair("groups", query_groups, gallery_groups, q, x, lazy=True)),
        coded=scan == "int8" or (scan == "auto" and codes_pay(q)),
        prepared=scan != "float32" and x.codes is not None,
    )
    keys, rows, facts = nearest(search, x, memory_limit, progress, checkpoint)
    found = Neighbors(like((-keys if metric == "l2" else keys).float(), queries), like(rows, queries))
    if info:
        precision = "int8" if search.coded or search.prepared else "float32"
        found.info = {"scan": precision, "isa": _ops.isa, **facts}
    return found


def nearest(
    search: Search,
    gallery: Gallery,
    memory_limit: int | None,
    progress: bool | Progress,
    checkpoint: str | os.PathLike[str] | None,
    names: "Sides" = ("queries", "gallery"),
) -> "tuple[torch.Tensor, torch.Tensor, Counter[str]]":
    """The k best as float64 keys (larger is better, -inf where there is none) and rows (-1), and `facts_of` all scans.

    `names`: what errors call the queries and the gallery.
    """
    keys, rows = no_neighbors(len(search.queries), search.k)
    plan = plan_blocks(search, gallery, memory_limit, whole=checkpoint is None and not progress)
    facts: Counter[str] = Counter()
    with closing(search_blocks(search, gallery, keys, rows, plan, progress, checkpoint)) as scans:
        for first, status in scans:
            raise_fault(status, search.queries, gallery, first, names)
            facts.update(facts_of(status))
    return keys, rows, facts


def no_neighbors(count: int, k: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Keys (float64, larger is better) and rows of the best k of `count` queries before any row was seen."""
    import torch

    return torch.full((count, k), -torch.inf, dtype=torch.float64), torch.full((count, k), -1)


def codes_pay(queries: "torch.Tensor") -> bool:
    """Whether making codes of 8 bits of the gallery's rows on the way is worth it."""
    return queries.shape[0] >= 256 and 64 <= queries.shape[1] <= LARGEST_CODED_DIM


def facts_of(status: "ScanStatus") -> dict[str, int]:
    """What `info=True` tells of a scan."""
    return {
        "settled": status.settled,
        "cuts": status.cuts,
        "int8_rows": status.coded_rows,
        "float32_rows": status.plain_rows,
        "blocks_again": status.gave_up,
    }


def as_bytes(memory_limit: Any) -> int | None:
    """`memory_limit` as an int of at least 1, or None."""
    if memory_limit is None:
        return None
    try:
        limit = -1 if isinstance(memory_limit, bool) else operator.index(memory_limit)
    except TypeError:
        limit = -1
    if limit < 1:
        raise ValueError(f"memory_limit: expected a number of bytes, got {memory_limit!r}")
    return limit


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def as_gallery(value: Any, name: str = "gallery") -> Gallery:
    """A `Gallery` as it is, or one of an array."""
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected an array or a Gallery, got a path: gf.Gallery.open({os.fspath(value)!r})")
    return value if isinstance(value, Gallery) else Gallery(array_rows(value, name))


def as_embeddings(value: Any, name: str) -> "torch.Tensor":
    """(rows, dim) on the CPU, floating, of unit stride within a row."""
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected an array, got a path: gf.Gallery.open({os.fspath(value)!r}).load().array")
    if isinstance(value, Gallery):
        raise TypeError(f"{name}: expected an array, got a Gallery: its rows are in .load().array")
    return as_scanned(array_rows(value, name).array)


def array_rows(value: Any, name: str) -> ArrayRows:
    """(rows, dim) on the CPU as it lies in memory: a block at a time becomes what the scans take."""
    tensor = as_tensor(value, name)
    if str(tensor.dtype).removeprefix("torch.") not in ITEMSIZE:
        raise TypeError(f"{name}: expected a floating dtype, int8 or uint8, got {tensor.dtype}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected an array on the CPU, got one on {tensor.device}")
    if str(tensor.layout) != "torch.strided":
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}")
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected shape (rows, dim), got {tuple(tensor.shape)}")
    return ArrayRows(tensor, mapped=mapping_of(value))


def as_scanned(tensor: "torch.Tensor") -> "torch.Tensor":
    """What the scans take: integers of 8 bits as float32, a unit stride within a row; anything else as it is."""
    floats = tensor if tensor.dtype.is_floating_point else tensor.float()
    return floats if floats.shape[1] <= 1 or floats.stride(1) == 1 else floats.contiguous()


Sides = tuple[str, str]  # what the arguments of both sides are called
Rows = Union["torch.Tensor", Gallery]


def shape_of(rows: Rows) -> tuple[int, ...]:
    """(rows, dim)."""
    return (len(rows), rows.dim) if isinstance(rows, Gallery) else tuple(rows.shape)


def check_dims(queries: Rows, gallery: Rows, names: Sides = ("queries", "gallery")) -> str:
    """ValueError unless the dims agree and are at least 1; both shapes in words."""
    first, second = names
    shapes = f"{first} {shape_of(queries)} and {second} {shape_of(gallery)}"
    if shape_of(queries)[1] != shape_of(gallery)[1]:
        raise ValueError(f"{second}: expected the dim of {'the ' * (len(first) > 1)}{first}, got {shapes}")
    if shape_of(queries)[1] == 0:
        raise ValueError(f"{first}: expected a dim of at least 1, got {shapes}")
    return shapes


def check_shapes(
    queries: "torch.Tensor", gallery: Rows, k: Any, names: Sides = ("queries", "gallery"), k_name: str = "k"
) -> int:
    """`k` as an int; ValueError unless the dims agree and 1 <= k <= rows of the gallery."""
    shapes = check_dims(queries, gallery, names)
    try:
        count = None if isinstance(k, bool) else operator.index(k)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"{k_name}: expected an integer, got {type(k).__name__}")
    if not 1 <= count <= len(gallery):
        raise ValueError(f"{k_name}: expected 1 to {len(gallery)}, the rows of the gallery, got {count} with {shapes}")
    return count


def label_pair(
    kind: str,
    of_queries: Any,
    of_gallery: Any,
    queries: Rows,
    gallery: Rows,
    sides: Sides = ("query", "gallery"),
    *,
    lazy: bool = False,
) -> tuple["torch.Tensor | None", "torch.Tensor | None"]:
    """Ids or groups of both sides as contiguous int64 vectors, or None of both; lazy: the gallery's as they are."""
    if of_queries is None and of_gallery is None:
        return None, None
    if of_queries is None or of_gallery is None:
        missing, given = sides if of_queries is None else sides[::-1]
        raise ValueError(f"{missing}_{kind}: expected together with {given}_{kind}, got None")
    return (
        as_labels(of_queries, f"{sides[0]}_{kind}", len(queries)),
        (checked_labels if lazy else as_labels)(of_gallery, f"{sides[1]}_{kind}", len(gallery)),
    )


def as_labels(value: Any, name: str, count: int) -> "torch.Tensor":
    """A contiguous int64 vector of `count` on the CPU."""
    import torch

    return checked_labels(value, name, count).to(torch.int64).contiguous()


def checked_labels(value: Any, name: str, count: int) -> "torch.Tensor":
    """A vector of `count` integers on the CPU, of whatever width."""
    import torch

    tensor = as_tensor(value, name)
    real = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    if tensor.numel() and (real or tensor.dtype == torch.bool):
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if tuple(tensor.shape) != (count,):
        raise ValueError(f"{name}: expected shape ({count},), got {tuple(tensor.shape)}")
    labels = tensor.to("cpu")
    if tensor.dtype == torch.uint64:
        labels = labels.to(torch.int64)
        if len(rows := (labels < 0).nonzero()):
            raise ValueError(
                f"{name}: expected integers below 2^63, got {tensor[rows[0, 0]].item()} in row {rows[0, 0]}"
            )
    return labels


def raise_fault(
    status: "ScanStatus",
    queries: Rows,
    gallery: Rows,
    first_row: int = 0,
    names: Sides = ("queries", "gallery"),
) -> None:
    """ValueError for what the op found in the data; `first_row`: number of the gallery's first row."""
    if status.bad:
        row = status.row + (first_row if status.bad == 2 else 0)
        raise ValueError(
            f"{names[status.bad - 1]}: row {row}: {_FAULTS[status.fault]} "
            f"({names[0]} {shape_of(queries)}, {names[1]} {shape_of(gallery)})"
        )
