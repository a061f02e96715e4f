"""What each successor does to its users: accuracy, flips, retrieval across versions; and all seeds together."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .digits import Trained

SUCCESSORS = ("reseed", "plain", "focal distillation", "BCT")


def hit_at_1(queries: torch.Tensor, gallery: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of test images whose nearest other test image has the same label."""
    from graceful_fast import knn

    ids = torch.arange(len(labels))
    nearest = knn(queries, gallery, 1, metric="cosine", query_ids=ids, gallery_ids=ids).indices[:, 0]
    return float((labels[nearest] == labels).double().mean())


def evaluate_model(model: Trained, old: Trained, paragon: Trained | None, labels: torch.Tensor) -> dict[str, Any]:
    """One model's numbers, all shares of the test images; None where a ratio is not defined.

    Args:
        model: the model; may be the old one itself.
        old: the old model.
        paragon: the model whose new/new is the best that re-embedding the gallery could give; None where there is none.
        labels: the test images' labels.
    """
    from graceful_fast import count_flips

    flips = count_flips(old.logits, model.logits, labels)
    result = {"accuracy": float((model.logits.argmax(1) == labels).double().mean()), "seconds": round(model.seconds, 3)}
    if model is old:
        return {**result, "old/old": hit_at_1(old.embeddings, old.embeddings, labels)}
    before = hit_at_1(old.embeddings, old.embeddings, labels)
    across = hit_at_1(model.embeddings, old.embeddings, labels)
    after = hit_at_1(model.embeddings, model.embeddings, labels)
    best = after if paragon is None or paragon is model else hit_at_1(paragon.embeddings, paragon.embeddings, labels)
    return {
        **result,
        "nfr": flips.nfr,
        "relative_nfr": None if math.isnan(flips.relative_nfr) else flips.relative_nfr,
        "old/old": before,
        "new/old": across,
        "new/new": after,
        "compatible": across > before,
        "update_gain": (across - before) / (best - before) if best > before else None,
    }


def evaluate_seed(seed: int, models: dict[str, Trained], labels: torch.Tensor) -> dict[str, Any]:
    """The numbers of all models of one seed; the paragon of every update gain is the plain successor."""
    old, paragon = models["old"], models["plain"]
    numbers = {name: evaluate_model(model, old, paragon, labels) for name, model in models.items()}
    return {"seed": seed, "models": numbers}


def summarise(seeds: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, least and greatest of every number over the seeds, and in how many a successor is compatible.

    A ratio that is undefined (None) in some seed has no summary: None.

    Example:
        >>> seeds = [{"models": {"plain": {"nfr": nfr, "compatible": False}}} for nfr in (0.01, 0.03)]
        >>> summarise(seeds)
        {'plain': {'nfr': {'mean': 0.02, 'min': 0.01, 'max': 0.03}, 'compatible': 0}}
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, first in seeds[0]["models"].items():
        summary[name] = {}
        for key, sample in first.items():
            values = [seed["models"][name][key] for seed in seeds]
            if isinstance(sample, bool):
                summary[name][key] = sum(values)
            elif None in values:
                summary[name][key] = None
            else:
                summary[name][key] = {"mean": math.fsum(values) / len(values), "min": min(values), "max": max(values)}
    return summary
