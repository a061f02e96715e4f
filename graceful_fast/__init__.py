"""Replace a model that is in use: train the successor to fit, measure what breaks, decide.

Names are loaded on first use, so that `import graceful_fast` costs neither torch nor the compiled extension.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "focal_distillation_loss": "losses",
    "FocalDistillationLoss": "losses",
    "linear_focal_distillation_loss": "linear_losses",
    "LinearFocalDistillationLoss": "linear_losses",
    "influence_loss": "losses",
    "InfluenceLoss": "losses",
    "global_count": "_ranks",
    "knn": "search",
    "Neighbors": "search",
    "Gallery": "gallery",
    "retrieval_metrics": "metrics",
    "RetrievalMetrics": "metrics",
    "count_retrieval_flips": "metrics",
    "verification_metrics": "verification",
    "VerificationMetrics": "verification",
    "identification_metrics": "identification",
    "IdentificationMetrics": "identification",
    "cluster_agreement": "clusters",
    "ClusterAgreement": "clusters",
    "count_flips": "flips",
    "FlipCounts": "flips",
    "NegativeFlipRate": "flip_metrics",
    "RelativeNegativeFlipRate": "flip_metrics",
    "compare_classifiers": "update.report",
    "UpdateReport": "update.report",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from ._ranks import global_count
    from .clusters import ClusterAgreement, cluster_agreement
    from .flip_metrics import NegativeFlipRate, RelativeNegativeFlipRate
    from .flips import FlipCounts, count_flips
    from .gallery import Gallery
    from .identification import IdentificationMetrics, identification_metrics
    from .linear_losses import LinearFocalDistillationLoss, linear_focal_distillation_loss
    from .losses import FocalDistillationLoss, InfluenceLoss, focal_distillation_loss, influence_loss
    from .metrics import RetrievalMetrics, count_retrieval_flips, retrieval_metrics
    from .search import Neighbors, knn
    from .update.report import UpdateReport, compare_classifiers
    from .verification import VerificationMetrics, verification_metrics


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
