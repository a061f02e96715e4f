"""Agreement of clusterings: the definitions, and what peers say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from sklearn.metrics.cluster import pair_confusion_matrix

import graceful_fast as gf
from graceful_fast import reference_metrics

FIELDS = ("bcubed_precision", "bcubed_recall", "bcubed_f", "pairwise_precision", "pairwise_recall", "pairwise_f")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(-2, 5), st.integers(-9, 3)), max_size=25))
def test_agreement_is_that_of_the_definition(items: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in items], [b for _, b in items]
    found = gf.cluster_agreement(np.array(first, int), np.array(second, int), noise=None)
    expected = reference_metrics.cluster_agreement(first, second)
    for name in FIELDS:
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-12, nan_ok=True)


def test_noise_is_alone() -> None:
    found = gf.cluster_agreement([0, 0, -1, -1, -1], [3, 3, 3, -1, -1])
    singletons = gf.cluster_agreement([0, 0, 1, 2, 3], [3, 3, 3, 4, 5], noise=None)
    assert found == singletons
    assert gf.cluster_agreement([0, 0, -1, -1], [1, 1, 2, 2], noise=None).pairwise_precision == 1


def test_swapping_swaps_precision_and_recall() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 7, 100), rng.integers(-1, 5, 100)
    there, back = gf.cluster_agreement(a, b), gf.cluster_agreement(b, a)
    assert there.bcubed_precision == pytest.approx(back.bcubed_recall)
    assert there.pairwise_precision == pytest.approx(back.pairwise_recall)
    assert there.bcubed_f == pytest.approx(back.bcubed_f)


def test_sklearn_counts_the_same_pairs_of_its_own_clusters() -> None:
    rng = np.random.default_rng(1)
    centres = 4 * rng.standard_normal((6, 8))
    identity = rng.integers(0, 6, 200)
    old = DBSCAN(eps=2.5).fit_predict(centres[identity] + 0.6 * rng.standard_normal((200, 8)))
    found = gf.cluster_agreement(identity, old, noise=None)
    (_, joined_only), (_, both) = pair_confusion_matrix(identity, old)
    (_, _), (belong_only, _) = pair_confusion_matrix(identity, old)
    assert found.pairwise_precision == pytest.approx(both / (both + joined_only))
    assert found.pairwise_recall == pytest.approx(both / (both + belong_only))


def test_nothing_to_share_is_nan() -> None:
    assert math.isnan(gf.cluster_agreement([], []).bcubed_f)
    alone = gf.cluster_agreement([0, 1, 2], [0, 1, 2])
    assert alone.bcubed_f == 1
    assert math.isnan(alone.pairwise_f)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="clusters: expected as many labels as reference, 2, got 3"):
        gf.cluster_agreement([0, 1], [0, 1, 2])
    with pytest.raises(TypeError, match="reference: expected integers, got dtype float64"):
        gf.cluster_agreement([0.5], [0])
    with pytest.raises(ValueError, match=r"clusters: expected shape \(N,\), got \(1, 1\)"):
        gf.cluster_agreement([0], [[0]])
