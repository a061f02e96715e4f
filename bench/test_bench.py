"""pytest-benchmark over the same contests: `pytest bench --benchmark-enable --benchmark-only`."""

from typing import Any

import pytest

from . import bench_distill, bench_flips, bench_influence, bench_linear, bench_metrics, bench_scan
from .contest import Contest

OPS = (bench_distill, bench_influence, bench_linear, bench_scan, bench_metrics, bench_flips)
CONTESTS = [contest for op in OPS for contest in op.contests(quick=True)]


@pytest.mark.parametrize("contest", CONTESTS, ids=lambda contest: f"{contest.op}-{contest.case}")
def test_ours(contest: Contest, benchmark: Any) -> None:
    contest.check()
    benchmark.extra_info["unit"] = contest.unit
    benchmark.extra_info["work"] = contest.work
    benchmark(next(iter(contest.entries.values())))
