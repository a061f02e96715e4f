"""Exact search: the k nearest gallery rows of each query."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ._arrays import as_tensor, like

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
    info: bool = False,
) -> Neighbors:
    """Exact k nearest neighbours of each query in the gallery.

    Scores are defined in float64 on the values as given: ip = sum q_i x_i, l2 = sum (q_i - x_i)^2,
    cosine = ip / (sqrt(q.q) sqrt(x.x)), each sum in eight lanes i mod 8, then ((0+1)+(2+3))+((4+5)+(6+7)). Equal scores
    rank by the smaller index. A float32 scan with a proven error bound finds the candidates, float64 settles them: the
    answer is the same, bit for bit, for every CPU, number of threads and order of queries.

    Args:
        queries: (Q, D) embeddings, float16, bfloat16, float32, float64 or an integer dtype of 8 bits; Q may be 0.
        gallery: (N, D) embeddings, in any of these dtypes.
        k: how many neighbours, 1 to N.
        metric: "cosine", "ip" (inner product) or "l2" (squared Euclidean distance).
        scan: precision of the scan: "float32", or "auto" for the fastest there is; never changes the answer.
        query_ids: (Q,) integers, with `gallery_ids`: a query never finds a row of its own id.
        gallery_ids: (N,) integers.
        query_groups: (Q,) integers, with `gallery_groups`: a query never finds a row of its own group.
        gallery_groups: (N,) integers.
        info: also fill `.info`: the scan, the instruction set, and how many scores float64 settled.

    Returns:
        Neighbors: `scores` (Q, k) float32, best first, rounded once after ranking, and `indices` (Q, k) int64, arrays
        of the queries' kind. Where fewer than k rows are allowed: index -1, score -inf (+inf for "l2").

    Raises:
        ValueError: shapes that do not match, k out of range, an unknown option, NaN or infinity in an embedding, a
            zero vector under "cosine".
        TypeError: a wrong type or dtype.

    Example:
        >>> import numpy as np
        >>> import graceful_fast as gf
        >>> gallery = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
        >>> gf.knn(np.array([[2, 1]], dtype=np.float32), gallery, k=2, metric="l2").indices
        array([[2, 0]])
    """
    check_choice("metric", metric, ("cosine", "ip", "l2"))
    check_choice("scan", scan, ("auto", "int8", "float32"))
    q, x = as_embeddings(queries, "queries"), as_embeddings(gallery, "gallery")
    check_shapes(q, x, k)
    ids = label_pair("ids", query_ids, gallery_ids, q, x)
    groups = label_pair("groups", query_groups, gallery_groups, q, x)
    from . import _ops

    keys, rows = no_neighbors(q.shape[0], k)
    coded = scan == "int8" or (scan == "auto" and codes_pay(q, x))
    status = _ops.scan_collect(q, x, keys, rows, metric, ids=ids, groups=groups, coded=coded)
    raise_fault(status, q, x)
    found = Neighbors(like((-keys if metric == "l2" else keys).float(), queries), like(rows, queries))
    if info:
        found.info = {"scan": "int8" if coded else "float32", "isa": _ops.isa, **facts_of(status)}
    return found


def no_neighbors(count: int, k: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Keys (float64, larger is better) and rows of the best k of `count` queries before any row was seen."""
    import torch

    return torch.full((count, k), -torch.inf, dtype=torch.float64), torch.full((count, k), -1)


def codes_pay(queries: "torch.Tensor", gallery: "torch.Tensor") -> bool:
    """Whether making codes of 8 bits of the gallery's rows on the way is worth it."""
    return queries.shape[0] >= 256 and 64 <= queries.shape[1] <= 2**17


def facts_of(status: "ScanStatus") -> dict[str, int]:
    """What `info=True` tells of a scan."""
    return {
        "settled": status.settled,
        "cuts": status.cuts,
        "int8_rows": status.coded_rows,
        "float32_rows": status.plain_rows,
    }


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def as_embeddings(value: Any, name: str) -> "torch.Tensor":
    """(rows, dim) on the CPU, floating, of unit stride within a row."""
    import torch

    tensor = as_tensor(value, name)
    if tensor.dtype in (torch.int8, torch.uint8):
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(f"{name}: expected a floating dtype, int8 or uint8, got {tensor.dtype}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected an array on the CPU, got one on {tensor.device}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}")
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected shape (rows, dim), got {tuple(tensor.shape)}")
    return tensor if tensor.shape[1] <= 1 or tensor.stride(1) == 1 else tensor.contiguous()


def check_dims(queries: "torch.Tensor", gallery: "torch.Tensor", names: tuple[str, str] = ("queries", "gallery")) -> str:
    """ValueError unless the dims agree and are at least 1; both shapes in words."""
    first, second = names
    shapes = f"{first} {tuple(queries.shape)} and {second} {tuple(gallery.shape)}"
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"{second}: expected the dim of {'the ' * (first == 'queries')}{first}, got {shapes}")
    if queries.shape[1] == 0:
        raise ValueError(f"{first}: expected a dim of at least 1, got {shapes}")
    return shapes


def check_shapes(
    queries: "torch.Tensor",
    gallery: "torch.Tensor",
    k: Any,
    names: tuple[str, str] = ("queries", "gallery"),
    name: str = "k",
) -> None:
    """ValueError unless the dims agree and 1 <= k <= rows of the gallery."""
    shapes = check_dims(queries, gallery, names)
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(k).__name__}")
    if not 1 <= k <= gallery.shape[0]:
        raise ValueError(f"{name}: expected 1 to {gallery.shape[0]}, the rows of the gallery, got {k} with {shapes}")


def label_pair(
    kind: str,
    of_queries: Any,
    of_gallery: Any,
    queries: "torch.Tensor",
    gallery: "torch.Tensor",
    sides: tuple[str, str] = ("query", "gallery"),
) -> tuple["torch.Tensor | None", "torch.Tensor | None"]:
    """Ids or groups of both sides as contiguous int64 vectors, or None of both."""
    if of_queries is None and of_gallery is None:
        return None, None
    if of_queries is None or of_gallery is None:
        missing, given = sides if of_queries is None else sides[::-1]
        raise ValueError(f"{missing}_{kind}: expected together with {given}_{kind}, got None")
    return (
        as_labels(of_queries, f"{sides[0]}_{kind}", queries.shape[0]),
        as_labels(of_gallery, f"{sides[1]}_{kind}", gallery.shape[0]),
    )


def as_labels(value: Any, name: str, count: int) -> "torch.Tensor":
    """A contiguous int64 vector of `count` on the CPU."""
    import torch

    tensor = as_tensor(value, name)
    real = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    if tensor.numel() and (real or tensor.dtype == torch.bool):
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if tuple(tensor.shape) != (count,):
        raise ValueError(f"{name}: expected shape ({count},), got {tuple(tensor.shape)}")
    labels = tensor.to(device="cpu", dtype=torch.int64).contiguous()
    if tensor.dtype == torch.uint64 and len(rows := (labels < 0).nonzero()):
        raise ValueError(f"{name}: expected integers below 2^63, got {tensor[rows[0, 0]].item()} in row {rows[0, 0]}")
    return labels


def raise_fault(
    status: "ScanStatus",
    queries: "torch.Tensor",
    gallery: "torch.Tensor",
    first_row: int = 0,
    names: tuple[str, str] = ("queries", "gallery"),
) -> None:
    """ValueError for what the op found in the data; `first_row`: number of the gallery's first row."""
    if status.bad:
        row = status.row + (first_row if status.bad == 2 else 0)
        raise ValueError(
            f"{names[status.bad - 1]}: row {row}: {_FAULTS[status.fault]} "
            f"({names[0]} {tuple(queries.shape)}, {names[1]} {tuple(gallery.shape)})"
        )
