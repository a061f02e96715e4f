"""Fixtures."""

import engines
import pytest


@pytest.fixture(params=engines.ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> engines.Engine:
    """Each engine in turn; see engines.py."""
    return engines.use(request.param, monkeypatch)
