"""Chains of four versions on digits, each with more images and a larger network: what it costs to fit earlier ones."""

from typing import NamedTuple

import torch

from .. import bct
from ..chain import Policy, average_compatibility, must_fit
from ..results import Entry
from .bct_digits import Embedder, Generation, Models, Options
from .cross_version import quality

SCHEMA = "graceful_fast.train.chain/1"
VERSIONS = (Generation(100, 4), Generation(250, 6), Generation(500, 9), Generation(1000, 12))


class Version(NamedTuple):
    """A trained one and its answers."""

    model: Embedder
    embeddings: torch.Tensor
    logits: torch.Tensor


def measure(models: Models, policy: Policy, options: Options, rows: torch.Tensor) -> Entry:
    """One entry of the results: a whole chain, every version's queries in every earlier version's gallery."""
    labels, chain = models.digits.images.labels[rows], list[Version]()
    weight, of_head = options.get("weight", 1.0), {key: options[key] for key in options if key != "weight"}
    for number, made in enumerate(VERSIONS):
        earlier = must_fit(policy, number, len(VERSIONS))
        if earlier:
            heads = (models.influence(chain[version].model, made, False, of_head) for version in earlier)
            model = models.train(made, bct.BackwardCompatible(*heads, weight=weight), number)
        else:
            model = models.plain(made, number)
        chain.append(Version(model, *models.outputs(model, rows)))
    matrix = [
        [quality(later.embeddings, earlier.embeddings, labels).map for earlier in chain[: number + 1]]
        for number, later in enumerate(chain)
    ]
    return {
        "options": options,
        "map": matrix,
        "average_compatibility": average_compatibility(matrix),
        "average_map": sum(map(sum, matrix)) / sum(map(len, matrix)),
        "accuracy": [float((version.logits.argmax(1) == labels).double().mean()) for version in chain],
    }
