"""Chains of four versions on digits, each with more images and a larger network: what it costs to fit earlier ones."""

from .. import bct
from ..chain import Policy, average_compatibility, must_fit
from ..results import Entry
from .bct_digits import Answers, Generation, Models, Options
from .cross_version import quality

SCHEMA = "graceful_fast.train.chain/1"
VERSIONS = (Generation(100, 4), Generation(250, 5), Generation(500, 6), Generation(1000, 8))


def measure(models: Models, policy: Policy, options: Options) -> Entry:
    """One entry of the results: a whole chain, every version's queries in every earlier version's gallery."""
    chain: list[Answers] = []
    weight, of_head = options.get("weight", 1.0), {key: options[key] for key in options if key != "weight"}
    for number, made in enumerate(VERSIONS):
        earlier = must_fit(policy, number, len(VERSIONS))
        if earlier:
            heads = (models.influence(chain[version].model, made, False, of_head) for version in earlier)
            model = models.train(made, bct.BackwardCompatible(*heads, weight=weight), number)
            chain.append(models.answers(model))
        else:
            chain.append(models.plain(made, number))
    matrix = [
        [
            *(quality(later.embeddings, earlier.embeddings, models.labels).map for earlier in chain[:number]),
            later.own.map,
        ]
        for number, later in enumerate(chain)
    ]
    return {
        "options": options,
        "map": matrix,
        "average_compatibility": average_compatibility(matrix),
        "average_map": sum(map(sum, matrix)) / sum(map(len, matrix)),
        "accuracy": [float((version.logits.argmax(1) == models.labels).double().mean()) for version in chain],
    }
