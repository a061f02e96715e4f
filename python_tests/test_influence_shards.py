"""influence_loss with the classes sharded over processes: the unsharded loss and gradient, on every rank."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import graceful_fast as gf

CLASSES = 41
OPTIONS = [
    {},
    {"reduction": "sum", "old_bias": True},
    {"reduction": "none", "label_smoothing": 0.2, "old_bias": True},
    {"normalize": True, "scale": 12.0},
    {"normalize": True, "scale": 12.0, "margin": 0.3, "label_smoothing": 0.1, "old_bias": True},
    {"normalize": True, "scale": 12.0, "margin": 0.5, "margin_type": "arc", "reduction": "none"},
    {"class_map": True, "normalize": True, "margin": 0.2, "margin_type": "arc"},
    {"class_map": True, "reduction": "none"},
    {"count": 3.0, "workspace_bytes": 200},
]


def check_rank(rank: int, world: int, bounds: list[int], store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    group = dist.group.WORLD
    first, last = bounds[rank], bounds[rank + 1]
    generator = torch.Generator().manual_seed(0)
    weight, all_bias = torch.randn(CLASSES, 10, generator=generator), torch.randn(CLASSES, generator=generator)
    class_map = torch.tensor([40, -1, 0, 7, 39])
    for rows in (9, 0):
        features = torch.randn(rows, 13, generator=generator)
        whole_target = torch.tensor([0, 40, 39, 7, 3, -100, 20, 38, 1])[:rows]
        for case in OPTIONS:
            options = {**case, "class_map": class_map if "class_map" in case else None}
            target = whole_target.clone()
            if "class_map" in case:
                target = target.where(target == -100, target % 5)
            bias = all_bias if options.pop("old_bias", False) else None

            def run(weight, bias, features=features, target=target, options=options, **shard):
                leaf = features.clone().requires_grad_()
                loss = gf.influence_loss(leaf, weight, target, old_bias=bias, **options, **shard)
                loss.backward(torch.arange(1.0, 1 + len(loss)) if loss.dim() else None, retain_graph=True)
                once = leaf.grad.clone()
                loss.backward(torch.arange(1.0, 1 + len(loss)) if loss.dim() else None)  # the graph can be used again
                torch.testing.assert_close(leaf.grad, 2 * once)
                return loss.detach(), once

            expected, expected_gradient = run(weight, bias)
            shard_bias = None if bias is None else bias[first:last]
            loss, gradient = run(weight[first:last], shard_bias, group=group, first_class=first)
            torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-7)
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
            everywhere = [torch.empty_like(loss) for _ in range(world)]
            dist.all_gather(everywhere, loss)
            assert all(torch.equal(loss, other) for other in everywhere)
    shard = {"group": group, "first_class": first}
    for bad in (41, 1 << 40):
        with pytest.raises(IndexError, match=f"target: expected 0 <= target < 41, got {bad} at row 1"):
            gf.influence_loss(torch.ones(2, 10), weight[first:last], torch.tensor([0, bad]), **shard)
    wrong = torch.tensor([0, 41])
    with pytest.raises(ValueError, match=r"class_map: expected -1\.\.40, got 41 at entry 1"):
        gf.influence_loss(torch.ones(1, 10), weight[first:last], torch.tensor([0]), class_map=wrong, **shard)
    with pytest.raises(ValueError, match=r"first_class: expected shards that cover 0..C-1 once, got 0\.\."):
        gf.influence_loss(
            torch.ones(1, 10), weight[first:last], torch.tensor([0]), group=group, first_class=first + (rank > 0)
        )
    module = gf.InfluenceLoss(weight[first:last], **shard)
    value = module(torch.ones(2, 10), torch.tensor([0, 40]))
    torch.testing.assert_close(value, gf.influence_loss(torch.ones(2, 10), weight, torch.tensor([0, 40])))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("bounds", [[0, 1, CLASSES], [0, 20, 21, CLASSES]])  # one shard is a single class
def test_every_rank_gets_the_loss_and_gradient_of_the_whole_head(bounds: list[int], tmp_path: Path) -> None:
    world = len(bounds) - 1
    code = "import sys, torch; torch.set_num_threads(1); import test_influence_shards as t; "
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
