"""Gallery files of every format, written by the peer that owns it, for the tests of galleries."""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

import graceful_fast as gf

Write = Callable[[Path, torch.Tensor], None]
DTYPES = {
    "f4": torch.float32,
    "f2": torch.float16,
    "bf16": torch.bfloat16,
    "f8": torch.float64,
    "i1": torch.int8,
    "u1": torch.uint8,
}


def rows_of(dtype: str, rows: int = 7, dim: int = 3) -> torch.Tensor:
    values = torch.from_numpy(np.random.default_rng(rows).normal(size=(rows, dim)) * 40).round()
    return (values.abs() if dtype == "u1" else values).to(DTYPES[dtype])


def thread_count(at_most: int | None = None) -> int:
    """Threads of this process; with `at_most`, waits for it: the system lists a joined thread a moment longer."""
    deadline = time.monotonic() + 10
    while (count := len(os.listdir("/proc/self/task"))) > (at_most or count) and time.monotonic() < deadline:
        time.sleep(0.01)
    return count


def write_bin(path: Path, rows: torch.Tensor, header: str = "<II") -> None:
    path.write_bytes(struct.pack(header, *rows.shape) + rows.numpy().tobytes())


def write_vecs(path: Path, rows: torch.Tensor) -> None:
    word = np.full((len(rows), 1), rows.shape[1], "<i4").view(np.uint8)
    path.write_bytes(np.concatenate([word, rows.numpy().view(np.uint8)], 1).tobytes())


def write_faiss(path: Path, rows: torch.Tensor, metric: int = faiss.METRIC_L2) -> None:
    index = faiss.IndexFlat(rows.shape[1], metric)
    index.add(rows.numpy())
    faiss.write_index(index, str(path))


def write_hdf5(path: Path, rows: torch.Tensor, **options: Any) -> None:
    with h5py.File(path, "w", **({"userblock_size": 512} if options.pop("userblock", False) else {})) as file:
        file["neighbors"] = np.zeros((2, 2), np.int32)
        file.create_dataset("train", data=rows.numpy(), **options)


def write_parquet(path: Path, rows: torch.Tensor, fixed: bool = True) -> None:
    flat = pa.array(rows.numpy().reshape(-1))
    kind = pa.list_(flat.type, rows.shape[1] if fixed else -1)
    column = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]) if fixed else pa.array(list(rows.numpy()), kind)
    pq.write_table(pa.table({"id": np.arange(len(rows)), "embedding": column}), path, row_group_size=3)


WRITERS: dict[str, tuple[str, str, Write]] = {
    "npy": (".npy", "f4 f2 f8 i1 u1", lambda p, x: np.save(p, x.numpy())),
    "npz": (".npz", "f4 f2 f8 i1 u1", lambda p, x: np.savez(p, labels=np.arange(len(x)), rows=x.numpy())),
    "npz-compressed": (".npz", "f4 f2 f8 i1 u1", lambda p, x: np.savez_compressed(p, rows=x.numpy())),
    "fbin": (".fbin", "f4", write_bin),
    "fbin-wide": (".fbin", "f4", lambda p, x: write_bin(p, x, "<QQ")),
    "f16bin": (".f16bin", "f2", write_bin),
    "u8bin": (".u8bin", "u1", write_bin),
    "i8bin-wide": (".i8bin", "i1", lambda p, x: write_bin(p, x, "<QQ")),
    "fvecs": (".fvecs", "f4", write_vecs),
    "bvecs": (".bvecs", "u1", write_vecs),
    "faiss-l2": (".index", "f4", write_faiss),
    "faiss-ip": (".faiss", "f4", lambda p, x: write_faiss(p, x, faiss.METRIC_INNER_PRODUCT)),
    "faiss-l1": (".flat", "f4", lambda p, x: write_faiss(p, x, faiss.METRIC_L1)),
    "hdf5": (".hdf5", "f4 f2 f8 i1 u1", write_hdf5),
    "hdf5-userblock": (".h5", "f4", lambda p, x: write_hdf5(p, x, userblock=True)),
    "hdf5-chunked": (
        ".hdf5",
        "f4 f2 f8 i1 u1",
        lambda p, x: write_hdf5(p, x, maxshape=(None, 3), chunks=(2, 2), compression="gzip"),
    ),
    "parquet": (".parquet", "f4 f2 f8 i1 u1", write_parquet),
    "parquet-list": (".parquet", "f4 f2 f8 i1 u1", lambda p, x: write_parquet(p, x, fixed=False)),
    "safetensors": (
        ".safetensors",
        "f4 f2 bf16 f8 i1 u1",
        lambda p, x: safetensors.torch.save_file({"bias": torch.zeros(3), "rows": x}, p, {"model": "m"}),
    ),
    "pt": (".pt", "f4 f2 bf16 f8 i1 u1", lambda p, x: torch.save(x, p)),
    "pt-mapping": (".pth", "f4", lambda p, x: torch.save({"labels": torch.arange(len(x)), "rows": x}, p)),
}


def written(folder: Path, name: str, rows: torch.Tensor) -> Path:
    suffix, _, write = WRITERS[name]
    path = folder / f"gallery{suffix}"
    write(path, rows)
    return path


def read(gallery: gf.Gallery, rows: int = 3) -> torch.Tensor:
    return torch.cat(
        [torch.empty((0, gallery.dim), dtype=gallery.dtype), *(b.clone() for _, b in gallery.blocks(rows))]
    )


def npy_bytes(header: str, body: bytes, version: bytes = b"\1\0") -> bytes:
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + version + len(header).to_bytes(width, "little") + header.encode() + body
