"""Objectives of backward-compatible training, and chains: formulas, who gets gradients, widths, class maps."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graceful_fast as gf
from graceful_fast.training import bct, chain

ROWS, DIM, CLASSES = 12, 6, 5


def batch(dim: int = DIM, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, logits, targets of all classes."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(ROWS, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    return embeddings, logits, torch.arange(ROWS) % CLASSES


def head(seed: int = 1, classes: int = CLASSES) -> torch.Tensor:
    return torch.randn(classes, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((value - expected).abs().max() <= 1e-6 * expected.abs().max())


def test_the_loss_is_the_own_one_and_the_influence_of_every_head() -> None:
    embeddings, logits, target = batch()
    heads = [gf.InfluenceLoss(head(seed), normalize=True, scale=scale) for seed, scale in ((1, 4.0), (2, 8.0))]
    loss = bct.BackwardCompatible(*heads, weight=3.0)((embeddings, logits), None, target)
    expected = F.cross_entropy(logits, target)
    for old in heads:
        cosine = F.normalize(embeddings) @ F.normalize(old.old_weight).T
        expected = expected + 3.0 * F.cross_entropy(old.options["scale"] * cosine, target)
    assert near(loss, expected)
    loss.backward()
    ours = embeddings.grad.clone()
    embeddings.grad = None
    expected.backward()
    assert near(ours, embeddings.grad)
    assert not any(parameter.requires_grad for parameter in bct.BackwardCompatible(*heads).parameters())
    assert all(old.old_weight.grad is None for old in heads)


def test_the_criterion_replaces_the_own_loss_only() -> None:
    embeddings, logits, target = batch()
    old = gf.InfluenceLoss(head(), normalize=True)
    objective = bct.BackwardCompatible(old, criterion=lambda logits, target: logits.sum() * 0 + 7)
    assert near(objective((embeddings, logits), None, target), 7 + old(embeddings, target))


@pytest.mark.parametrize("margin_type", ["cosine", "arc"])
def test_a_margin_asks_more_of_the_targets_cosine(margin_type: str) -> None:
    embeddings, logits, target = batch()
    old = gf.InfluenceLoss(head(), normalize=True, scale=4.0, margin=0.2, margin_type=margin_type)
    cosine = F.normalize(embeddings) @ F.normalize(head()).T
    own = cosine.gather(1, target[:, None])
    moved = own - 0.2 if margin_type == "cosine" else torch.cos(torch.acos(own) + 0.2)
    expected = F.cross_entropy(4.0 * cosine.scatter(1, target[:, None], moved), target)
    loss = bct.BackwardCompatible(old)((embeddings, logits), None, target)
    assert near(loss, F.cross_entropy(logits, target) + expected)


def test_the_share_counts_rows_that_the_old_head_knows() -> None:
    embeddings, logits, target = batch()
    target[0] = -100
    class_map = torch.tensor([2, -1, 0, -1, 1])
    old = gf.InfluenceLoss(head(classes=3), normalize=True, class_map=class_map)
    everything = gf.InfluenceLoss(head(), normalize=True)
    objective = bct.BackwardCompatible(old, everything)
    loss = objective((embeddings, logits), None, target)
    known = [i for i in range(1, ROWS) if class_map[target[i]] >= 0]
    assert objective.share.tolist() == pytest.approx([len(known) / ROWS, (ROWS - 1) / ROWS])
    cosine = F.normalize(embeddings[known]) @ F.normalize(head(classes=3)).T
    expected = F.cross_entropy(cosine, class_map[target[known]])  # the mean is over the known rows
    assert near(loss, F.cross_entropy(logits, target) + expected + everything(embeddings, target))
    loss.backward()
    none_known = bct.BackwardCompatible(gf.InfluenceLoss(head(classes=3), class_map=torch.full((CLASSES,), -1)))
    assert near(none_known((embeddings, logits), None, target), F.cross_entropy(logits, target))
    assert none_known.share.tolist() == [0.0]


@pytest.mark.parametrize("dim", [DIM - 2, DIM, DIM + 3])
def test_embeddings_of_another_width_meet_the_old_head_as_they_meet_the_old_gallery(dim: int) -> None:
    embeddings, logits, target = batch(dim)
    shared = min(dim, DIM)
    fitted = bct.fit_width(embeddings, DIM)
    assert fitted.shape == (ROWS, DIM)
    assert torch.equal(fitted[:, :shared], embeddings[:, :shared])
    assert not fitted[:, shared:].any()
    loss = bct.BackwardCompatible(gf.InfluenceLoss(head(), normalize=True, scale=4.0))(
        (embeddings, logits), None, target
    )
    cosine = F.normalize(embeddings[:, :shared]) @ F.normalize(head())[:, :shared].T
    expected = F.cross_entropy(logits, target) + F.cross_entropy(4.0 * cosine, target)
    assert near(loss, expected)
    loss.backward()
    assert embeddings.grad[:, :shared].any()
    assert not embeddings.grad[:, shared:].any()


def test_new_classes_get_mean_old_features_and_known_ones_keep_their_rows() -> None:
    features, _, target = batch()
    class_map = torch.tensor([-1, 1, -1, 0, -1])
    made = bct.synthesised_head(features, target, classes=CLASSES, old_weight=head(classes=2), class_map=class_map)
    for label in range(CLASSES):
        kept = class_map[label] >= 0
        expected = head(classes=2)[class_map[label]] if kept else features[target == label].mean(0)
        assert near(made[label], expected), label
    assert not made.requires_grad
    every = bct.synthesised_head(features.float(), target, classes=CLASSES)
    assert every.dtype == torch.float32
    assert near(every, torch.stack([features[target == label].mean(0) for label in range(CLASSES)]).float())


def test_a_head_that_cannot_be_synthesised_says_why() -> None:
    features, _, target = batch()
    with pytest.raises(ValueError, match="a sample of every class to synthesise, got none of class 5"):
        bct.synthesised_head(features, target, classes=CLASSES + 1)
    with pytest.raises(IndexError, match=r"target: expected 0\.\.3, got 0\.\.4"):
        bct.synthesised_head(features, target, classes=4)
    with pytest.raises(ValueError, match=r"expected shapes \(N, D\) and \(N,\)"):
        bct.synthesised_head(features, target[1:], classes=CLASSES)
    with pytest.raises(ValueError, match="expected both or neither"):
        bct.synthesised_head(features, target, classes=CLASSES, old_weight=head())
    known, narrow = torch.arange(CLASSES), head()[:, :-1]
    with pytest.raises(ValueError, match=r"class_map: expected \(5,\) of -1\.\.1, got \[0, 1, 2, 3, 4\]"):
        bct.synthesised_head(features, target, classes=CLASSES, old_weight=head(classes=2), class_map=known)
    with pytest.raises(ValueError, match=r"old_weight: expected \(C, 6\), got \(5, 5\)"):
        bct.synthesised_head(features, target, classes=CLASSES, old_weight=narrow, class_map=known)


class Old(nn.Module):
    """With dropout, which eval mode turns off, and a parameter, which is to get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, DIM, dtype=torch.float64), nn.Dropout(0.5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.layers(inputs)
        return rows


@pytest.mark.parametrize("new_negatives", [True, False])
def test_hot_refresh_is_the_sum_over_other_targets_row_by_row(new_negatives: bool) -> None:
    embeddings, logits, target = batch()
    old, inputs = Old(), batch(seed=3)[0].detach()
    objective = bct.HotRefresh(old, temperature=0.5, new_negatives=new_negatives, weight=2.0).train()
    loss = objective((embeddings, logits), inputs, target)
    new_rows, old_rows = F.normalize(embeddings), F.normalize(old(inputs))
    terms = []
    for i in range(ROWS):
        positive = torch.exp(new_rows[i] @ old_rows[i] / 0.5)
        total = positive
        for j in range(ROWS):
            if target[j] != target[i]:
                total = total + torch.exp(new_rows[i] @ old_rows[j] / 0.5)
                total = total + torch.exp(new_rows[i] @ new_rows[j] / 0.5) * new_negatives
        terms.append(-torch.log(positive / total))
    assert near(loss, F.cross_entropy(logits, target) + 2.0 * torch.stack(terms).mean())
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.any()
    assert all(parameter.grad is None for parameter in old.parameters())


def test_hot_refresh_of_one_class_has_nothing_to_contrast() -> None:
    embeddings, logits, target = batch()
    target = torch.zeros_like(target)
    loss = bct.HotRefresh(Old())((embeddings, logits), batch(seed=3)[0], target)
    assert near(loss, F.cross_entropy(logits, target))
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()


def test_l2_is_the_squared_distance_of_unit_embeddings() -> None:
    embeddings, logits, target = batch()
    inputs = batch(seed=3)[0].detach()
    old = Old()
    loss = bct.L2Compatible(old, weight=0.5)((embeddings, logits), inputs, target)
    cosine = F.cosine_similarity(embeddings, old(inputs))
    assert near(loss, F.cross_entropy(logits, target) + 0.5 * (2 - 2 * cosine).mean())
    loss.backward()
    assert all(parameter.grad is None for parameter in old.parameters())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    for make in (
        lambda: bct.BackwardCompatible(gf.InfluenceLoss(head()), weight=weight),
        lambda: bct.L2Compatible(Old(), weight=weight),
        lambda: bct.HotRefresh(Old(), weight=weight),
    ):
        with pytest.raises(ValueError, match="weight: expected a finite number, 0 or more"):
            make()


def test_other_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="heads: expected at least one InfluenceLoss, got none"):
        bct.BackwardCompatible()
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        bct.HotRefresh(Old(), temperature=0.0)


def points(rotation: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes around directions of their own, 40 of each."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(120) % 3
    return (torch.eye(3)[target] + 0.4 * torch.randn(120, 3, generator=generator)) @ rotation, target


def test_training_turns_the_new_space_into_the_old_one() -> None:
    """The mechanism at its smallest: a model of another basis finds the old gallery by the influence loss alone."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(3, 3))[0]
    old_rows, target = points(torch.eye(3), 1)
    inputs, _ = points(basis, 2)
    ids = torch.arange(len(target))

    def across(objective: bct.BackwardCompatible | None) -> float:
        torch.manual_seed(1)
        model, own = nn.Linear(3, 3), nn.Linear(3, 3)
        optimizer = torch.optim.Adam([*model.parameters(), *own.parameters()], lr=0.05)
        for _ in range(150):
            embeddings = model(inputs)
            output = (embeddings, own(embeddings))
            loss = F.cross_entropy(output[1], target) if objective is None else objective(output, inputs, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            queries = model(inputs)
        return gf.retrieval_metrics(queries, old_rows, target, target, query_ids=ids, gallery_ids=ids).map

    before = gf.retrieval_metrics(old_rows, old_rows, target, target, query_ids=ids, gallery_ids=ids).map
    old_head = gf.InfluenceLoss(bct.synthesised_head(old_rows, target, classes=3), normalize=True, scale=4.0)
    assert across(bct.BackwardCompatible(old_head)) > before > across(None)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("none", [(), (), (), ()]),
        ("previous", [(), (0,), (1,), (2,)]),
        ("first", [(), (0,), (0,), (0,)]),
        ("last", [(), (), (), (0, 1, 2)]),
        ("all", [(), (0,), (0, 1), (0, 1, 2)]),
    ],
)
def test_what_a_version_must_fit(policy: chain.Policy, expected: list[tuple[int, ...]]) -> None:
    assert [chain.must_fit(policy, version, 4) for version in range(4)] == expected


def test_bad_chains_are_refused() -> None:
    with pytest.raises(ValueError, match="policy: expected one of none, previous, first, last, all, got 'next'"):
        chain.must_fit("next", 0, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"version: expected 0\.\.1, got 2"):
        chain.must_fit("all", 2, 2)
    for bad in ([[0.5]], [[0.5], [0.6]], []):
        with pytest.raises(ValueError, match="matrix: expected 2 rows or more"):
            chain.average_compatibility(bad)


def test_average_compatibility_counts_strict_wins_over_each_gallerys_own_version() -> None:
    for wins in itertools.product([False, True], repeat=3):
        matrix = [[0.5], [0.6 if wins[0] else 0.5, 0.7], [0.51 if wins[1] else 0.4, 0.71 if wins[2] else 0.7, 0.2]]
        assert chain.average_compatibility(matrix) == pytest.approx(sum(wins) / 3)
    assert chain.average_compatibility([[0.0], [0.1, 0.0]]) == 1.0  # a metric of 0 counts like any other
