"""The linear loss with classes sharded over processes, and losses under DistributedDataParallel with uneven batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import graceful_fast as gf

ROWS, CLASSES, WIDTH, OLD_WIDTH = 9, 41, 12, 10
HEADS = ("old_logits", "old_head", "old_head_and_bias")
OPTIONS = [
    {},
    {"reduction": "sum", "temperature": 2.0, "bias": False},
    {"divergence": "logits", "label_smoothing": 0.2},
    {"divergence": "ldi", "reduction": "none"},
    {"divergence": "ldi", "ldi_margin": 0.1, "exclude_target": True, "label_smoothing": 0.1},
    {"reduction": "none", "focus": "negative_flip", "temperature": 1.0, "workspace_bytes": 500},
    {"focus": "new_incorrect", "alpha": 0.0, "beta": 2.0},
    {"focus": torch.linspace(0, 2, ROWS), "cross_entropy_weight": 0.5},
    {"count": 3.0, "workspace_bytes": 1},
    {"ignore_index": 39, "temperature": 20.0},
]


def assert_near(value: torch.Tensor, expected: torch.Tensor, what: object, tolerance: float = 1e-6) -> None:
    """Within `tolerance` of the greatest; a NaN is never near."""
    assert value.shape == expected.shape, what
    assert value.dtype == expected.dtype, what
    if value.numel():
        error, bound = (value - expected).abs().max(), tolerance * expected.abs().max()
        assert error <= bound, (what, error, bound)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Batch:
    """A new model like the old one, the same on every rank."""

    def __init__(self, rows: int = ROWS, classes: int = CLASSES, old_classes: int = CLASSES) -> None:
        k = min(classes, old_classes)
        self.old_features = normal(rows, OLD_WIDTH, seed=1)
        self.old_weight, self.old_bias = normal(old_classes, OLD_WIDTH, seed=2), normal(old_classes, seed=3)
        self.features, self.weight = normal(rows, WIDTH, seed=4), normal(classes, WIDTH, seed=5) * 0.5
        self.features[:, :OLD_WIDTH] = self.old_features + 0.4 * self.features[:, :OLD_WIDTH]
        self.weight[:k, :OLD_WIDTH] = self.old_weight[:k] + 0.4 * self.weight[:k, :OLD_WIDTH]
        self.bias = normal(classes, seed=6)
        self.target = torch.tensor([0, 40, 39, 7, 3, -100, 20, 38, 1])[:rows]
        self.old_logits = self.old_features @ self.old_weight.T + self.old_bias
        if rows:
            self.target[::2] = self.old_logits[::2].argmax(1)

    def teacher(self, kind: str, columns: slice = slice(None)) -> dict[str, torch.Tensor]:
        if kind == "old_logits":
            return {"old_logits": self.old_logits[:, columns]}
        if not len(self.old_weight[columns]):  # a head has at least one class
            return {"old_logits": torch.zeros(len(self.features), 0)}
        head = {"old_features": self.old_features, "old_weight": self.old_weight[columns]}
        return head if kind == "old_head" else {**head, "old_bias": self.old_bias[columns]}


def run(batch, classes, teacher, frozen=(), **options):
    """Loss, and gradients of features, weight and bias, for `classes` of the new head."""
    features, weight = batch.features.clone().requires_grad_(), batch.weight[classes].clone().requires_grad_()
    bias = batch.bias[classes].clone().requires_grad_() if options.pop("bias", True) else None
    for name in frozen:
        {"features": features, "weight": weight}[name].requires_grad_(False)
    target = batch.target.where(batch.target != -100, options.get("ignore_index", -100))
    loss = gf.linear_focal_distillation_loss(features, weight, target, bias=bias, **teacher, **options)
    incoming = torch.linspace(-1, 2, len(loss)) if loss.dim() else None
    loss.backward(incoming, retain_graph=True)
    once = [None if x is None or x.grad is None else x.grad.clone() for x in (features, weight, bias)]
    loss.backward(incoming)  # the graph can be used again
    for x, gradient in zip((features, weight, bias), once, strict=True):
        assert x is None or gradient is None or torch.equal(x.grad, 2 * gradient)
    return loss.detach(), once


def check_shards(batch, rank, bounds, old_bounds, teachers, options, maps=None, frozen=()):
    """This rank's loss and gradients are those of the whole; the loss has the same bits on all ranks."""
    group, world = dist.group.WORLD, dist.get_world_size()
    classes, columns = slice(bounds[rank], bounds[rank + 1]), slice(old_bounds[rank], old_bounds[rank + 1])
    mine, whole = ({}, {}) if maps is None else ({"class_map": maps[rank]}, {"class_map": joined(maps, old_bounds)})
    for kind in teachers:
        expected, gradients = run(batch, slice(None), batch.teacher(kind), frozen, **options, **whole)
        loss, shards = run(
            batch,
            classes,
            batch.teacher(kind, columns),
            frozen,
            **options,
            **mine,
            group=group,
            first_class=classes.start,
        )
        what = (rank, kind, options)
        assert_near(loss, expected, what)
        for i, (shard, gradient) in enumerate(zip(shards, gradients, strict=True)):
            assert (shard is None) == (gradient is None), what
            if gradient is not None:
                scale = gradient.abs().max() if gradient.numel() else torch.tensor(0.0)
                part = gradient if i == 0 else gradient[classes]
                assert shard.shape == part.shape, what
                assert shard.numel() == 0 or (shard - part).abs().max() <= 1e-6 * scale, what
        everywhere = [torch.empty_like(loss) for _ in range(world)]
        dist.all_gather(everywhere, loss)
        assert all(torch.equal(loss, other) for other in everywhere), what


def joined(maps, old_bounds):
    """The class map of the whole head."""
    return torch.cat([m.where(m < 0, m + first) for m, first in zip(maps, old_bounds, strict=False)])


def class_maps(bounds, old_bounds):
    """For each rank: some of its classes, shuffled, have an old one of its columns."""
    maps = []
    for rank in range(len(bounds) - 1):
        classes, old = bounds[rank + 1] - bounds[rank], old_bounds[rank + 1] - old_bounds[rank]
        shared = min(classes, old, max(1, classes // 2)) if old else 0
        generator = torch.Generator().manual_seed(rank)
        local = torch.full((classes,), -1)
        local[torch.randperm(classes, generator=generator)[:shared]] = torch.randperm(old, generator=generator)[:shared]
        maps.append(local)
    return maps


def check_arguments(batch, rank, bounds) -> None:
    """What is wrong on any rank raises on all of them, and the group can be used afterwards."""
    first, last = bounds[rank], bounds[rank + 1]
    shard = {"group": dist.group.WORLD, "first_class": first}
    mine = slice(first, last)
    for bad in (-1, CLASSES, 1 << 40):
        target = batch.target.clone()
        target[1] = bad
        with pytest.raises((IndexError, RuntimeError), match=f"target: expected 0 <= target < 41.* got {bad} at row 1"):
            gf.linear_focal_distillation_loss(
                batch.features, batch.weight[mine], target, **batch.teacher("old_head", mine), **shard
            )
    for wrong in (first + (rank > 0), first + 1, 0):  # a gap, no class 0, the same classes everywhere
        with pytest.raises(ValueError, match=r"first_class: expected shards that cover 0..C-1 once, got \d+\.\."):
            gf.linear_focal_distillation_loss(
                batch.features,
                batch.weight[mine],
                batch.target,
                **batch.teacher("old_head", mine),
                group=dist.group.WORLD,
                first_class=wrong,
            )
    for wrong in (-1, 1.0):
        with pytest.raises(ValueError, match="first_class: expected the number of this rank's first class"):
            gf.linear_focal_distillation_loss(
                batch.features,
                batch.weight[mine],
                batch.target,
                **batch.teacher("old_head", mine),
                group=dist.group.WORLD,
                first_class=wrong,
            )
    module = gf.LinearFocalDistillationLoss(divergence="ldi", **shard)
    value = module(batch.features, batch.weight[mine], batch.target, **batch.teacher("old_head", mine))
    plain = gf.LinearFocalDistillationLoss(divergence="ldi")
    assert_near(value, plain(batch.features, batch.weight, batch.target, **batch.teacher("old_head")), "module")


# --- DistributedDataParallel ------------------------------------------------------------------------------------------

LOSSES = {
    "distill": lambda net, x, y, old, count: gf.focal_distillation_loss(
        net.head(net.backbone(x)), old @ OLD_HEAD.T, y, count=count
    ),
    "influence": lambda net, x, y, old, count: gf.influence_loss(net.backbone(x), OLD_HEAD, y, count=count),
    "linear": lambda net, x, y, old, count: gf.linear_focal_distillation_loss(
        net.backbone(x), net.head.weight, y, bias=net.head.bias, old_features=old, old_weight=OLD_HEAD, count=count
    ),
}
OLD_HEAD = normal(CLASSES, OLD_WIDTH, seed=9)


class Net(torch.nn.Module):
    """A backbone and a head, whose forward is a loss: all parameters are used inside."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.loss = torch.nn.Linear(7, WIDTH), loss
        if loss != "influence":
            self.head = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, x, target, old_features, count):
        return LOSSES[self.loss](self, x, target, old_features, count)


def check_ddp(rank: int, world: int) -> None:
    """Averaged gradients are those of the mean over the whole batch, however its rows are spread."""
    x, old = normal(12, 7, seed=7), normal(12, OLD_WIDTH, seed=8)
    target = torch.randint(0, CLASSES, (12,), generator=torch.Generator().manual_seed(0))
    target[::2] = (old @ OLD_HEAD.T)[::2].argmax(1)
    target[3] = -100
    bounds = {2: [0, 9, 12], 3: [0, 2, 9, 12]}[world]
    none_on_last = target.clone()
    none_on_last[9:] = -100
    nothing = torch.full_like(target, -100)
    no_rows = {2: [0, 12, 12], 3: [0, 5, 12, 12]}[world]
    for loss in LOSSES:
        for y, rows in ((target, bounds), (none_on_last, bounds), (target, no_rows), (nothing, bounds)):
            mine = slice(rows[rank], rows[rank + 1])
            count = gf.global_count(y[mine])
            assert count == max(1, int((y != -100).sum())) / world
            assert torch.equal(count, gf.global_count(y[mine], dist.group.WORLD))
            whole, net = Net(loss), Net(loss)
            whole(x, y, old, None).backward()
            parallel = DistributedDataParallel(net)
            parallel(x[mine], y[mine], old[mine], count).backward()
            for (name, parameter), other in zip(net.named_parameters(), whole.parameters(), strict=True):
                assert y is nothing or other.grad.abs().max() > 0
                assert_near(parameter.grad, other.grad, (loss, name, rank, rows), 2e-6)
    zero = torch.where(target == -100, 3, target)
    counted = int((zero != 3).sum()) / world
    assert gf.global_count(zero[bounds[rank] : bounds[rank + 1]], ignore_index=3) == counted


# --- one spawn a world size -------------------------------------------------------------------------------------------


def check_rank(rank: int, world: int, bounds: list[int], store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    batch = Batch()
    for options in OPTIONS:
        check_shards(batch, rank, bounds, bounds, HEADS, options)
    for frozen in (("features",), ("weight",), ("features", "weight")):
        check_shards(batch, rank, bounds, bounds, HEADS[1:2], {}, frozen=frozen)
    for rows in (Batch(rows=0), Batch()):
        rows.target[:] = -100
        for reduction in ("mean", "none"):
            check_shards(rows, rank, bounds, bounds, HEADS, {"reduction": reduction})
    for old_classes in (bounds[1] - 1 or 1, bounds[1], bounds[1] + 5):  # the last ranks have few old classes or none
        narrow = Batch(old_classes=old_classes)
        old_bounds = [min(bound, old_classes) for bound in bounds]
        for divergence, focus in (("kl", "old_correct"), ("logits", "negative_flip"), ("ldi", "new_incorrect")):
            options = {"divergence": divergence, "focus": focus, "temperature": 5.0}
            check_shards(narrow, rank, bounds, old_bounds, HEADS, options)
    for old_bounds in (bounds, [0, 30, *[35] * (world - 2), 36], [0, 0, *[3] * (world - 2), 60]):
        mapped = Batch(old_classes=old_bounds[-1])
        maps = class_maps(bounds, old_bounds)
        known = (joined(maps, old_bounds) >= 0).nonzero()[:, 0]
        columns = joined(maps, old_bounds)[known]
        mapped.target[::2] = known[mapped.old_logits[::2][:, columns].argmax(1)]
        for divergence in ("kl", "logits", "ldi"):
            options = {"divergence": divergence, "label_smoothing": 0.1, "workspace_bytes": 700}
            check_shards(mapped, rank, bounds, old_bounds, HEADS, options, maps)
    check_arguments(batch, rank, bounds)
    check_ddp(rank, world)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("bounds", [[0, 12, CLASSES], [0, 20, 21, CLASSES]])  # one shard is a single class
def test_every_rank_gets_the_loss_and_gradients_of_the_whole(bounds: list[int], tmp_path: Path) -> None:
    world = len(bounds) - 1
    code = "import sys, torch; torch.set_num_threads(1); import test_linear_shards as t; "
    code += f"t.check_rank(int(sys.argv[1]), {world}, {bounds}, {str(tmp_path / 'store')!r})"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(outputs)
