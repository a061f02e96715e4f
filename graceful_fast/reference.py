"""The definitions, in short plain torch: what every op is compared with. Public, slow, without cleverness."""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

# --- losses -----------------------------------------------------------------------------------------------------------


def focal_distillation_loss(
    new_logits: torch.Tensor,
    old_logits: torch.Tensor,
    target: torch.Tensor,
    *,
    divergence: Literal["kl", "logits", "ldi"] = "kl",
    alpha: float = 1.0,
    beta: float = 5.0,
    temperature: float = 100.0,
    focus: Literal["old_correct", "negative_flip", "new_incorrect", "all"] | torch.Tensor = "old_correct",
    distillation_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ldi_margin: float = 0.5,
    exclude_target: bool = False,
    class_map: torch.Tensor | None = None,
    count: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Equivalent to graceful_fast.focal_distillation_loss, in the logits' own precision: use float64."""
    counted = target != ignore_index
    label = target.where(counted, 0)
    old = old_logits.detach().to(new_logits.dtype)
    if class_map is None:
        shared = torch.arange(min(old.shape[1], new_logits.shape[1]))
        old = old[:, shared]
    else:
        shared = (class_map >= 0).nonzero()[:, 0]
        old = old[:, class_map[shared]]
    new = new_logits[:, shared]
    place = (label[:, None] > shared).sum(1)  # of the target among the shared classes
    known = (label[:, None] == shared).any(1)
    old_correct = known & (_first_argmax(old) == place)
    new_correct = _first_argmax(new_logits.detach()) == target
    conditions = {
        "old_correct": old_correct,
        "negative_flip": old_correct & ~new_correct,
        "new_incorrect": ~new_correct,
    }
    if isinstance(focus, torch.Tensor):
        weight = focus.to(new.dtype)
    elif focus == "all":
        weight = torch.ones(len(target), dtype=new.dtype)
    else:
        weight = alpha + beta * conditions[focus].to(new.dtype)
    weight = distillation_weight * weight.where(counted & known, 0)

    def term(factor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # a weight of 0 takes an infinite term out
        return factor * value.where(factor != 0, 0)

    if divergence == "kl":
        distance = _kl(new, old, temperature)
    elif divergence == "logits":
        distance = _squares(new, old) / 2
    else:
        excluded = (label[:, None] == shared) if exclude_target else torch.zeros(1, 1, dtype=torch.bool)
        distance = _squares(new, old, ldi_margin, excluded)
    if len(target):
        cross_entropy = F.cross_entropy(new_logits, label, reduction="none", label_smoothing=label_smoothing)
    else:
        cross_entropy = new_logits.sum(1)
    rows = term(cross_entropy_weight * counted.to(new.dtype), cross_entropy) + term(weight, distance)
    return _reduced(rows, reduction, counted.sum().clamp(min=1) if count is None else count)


def _reduced(rows: torch.Tensor, reduction: str, count: float | torch.Tensor) -> torch.Tensor:
    if reduction == "none":
        return rows
    return rows.sum() / count if reduction == "mean" else rows.sum()


def _first_argmax(logits: torch.Tensor) -> torch.Tensor:
    if logits.shape[1] == 0:
        return torch.full((len(logits),), -1)
    return (logits == logits.amax(1, keepdim=True)).to(torch.int8).argmax(1)


def _kl(new: torch.Tensor, old: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(old / T) || softmax(new / T)) of each row."""
    log_p, log_q = (old / temperature).log_softmax(1), (new / temperature).log_softmax(1)
    p = log_p.exp()
    return temperature**2 * (p * (log_p - log_q)).where(p > 0, 0).sum(
        1
    )  # p = 0 or, in a row of -inf only, NaN: no term


def _squares(
    new: torch.Tensor, old: torch.Tensor, margin: float = 0.0, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the classes with a finite old logit of max(|new - old| - margin, 0)^2; excluded ones add 0."""
    finite = old > -torch.inf
    infinite = finite & (new == -torch.inf)  # an infinite distance without a direction
    if excluded is not None:
        infinite = infinite & ~excluded
    used = finite & (new > -torch.inf)
    squares = ((new.where(used, 0) - old.where(used, 0)).abs() - margin).clamp(min=0) ** 2
    if excluded is not None:
        squares = squares.where(~excluded, 0)
    rows = squares.sum(1) / finite.sum(1).clamp(min=1)
    return rows.where(~infinite.any(1), rows + torch.inf)


def influence_loss(
    features: torch.Tensor,
    old_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    old_bias: torch.Tensor | None = None,
    scale: float = 1.0,
    normalize: bool = False,
    margin: float = 0.0,
    margin_type: Literal["cosine", "arc"] = "cosine",
    class_map: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    count: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Equivalent to graceful_fast.influence_loss, in the features' own precision: use float64."""
    counted = target != ignore_index
    label = target.where(counted, 0)
    if class_map is not None:
        counted = counted & (class_map[label] >= 0)
        label = class_map[label].where(counted, 0)
    features = features[:, : old_weight.shape[1]]
    weight = old_weight.detach().to(features.dtype)
    if normalize:
        features, weight = F.normalize(features), F.normalize(weight)
    logits = features @ weight.T
    if margin:
        own = logits.gather(1, label[:, None])
        logits = logits.scatter(1, label[:, None], _with_margin(own, margin, margin_type))
    if old_bias is not None:
        logits = logits + old_bias.detach().to(features.dtype)
    rows = F.cross_entropy(
        logits * scale, label.where(counted, -1), reduction="none", label_smoothing=label_smoothing, ignore_index=-1
    )
    if reduction == "none":
        return rows
    return rows.sum() / ((counted.sum().clamp(min=1) if count is None else count) if reduction == "mean" else 1)


def _with_margin(cosine: torch.Tensor, margin: float, margin_type: str) -> torch.Tensor:
    if margin_type == "cosine":
        return cosine - margin
    angle = cosine.clamp(-1, 1).acos() + margin
    return angle.cos().where(angle <= np.pi, cosine - margin * np.sin(margin))


# --- flips ------------------------------------------------------------------------------------------------------------


def right(scores: np.ndarray, target: np.ndarray, topk: int = 1) -> list[bool]:
    """Whether the label is among the first `topk` classes by (-score, index); a class beyond the scores never is."""
    return [
        int(label) in sorted(range(len(row)), key=lambda j: (-float(row[j]), j))[:topk]
        for row, label in zip(scores, target, strict=True)
    ]


# --- scan -------------------------------------------------------------------------------------------------------------


def fixed_sum(terms: np.ndarray) -> np.ndarray:
    """Sum over the last axis, float64: eight lanes i mod 8 in ascending i, then ((0+1)+(2+3))+((4+5)+(6+7))."""
    dim = terms.shape[-1]
    lanes = np.zeros((*terms.shape[:-1], 8))
    for start in range(0, dim, 8):
        width = min(8, dim - start)
        lanes[..., :width] += terms[..., start : start + width]
    s = [lanes[..., i] for i in range(8)]
    total: np.ndarray = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
    return total


def similarity(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """Score of one query (D,) with every gallery row (N, D), float64: larger is better, so "l2" is negated."""
    q, x = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "l2":
        return -fixed_sum((q - x) ** 2)
    inner = fixed_sum(q * x)
    if metric == "ip":
        return inner
    cosine: np.ndarray = inner / (np.sqrt(fixed_sum(q * q)) * np.sqrt(fixed_sum(x * x)))
    return cosine


def knn(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    metric: str = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
    query_groups: Any = None,
    gallery_groups: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) float32 and indices (Q, k) int64 of `graceful_fast.knn`, by sorting every float64 score."""
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    scores = np.full((len(queries), k), -np.inf)
    indices = np.full((len(queries), k), -1)
    for i, query in enumerate(queries):
        score = similarity(query, gallery, metric)
        allowed = np.ones(len(gallery), dtype=bool)
        if query_ids is not None:
            allowed &= np.asarray(gallery_ids) != query_ids[i]
        if query_groups is not None:
            allowed &= np.asarray(gallery_groups) != query_groups[i]
        rows = np.flatnonzero(allowed)
        best = rows[np.lexsort((rows, -score[rows]))][:k]
        scores[i, : len(best)], indices[i, : len(best)] = score[best], best
    with np.errstate(over="ignore"):
        return (-scores if metric == "l2" else scores).astype(np.float32), indices
