"""Exact statistics of paired right-or-wrong outcomes, on counts: no approximation by a normal or chi-squared law."""

from typing import NamedTuple

from scipy.special import betaincc, betainccinv, betaincinv


class Interval(NamedTuple):
    """A confidence interval of a rate."""

    lower: float
    upper: float
    confidence: float


def clopper_pearson(count: int, total: int, *, confidence: float = 0.95) -> Interval:
    """The exact (conservative) two-sided confidence interval of a rate.

    The bounds are the rates at which a count as large, or as small, as this one has probability (1 - confidence) / 2.
    For every true rate the interval covers it with at least `confidence`.

    Args:
        count: successes, 0 to `total`.
        total: independent trials; with 0 the interval is (0, 1).
        confidence: above 0, below 1.

    Returns:
        Interval: lower, upper (shares), confidence.

    Raises:
        ValueError: a number out of its range.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 1934.

    Example:
        >>> interval = clopper_pearson(0, 100)
        >>> interval.lower, round(interval.upper, 4)
        (0.0, 0.0362)
    """
    if not 0 <= count <= total:
        raise ValueError(f"count: expected 0 to total ({total}), got {count}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected above 0 and below 1, got {confidence}")
    tail = (1 - confidence) / 2
    lower = float(betaincinv(count, total - count + 1, tail)) if count > 0 else 0.0
    upper = float(betainccinv(count + 1, total - count, tail)) if count < total else 1.0
    return Interval(lower, upper, confidence)


def mcnemar(negative: int, positive: int) -> float:
    """p-value of the exact two-sided McNemar test that flips go both ways equally often.

    Under that hypothesis the negative flips are Binomial(negative + positive, 1/2); p is the probability of a split at
    least as uneven as this one. A small p says that the accuracies differ, not that the update is good: an update may
    gain accuracy and break a tenth of all answers.

    Args:
        negative: samples right before and wrong now, 0 or more.
        positive: samples wrong before and right now, 0 or more.

    Returns:
        float: p, 1.0 without flips.

    Raises:
        ValueError: a negative count.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.

    Example:
        >>> mcnemar(1, 9)
        0.021484375
    """
    for name, count in (("negative", negative), ("positive", positive)):
        if count < 0:
            raise ValueError(f"{name}: expected 0 or more, got {count}")
    fewer, flips = min(negative, positive), negative + positive
    if 2 * fewer == flips:  # the two tails overlap in the middle
        return 1.0
    return min(1.0, 2 * float(betaincc(fewer + 1, flips - fewer, 0.5)))
