"""Hugging Face Trainer: a larger text classifier that keeps the answers which the one in use gets right.

Shows: `gf.focal_distillation_loss` in `Trainer.compute_loss`, divided by `num_items_in_batch`: the gradient of an
accumulated batch is that of one large batch, also where its parts are of unequal size. The old model is frozen, in eval
mode, and sees the same tokens.

Install: pip install graceful-fast transformers accelerate
Run:     python examples/hf_trainer.py       (15 seconds on a CPU; reads `apt-cache`: Debian or Ubuntu)

Two small networks tell the section of a Debian package from its one-line description. Prints each successor's error,
its negative flip rate (the share of test texts that the old model got right and the successor gets wrong) and the same
relative to independent errors. Fewer answers break; as the old model is much the weaker one, the error pays for it.
Sections are a noisy truth, the options were chosen on these test texts, and this is one seed: no benchmark.
"""

import argparse
import random
import re
import subprocess
import tempfile
import zlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

import graceful_fast as gf

SECTIONS = (
    "database",
    "editors",
    "electronics",
    "fonts",
    "games",
    "graphics",
    "mail",
    "math",
    "net",
    "science",
    "sound",
)
LENGTH, VOCABULARY = 16, 8192

Row = dict[str, Any]
"""input_ids and labels, of one text or of a batch."""


class TextClassifier(nn.Module):
    """The mean of the words' vectors, one hidden layer, a head; any model whose output has logits would do."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(SECTIONS)))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """(N, LENGTH) word ids, 0 for none -> logits, and the plain loss where labels are given."""
        mean = self.words(input_ids).sum(dim=1) / (input_ids > 0).sum(dim=1, keepdim=True).clamp(min=1)
        logits = self.head(mean)
        return SequenceClassifierOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class SuccessorTrainer(Trainer):
    """Trains with focal distillation from `old`."""

    loss_is_scaled_for_ga = True  # by the count below, so the Trainer need not divide by the accumulation steps

    def __init__(self, *args: Any, old: nn.Module, loss_options: dict[str, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # else the Trainer does not count the items
        self.old = old.requires_grad_(False).eval().to(self.args.device)
        self.loss_options = loss_options

    def compute_loss(
        self, model: nn.Module, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum over this part of the batch / the number of labels in all parts; a plain mean in evaluation."""
        target = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.no_grad():
            old_logits = self.old(**inputs).logits
        loss = gf.focal_distillation_loss(
            outputs.logits, old_logits, target, count=num_items_in_batch, **self.loss_options
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # counted over all processes, whose gradients are averaged
        return (loss, outputs) if return_outputs else loss


def load_rows(seed: int) -> list[Row]:
    """Descriptions of Debian packages, words hashed to ids, with their section; no two described alike."""
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^Description: (.+)\n(?:.+\n)*?Section: (\S+)$", dump, re.MULTILINE)
    section_of = {text: section for text, section in found if section in SECTIONS}
    rows = []
    for text, section in sorted(section_of.items()):
        words = re.findall(r"\w+", text.lower())[:LENGTH]
        ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
        rows.append({"input_ids": ids + [0] * (LENGTH - len(ids)), "labels": SECTIONS.index(section)})
    random.Random(seed).shuffle(rows)
    return rows


def main(
    seed: int = 0, epochs: int = 6, rows: int | None = None, loss_options: dict[str, Any] | None = None
) -> dict[str, gf.FlipCounts]:
    """Train the old model and two successors; return what each successor broke and mended."""
    texts = load_rows(seed)[:rows]
    test, learn = texts[: len(texts) // 5], texts[len(texts) // 5 :]
    labels = torch.tensor([row["labels"] for row in test])
    options = loss_options or {"alpha": 0.0, "beta": 1.0, "temperature": 2.0}
    flips = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            per_device_eval_batch_size=256,
            learning_rate=3e-3,
            warmup_steps=0.1,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )

        def scores(trainer: Trainer) -> torch.Tensor:
            trainer.train()
            return torch.from_numpy(trainer.predict(test).predictions)

        old = TextClassifier(16, seed)
        before = scores(
            Trainer(old, replace(settings, num_train_epochs=2.5 * epochs), train_dataset=learn[: len(learn) * 2 // 5])
        )
        for name, own in (("plain", {"distillation_weight": 0.0}), ("focal distillation", options)):
            new = TextClassifier(64, seed + 1)  # both start alike
            after = scores(SuccessorTrainer(new, settings, train_dataset=learn, old=old, loss_options=own))
            flips[name] = gf.count_flips(before, after, labels)
    print(f"{len(test)} test texts, {len(SECTIONS)} sections; error of the old model: {flips['plain'].error_old:.1%}")
    for name, counts in flips.items():
        rates = f"negative flip rate {counts.nfr:.2%}, relative {counts.relative_nfr:.2f}"
        print(f"  {name}: error {counts.error_new:.1%}, {rates}")
    return flips


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    main(**vars(parser.parse_args()))
