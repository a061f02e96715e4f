"""Fixtures, and `--engine NAME`: only the tests that run on that engine."""

import engines
import pytest


@pytest.fixture(params=engines.ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> engines.Engine:
    """Each engine in turn; see engines.py."""
    return engines.use(request.param, monkeypatch)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=[*engines.ENGINES], help="run only the tests that run on this engine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := config.getoption("--engine"):
        kept = [item for item in items if wanted in _engines_of(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _engines_of(item: pytest.Item) -> list[object]:
    """Of a test with a fixture of engines (`engine`, or one of some of them, as `gpu`), the one that it runs on."""
    parameters = getattr(item, "callspec", None)
    return [parameters.params.get(name) for name in ("engine", "gpu")] if parameters else []
