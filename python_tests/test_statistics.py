"""Exact statistics against sums of binomial terms in whole numbers, and against scipy's own tests."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from graceful_fast.update.statistics import clopper_pearson, mcnemar


def two_sided_p(negative: int, positive: int) -> Fraction:
    """Sum of the probabilities of all splits at most as probable as this one."""
    flips = negative + positive
    terms = [comb(flips, k) for k in range(flips + 1)]
    return Fraction(sum(term for term in terms if term <= terms[negative]), 2**flips)


def at_least(count: int, total: int, rate: Fraction) -> Fraction:
    """P(Binomial(total, rate) >= count)."""
    return sum((comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(count, total + 1)), Fraction(0))


@pytest.mark.parametrize("flips", range(13))
def test_mcnemar_is_the_sum_of_all_splits_at_most_as_probable(flips: int) -> None:
    for negative in range(flips + 1):
        expected = float(two_sided_p(negative, flips - negative))
        assert mcnemar(negative, flips - negative) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("negative", "positive"), [(165, 256), (0, 2000), (10**6, 10**6 + 3000), (7, 7), (500, 501)])
def test_mcnemar_of_many_flips_is_scipys(negative: int, positive: int) -> None:
    expected = binomtest(negative, negative + positive).pvalue
    assert mcnemar(negative, positive) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(positive, negative) == mcnemar(negative, positive)


def test_mcnemar_of_published_values() -> None:
    assert mcnemar(1, 9) == pytest.approx(0.021484375, rel=1e-14)  # 2 (1 + 10) / 2^10
    assert mcnemar(0, 5) == pytest.approx(0.0625, rel=1e-14)
    assert mcnemar(0, 0) == 1.0


@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.5, 0.9, 0.95])
)
@settings(derandomize=True, deadline=None)
def test_bounds_are_where_the_tails_have_half_of_what_is_left(counts: tuple[int, int], confidence: float) -> None:
    count, total = counts
    interval = clopper_pearson(count, total, confidence=confidence)
    tail = pytest.approx((1 - confidence) / 2, rel=1e-9)
    if count > 0:
        assert float(at_least(count, total, Fraction(interval.lower))) == tail
    if count < total:
        assert float(1 - at_least(count + 1, total, Fraction(interval.upper))) == tail
    assert 0 <= interval.lower <= count / total <= interval.upper <= 1


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 100), (5, 5), (165, 2523), (1, 10**7)])
def test_interval_is_scipys(count: int, total: int) -> None:
    theirs = binomtest(count, total).proportion_ci(0.95, method="exact")
    ours = clopper_pearson(count, total)
    # scipy searches for its bounds, to about 1e-12 absolute.
    assert (ours.lower, ours.upper) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=4e-12)


def test_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    total, rate = 30, Fraction(1, 15)
    covered = Fraction(0)
    for count in range(total + 1):
        interval = clopper_pearson(count, total, confidence=0.9)
        if interval.lower <= rate <= interval.upper:
            covered += at_least(count, total, rate) - at_least(count + 1, total, rate)
    assert covered >= Fraction(9, 10)


def test_without_samples_every_rate_is_possible() -> None:
    assert clopper_pearson(0, 0)[:2] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("count", "total", "confidence", "name"),
    [(3, 2, 0.95, "count"), (-1, 2, 0.95, "count"), (1, 2, 1.0, "confidence"), (1, 2, float("nan"), "confidence")],
)
def test_bad_counts_and_confidence(count: int, total: int, confidence: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        clopper_pearson(count, total, confidence=confidence)


def test_negative_numbers_of_flips_are_refused() -> None:
    with pytest.raises(ValueError, match="positive: expected 0 or more, got -1"):
        mcnemar(3, -1)
