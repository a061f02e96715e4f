"""The docstrings of graceful_fast.losses."""

import doctest

from graceful_fast import losses


def test_docstrings_run():
    results = doctest.testmod(losses)
    assert results.attempted > 0
    assert results.failed == 0
