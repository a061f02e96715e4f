"""For those who cannot retrain: maps and their direction, the cascade, galleries in the middle of a backfill."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import graceful_fast as gf
from graceful_fast import reference_metrics
from graceful_fast.update.backfill import area, backfilled, by_distance, by_uncertainty, joined_by_rank, joined_by_score
from graceful_fast.update.cascade import cascade
from graceful_fast.update.maps import fit_map
from graceful_fast.update.matrix import update_gain

RNG = np.random.default_rng(0)


def two_spaces(n: int, old_dim: int, new_dim: int, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """The same items seen by two models: rotated, shifted, with noise."""
    latent = RNG.normal(size=(n, min(old_dim, new_dim)))
    spaces = []
    for dim in (old_dim, new_dim):
        basis = np.linalg.qr(RNG.normal(size=(dim, dim)))[0][: latent.shape[1]]
        spaces.append(latent @ basis + 0.5 + noise * RNG.normal(size=(n, dim)))
    return spaces[0], spaces[1]


def hit(queries: np.ndarray, gallery: np.ndarray) -> float:
    """Share of the queries that find the same item in the other space."""
    found = gf.knn(queries.astype(np.float32), gallery.astype(np.float32), 1, metric="l2").indices[:, 0]
    return float((found == np.arange(len(queries))).mean())


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
@pytest.mark.parametrize(("old_dim", "new_dim"), [(8, 8), (6, 9), (9, 6)])
def test_a_map_lets_real_queries_find_their_items_and_its_reverse_does_not(
    method: str, old_dim: int, new_dim: int
) -> None:
    old, new = two_spaces(400, old_dim, new_dim)
    fit, held = slice(0, 300), slice(300, None)
    to_old = fit_map(new[fit], old[fit], source="new", target="old", method=method)
    queries = to_old(new[held], source="new", target="old")
    assert queries.dtype == np.float32
    assert hit(queries, old[held]) > 0.95
    if old_dim == new_dim:
        backwards = (new[held] - to_old.source_mean) @ to_old.matrix.T + to_old.target_mean
        assert hit(backwards, old[held]) < 0.2
        assert hit(new[held], old[held]) < 0.2


def test_the_wrong_direction_or_width_is_refused() -> None:
    old, new = two_spaces(50, 8, 8)
    to_old = fit_map(new, old, source="new", target="old")
    for source, target in (("old", "new"), ("new", "new"), ("other", "old")):
        with pytest.raises(ValueError, match=f"expected the map's 'new' to 'old', got '{source}' to '{target}'"):
            to_old(new, source=source, target=target)
    with pytest.raises(ValueError, match="embeddings: expected 8 columns, got 7"):
        to_old(new[:, :7], source="new", target="old")


def test_procrustes_is_a_rotation_and_a_factor_and_ridge_the_least_squares() -> None:
    old, new = two_spaces(300, 8, 8)
    rigid = fit_map(new, 3 * old, source="new", target="old").matrix
    gram = rigid.T @ rigid
    assert np.allclose(gram, gram[0, 0] * np.eye(8), rtol=1e-9, atol=1e-9)
    centred, wanted = new - new.mean(0), 3 * (old - old.mean(0))

    def loss(matrix: np.ndarray) -> float:
        return float(((centred @ matrix - wanted) ** 2).sum())

    free = fit_map(new, 3 * old, source="new", target="old", method="ridge", ridge=1e-9).matrix
    assert np.allclose(free, np.linalg.lstsq(centred, wanted, rcond=None)[0], atol=1e-5)
    assert loss(free) < loss(rigid) < min(loss(1.01 * rigid), loss(0.99 * rigid))
    turn = np.eye(8)
    turn[:2, :2] = [[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]
    assert loss(rigid) < min(loss(rigid @ turn), loss(rigid @ turn.T))


def test_maps_that_cannot_be_fitted_say_why() -> None:
    rows = RNG.normal(size=(5, 3))
    for arguments, reason in (
        ((rows, rows[:4]), "target_embeddings: expected the same 2 rows or more on both sides, got 5 and 4"),
        ((rows[:1], rows[:1]), "expected the same 2 rows or more"),
        ((rows[0], rows), r"source_embeddings: expected shape \(N, D\)"),
        ((rows * np.nan, rows), "source_embeddings: expected finite numbers, got nan"),
        ((rows * 0, rows), "source_embeddings: expected rows that differ"),
    ):
        with pytest.raises(ValueError, match=reason):
            fit_map(*arguments, source="new", target="old")
    with pytest.raises(ValueError, match="target: expected another name"):
        fit_map(rows, rows, source="new", target="new")
    with pytest.raises(ValueError, match="method: expected procrustes or ridge, got 'affine'"):
        fit_map(rows, rows, source="new", target="old", method="affine")  # type: ignore[arg-type]
    for ridge in (0, -1, np.nan):
        with pytest.raises(ValueError, match="ridge: expected a positive number"):
            fit_map(rows, rows, source="new", target="old", method="ridge", ridge=ridge)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_cascade_over_everything_is_the_new_models_search(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(40, 5, generator=generator)
    new = torch.randint(-2, 3, (40, 7), generator=generator).float() + 0.5  # with ties
    ids = {"query_ids": torch.arange(10), "gallery_ids": torch.arange(40)}
    found = cascade(old[:10], old, new[:10], new.__getitem__, 6, shortlist=40, metric=metric, **ids)
    expected = gf.knn(new[:10], new, 6, metric=metric, **ids)
    assert torch.equal(found.indices, expected.indices)
    assert bool(((found.scores - expected.scores).abs() <= 1e-6 * expected.scores.abs().clamp(min=1)).all())


def test_a_short_cascade_orders_the_old_models_rows_by_the_new_model() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(300, 5, generator=generator), torch.randn(300, 7, generator=generator)
    asked = []

    def embed(rows: torch.Tensor) -> torch.Tensor:
        asked.append(rows)
        return new[rows]

    found = cascade(old, old, new, embed, 2, shortlist=4)
    near = gf.knn(old, old, 4).indices
    scores = torch.einsum("qd,qkd->qk", F.normalize(new), F.normalize(new)[near])
    for query in range(300):
        assert found.indices[query].tolist() == near[query][scores[query].argsort(descending=True)[:2]].tolist()
    assert len(asked) == 2  # blocks of 256 queries
    assert all(bool((rows.diff() > 0).all()) for rows in asked)


def test_rows_that_are_missing_and_no_queries() -> None:
    rows = torch.eye(3)
    ids = torch.arange(3)
    found = cascade(rows, rows, rows, rows.__getitem__, 3, shortlist=3, query_ids=ids, gallery_ids=ids)
    assert found.indices.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1]]
    assert found.scores[:, 2].tolist() == [-torch.inf] * 3
    assert cascade(rows[:0], rows, rows[:0], rows.__getitem__, 2, shortlist=2).indices.shape == (0, 2)


def test_a_cascade_with_wrong_numbers_is_refused() -> None:
    rows = torch.eye(3)
    with pytest.raises(ValueError, match=r"k: expected 1\.\.2, the shortlist, got 3"):
        cascade(rows, rows, rows, rows.__getitem__, 3, shortlist=2)
    with pytest.raises(ValueError, match="new_queries: expected 3 rows as old_queries, got 2"):
        cascade(rows, rows, rows[:2], rows.__getitem__, 1, shortlist=2)
    with pytest.raises(ValueError, match=r"new_embeddings: expected \(3, 3\), got \(3, 2\)"):
        cascade(rows, rows, rows, lambda found: rows[found, :2], 1, shortlist=2)


def test_orders_of_a_backfill() -> None:
    logits = torch.tensor([[50.0, -torch.inf], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    assert by_uncertainty(logits).tolist() == [1, 3, 2, 0]
    rows = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, 3.0], [0.2, 1.0], [0.0, 1.0]])
    assert by_distance(rows, [0, 0, 7, 7, 7])[0] == 3
    assert sorted(by_distance(rows, [0, 0, 7, 7, 7]).tolist()) == list(range(5))
    with pytest.raises(ValueError, match="labels: expected 5 as rows of old_gallery, got 4"):
        by_distance(rows, [0, 0, 7, 7])
    assert [int(backfilled([2, 0, 1], fraction).sum()) for fraction in (0, 0.3, 0.34, 1)] == [0, 0, 1, 3]
    with pytest.raises(ValueError, match=r"fraction: expected 0\.\.1, got 1.5"):
        backfilled([0], 1.5)


def test_merging_by_score_ranks_each_half_by_its_own_models_cosine() -> None:
    old, new = (torch.from_numpy(rows).float() for rows in two_spaces(30, 5, 7))
    done = backfilled(torch.randperm(30, generator=torch.Generator().manual_seed(0)), 0.4)
    index = joined_by_score(3 * old, new, old, 2 * new, done)
    expected = F.cosine_similarity(new[:, None], new, dim=2).where(done, F.cosine_similarity(old[:, None], old, dim=2))
    assert bool((index.queries @ index.gallery.T - expected).abs().max() <= 1e-5)


def test_merging_by_rank_knows_no_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    done = torch.tensor([True, False, False] * 3)
    merged = joined_by_rank(old, new, done)
    assert torch.equal(merged, joined_by_rank((5 * old).exp(), new + 100, done))
    for half, scores in ((done, new), (~done, old)):
        assert torch.equal(merged[:, half].argsort(dim=1), scores[:, half].argsort(dim=1))
    assert torch.equal(joined_by_rank(old, new, torch.ones(9, dtype=torch.bool)).argsort(), new.argsort())


def test_area_under_a_backfill() -> None:
    assert area([0, 1], [0.2, 0.4]) == pytest.approx(0.3)
    assert area([0, 0.5, 1], [0.4, 0.4, 0.8]) == pytest.approx(0.5)
    for fractions in ([0, 0.5], [0.5, 1], [0, 0.7, 0.3, 1], [0, 0.5, 1, 1]):
        with pytest.raises(ValueError, match="fractions: expected 3 from 0 to 1, ascending"):
            area(fractions, [0.1, 0.2, 0.3])


def test_update_gain_is_undefined_where_the_paragon_is_no_better() -> None:
    assert update_gain(0.4, 0.3, 0.6) == pytest.approx(-0.5)
    assert np.isnan([update_gain(0.4, 0.5, 0.4), update_gain(0.4, 0.5, 0.3)]).all()


def test_quality_of_scores_is_that_of_embeddings() -> None:
    from graceful_fast.training.recipes.cross_version import cosines, quality, ranked_quality

    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    found = quality(rows, rows, labels)
    assert ranked_quality(cosines(rows, rows), labels) == pytest.approx(found)
    ids = np.arange(40)
    expected = reference_metrics.retrieval_metrics(
        rows.numpy(), rows.numpy(), labels.numpy(), labels.numpy(), query_ids=ids, gallery_ids=ids
    )
    assert found.map == pytest.approx(np.mean([query["map"] for query in expected]))
    assert found.hit == pytest.approx(np.mean([query["cmc"][1] for query in expected]))
