"""Chains of updates: which earlier versions each new one has to fit, and how many pairs of versions are compatible."""

from collections.abc import Sequence
from typing import Literal, get_args

Policy = Literal["none", "previous", "first", "last", "all"]


def must_fit(policy: Policy, version: int, versions: int) -> tuple[int, ...]:
    """The earlier versions whose galleries this version is trained to fit.

    Args:
        policy: "none"; "previous": the one before; "first": the one that the oldest gallery was made with; "all": every
            earlier one; "last": only the last version of the chain is made to fit, all earlier ones at once.
        version: 0 for the first.
        versions: In the chain.

    Example:
        >>> [must_fit("previous", version, 4) for version in range(4)]
        [(), (0,), (1,), (2,)]
        >>> [must_fit("last", version, 4) for version in range(4)]
        [(), (), (), (0, 1, 2)]
    """
    if policy not in get_args(Policy):
        raise ValueError(f"policy: expected one of {', '.join(get_args(Policy))}, got {policy!r}")
    if not 0 <= version < versions:
        raise ValueError(f"version: expected 0..{versions - 1}, got {version}")
    earlier = tuple(range(version))
    if policy == "last":
        return earlier if version == versions - 1 else ()
    return {"none": (), "previous": earlier[-1:], "first": earlier[:1], "all": earlier}[policy]


def average_compatibility(matrix: Sequence[Sequence[float]]) -> float:
    """The share of pairs of versions in which the later one's queries do better in the earlier one's gallery, strictly.

    ``2 / (T (T - 1)) * sum over i > j of [matrix[i][j] > matrix[j][j]]``.

    Args:
        matrix: Row i, column j: a metric of queries of version i against the gallery of version j; at least two
            versions, entries with j > i are not read.

    Raises:
        ValueError: Fewer than two versions, or a row too short.

    Source:
        Biondi et al., CoReS: Compatible Representations via Stationarity, TPAMI 2023; its published code counts a tie
        as compatible, the criterion does not.

    Example:
        >>> average_compatibility([[0.5], [0.6, 0.7], [0.5, 0.8, 0.9]])  # the third only equals the first
        0.6666666666666666
    """
    versions = len(matrix)
    if versions < 2 or any(len(row) <= i for i, row in enumerate(matrix)):
        raise ValueError(f"matrix: expected 2 rows or more, row i of i + 1 or more, got {[len(row) for row in matrix]}")
    pairs = [(i, j) for i in range(versions) for j in range(i)]
    return sum(matrix[i][j] > matrix[j][j] for i, j in pairs) / len(pairs)
