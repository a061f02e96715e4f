"""What bench/gpu.py times: each op on one device beside its peers, with the limit that it is held against."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

import graceful_fast as gf
import graceful_fast.reference

from . import bench_distill, bench_influence
from .bench_scan import unit_vectors
from .contest import Contest

Entries = dict[str, Callable[[], Any]]


class Held(NamedTuple):
    """A contest, and the measured rate that its own is a fraction of: "copy", or a dtype's matrix product."""

    contest: Contest
    limit: str


def absences(toy: bool) -> dict[str, str]:
    """Peers that cannot take part, and why."""
    absent = {}
    for name, module, needed in (
        ("faiss-gpu", "faiss", "StandardGpuResources"),
        ("cuVS", "cuvs.neighbors.brute_force", "build"),
    ):
        try:
            if not hasattr(importlib.import_module(module), needed):
                absent[name] = f"{module} has no {needed}"
        except ImportError as error:
            absent[name] = str(error)
    if toy:
        absent["torch.compile"] = "takes longer than all else at toy size"
    return absent


def contests(device: str, toy: bool) -> Iterator[Callable[[], Held]]:
    """Each contest, made when it is called: inputs of one at a time are on the device."""
    absent = absences(toy)
    shapes = [((4, 70), torch.float32), ((3, 50), torch.bfloat16)]
    if not toy:
        shapes = [((4096, 32768), torch.float32), ((4096, 131_072), torch.bfloat16), ((1024, 21_841), torch.float32)]
        shapes += [((8, 1_000_000), torch.float32), ((256, 1000), torch.float32)]
    for shape, dtype in shapes:
        yield partial(distill, device, shape, dtype, absent)
    for shape3 in ((3, 8, 40),) if toy else ((256, 256, 200_000), (1024, 512, 1_000_000)):
        yield partial(influence, device, shape3, absent)
    for rows, classes in ((9, 20),) if toy else ((200_000, 1000), (20_000, 100_000)):
        yield partial(flips, device, rows, classes)
    searches = [(5, 300, 16, 3)] if toy else [(10_000, 1_000_000, d, k) for d in (128, 512) for k in (10, 100)]
    for search in searches if toy else [*searches, (1, 1_000_000, 128, 10)]:
        for scan in ("int8", "float16"):
            yield partial(knn, device, search, scan, absent)
    yield partial(retrieval, device, *((5, 200, 16) if toy else (2000, 1_000_000, 128)))
    yield partial(verification, device, *((40, 16) if toy else (50_000, 128)))


def distill(device: str, shape: tuple[int, int], dtype: torch.dtype, absent: dict[str, str]) -> Held:
    """Forward and backward; at least three passes: both logits in, the gradient out."""
    new, old, target = (tensor.to(device) for tensor in bench_distill.inputs(shape, dtype))

    def step(loss: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = new.detach().requires_grad_()
        value = loss(leaf, old, target)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    def check() -> None:
        rows = slice(0, 16)
        leaf = new[rows].cpu().double().requires_grad_()
        expected = gf.reference.focal_distillation_loss(leaf, old[rows].cpu().double(), target[rows].cpu())
        own = new[rows].detach().requires_grad_()
        loss = gf.focal_distillation_loss(own, old[rows], target[rows])
        close(loss, expected, 2e-5)
        gradients = (torch.autograd.grad(value, x)[0] for value, x in ((loss, own), (expected, leaf)))
        close(*gradients, 1e-5 if dtype == torch.float32 else 1e-2)

    losses = {"graceful_fast": gf.focal_distillation_loss, "torch eager": bench_distill.eager}
    if "torch.compile" not in absent:
        losses["torch.compile"] = torch.compile(bench_distill.eager)
    entries: Entries = {name: partial(step, loss) for name, loss in losses.items()}
    case = f"{shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
    return Held(Contest("distill", case, entries, check, 3.0 * new.numel() * new.element_size(), "B/s"), "copy")


def influence(device: str, shape: tuple[int, int, int], absent: dict[str, str]) -> Held:
    """Forward and backward to the features: two products with the frozen head."""
    features, weight, target = (tensor.to(device) for tensor in bench_influence.inputs(*shape))

    def check() -> None:
        few = (features[:8].cpu().double(), weight.cpu().double(), target[:8].cpu())
        expected = bench_influence.step(gf.reference.influence_loss, *few)
        close(bench_influence.step(gf.influence_loss, features[:8], weight, target[:8]), expected, 1e-4)

    losses = dict(bench_influence.LOSSES)
    if "torch.compile" not in absent:
        losses["torch.compile"] = torch.compile(bench_influence.eager)
    entries: Entries = {
        name: partial(bench_influence.step, loss, features, weight, target) for name, loss in losses.items()
    }
    case, work = " x ".join(map(str, shape)), 4.0 * shape[0] * shape[1] * shape[2]
    return Held(Contest("influence", case, entries, check, work, "op/s"), "float32")


def flips(device: str, rows: int, classes: int) -> Held:
    """Both models' scores in, once."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, classes, (rows,), generator=generator)
    old, new = (torch.randn(rows, classes, generator=generator) for _ in range(2))
    for scores in (old, new):
        scores[torch.arange(rows), target] += 3
    old, new, target = old.to(device), new.to(device), target.to(device)

    def argmax() -> torch.Tensor:
        return ((old.argmax(1) == target) & (new.argmax(1) != target)).nonzero()[:, 0]

    def check() -> None:
        assert torch.equal(gf.count_flips(old, new, target).negative_indices, argmax())

    entries: Entries = {"graceful_fast": partial(gf.count_flips, old, new, target), "torch argmax": argmax}
    return Held(Contest("flips", f"{rows} x {classes} float32", entries, check, 8.0 * old.numel(), "B/s"), "copy")


def knn(device: str, shape: tuple[int, int, int, int], scan: str, absent: dict[str, str]) -> Held:
    """A search by one scan; peers are exact in float32 or less."""
    count, rows, dim, k = shape
    q, x = (torch.from_numpy(unit_vectors(n, dim, seed)).to(device) for n, seed in ((count, 1), (rows, 2)))
    step = max(1, (1 << 30) // (4 * rows))  # queries whose scores take a GiB

    def product(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        gallery = x.to(dtype).T
        best = [(q[i : i + step].to(dtype) @ gallery).topk(k) for i in range(0, count, step)]
        return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])

    entries: Entries = {
        f"graceful_fast {scan}": partial(gf.knn, q, x, k, metric="ip", scan=scan),
        "matmul+topk float32": partial(product, torch.float32),
        "matmul+topk float16": partial(product, torch.float16),
    }
    if "faiss-gpu" not in absent:
        import faiss
        import faiss.contrib.torch_utils

        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim)
        index.add(x)
        entries["faiss-gpu"] = partial(index.search, q, k)
    if "cuVS" not in absent:
        from cuvs.neighbors import brute_force

        built = brute_force.build(x, metric="inner_product")
        entries["cuVS"] = partial(brute_force.search, built, q, k)

    def check() -> None:
        found, few = gf.knn(q, x, k, metric="ip", scan=scan), slice(0, 8)
        expected = (q[few].double() @ x.double().T).topk(k)
        assert torch.equal(found.indices[few], expected.indices)
        close(found.scores[few], expected.values, 1e-6)

    case = f"{count} x {rows} x {dim}, k={k}, {scan}"
    return Held(Contest("scan", case, entries, check, 2.0 * count * rows * dim, "op/s"), scan)


def retrieval(device: str, count: int, rows: int, dim: int) -> Held:
    """mAP and CMC by counting, beside the search that a truncated list starts from."""
    q, x = (torch.from_numpy(unit_vectors(n, dim, seed)).to(device) for n, seed in ((count, 1), (rows, 2)))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, rows // 20, count), rng.integers(0, rows // 20, rows)

    def check() -> None:
        few = gf.retrieval_metrics(q[:4], x, labels[0][:4], labels[1], metric="ip").per_query.map.cpu().numpy()
        order = np.argsort(-(q[:4].cpu().double() @ x.cpu().double().T).numpy(), axis=1)
        for found, ranking, label in zip(few, order, labels[0], strict=False):
            ranks = np.flatnonzero(labels[1][ranking] == label) + 1
            expected = np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else np.nan
            np.testing.assert_allclose(found, expected, atol=1e-9)

    entries: Entries = {
        "graceful_fast retrieval_metrics": partial(gf.retrieval_metrics, q, x, *labels, metric="ip"),
        "graceful_fast knn, k=10": partial(gf.knn, q, x, min(10, rows), metric="ip"),
    }
    case = f"mAP, CMC: {count} x {rows} x {dim}"
    return Held(Contest("metrics", case, entries, check, 2.0 * count * rows * dim, "op/s"), "float16")


def verification(device: str, rows: int, dim: int) -> Held:
    """All pairs of two sets by a histogram, beside their bare matrix product in blocks."""
    a, b = (torch.from_numpy(unit_vectors(rows, dim, seed)).to(device) for seed in (1, 2))
    labels = np.random.default_rng(0).integers(0, max(2, rows // 20), rows)

    def product() -> None:
        for i in range(0, rows, 4096):
            a[i : i + 4096] @ b.T

    def check() -> None:
        few = slice(0, 1000)
        found = gf.verification_metrics(a[few], b[few], labels[few], labels[few], metric="ip", far=(0.1,))
        own = gf.verification_metrics(a[few].cpu(), b[few].cpu(), labels[few], labels[few], metric="ip", far=(0.1,))
        assert found.threshold == own.threshold
        assert found.tar == own.tar

    entries: Entries = {
        "graceful_fast verification_metrics": partial(
            gf.verification_metrics, a, b, labels, labels, metric="ip", far=(0.1, 0.01)
        ),
        "matmul float32": product,
    }
    case = f"TAR@FAR: {rows} x {rows} x {dim}"
    return Held(Contest("metrics", case, entries, check, 2.0 * rows * rows * dim, "op/s"), "float16")


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """AssertionError unless the largest error is below `tolerance` of the largest value."""
    expected = expected.detach().cpu().double()
    error = (found.detach().cpu().double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, error.item()
