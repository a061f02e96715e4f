"""WordNet's glosses for the recipes: short definitions with their topics, as WordLlama and all-MiniLM-L6 see them."""

import random
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from ..._arrays import as_numpy
from .pct_sections import NEW, embedded

WORDNET = Path("/usr/share/wordnet")
WORDLLAMA = "wordllama==0.4.0.post1"
PER_TOPIC = 160
"""Glosses of each topic; topics with fewer are left out."""


class Glosses(NamedTuple):
    """Both encoders' embeddings and the topics (0, 1, ...) of the same glosses, in rounds of one of each topic."""

    old: torch.Tensor
    """(N, 256) float32: WordLlama, static word vectors."""
    new: torch.Tensor
    """(N, 384) float32: all-MiniLM-L6-v2, a transformer."""
    topics: torch.Tensor
    """(N,) int64."""


def read_glosses(folder: Path = WORDNET) -> tuple[list[str], list[int]]:
    """Definitions without their examples and the number of their lexicographer file, as many of each topic.

    Raises:
        OSError: WordNet's files are not there: install Debian's `wordnet-base`.
    """
    found: dict[int, list[str]] = {}
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # the licence
                fields, _, gloss = line.partition(" | ")
                found.setdefault(int(fields.split()[1]), []).append(gloss.split('; "')[0].strip())
    chosen = []
    for file in sorted(found):
        glosses = sorted(set(found[file]))
        random.Random(0).shuffle(glosses)
        if len(glosses) >= PER_TOPIC:
            chosen.append(glosses[:PER_TOPIC])
    texts = [gloss for of_each_topic in zip(*chosen, strict=True) for gloss in of_each_topic]
    return texts, [topic for _ in range(PER_TOPIC) for topic in range(len(chosen))]


def load_glosses() -> Glosses:
    """Embedded once and kept in the cache folder.

    Raises:
        ImportError: A package with weights is not installed.
        OSError: WordNet's files are not there.
    """
    if find_spec("wordllama") is None:
        raise ImportError(f"wordllama is not installed: pip install {WORDLLAMA}")
    import wordllama

    texts, topics = read_glosses()
    # Its own way of going without a download looks in the wrong folder.
    words = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True, dim=256)
    return Glosses(
        torch.from_numpy(as_numpy(words.embed(texts), "wordllama")), embedded(NEW, texts), torch.tensor(topics)
    )
