"""The package as installed: what it imports, loads, exports and refuses."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import graceful_fast
from graceful_fast import _ops

SOURCE_TREE = Path(__file__).parents[1]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_is_that_of_the_distribution() -> None:
    assert graceful_fast.__version__ == version("graceful-fast") == graceful_fast._C.version


def test_every_public_name_resolves() -> None:
    for name in graceful_fast.__all__:
        assert getattr(graceful_fast, name) is not None
    assert set(graceful_fast.__all__) <= set(dir(graceful_fast))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = graceful_fast.nothing


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, graceful_fast; print(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    assert run(code).stdout.strip() == "[]"


@pytest.mark.skipif("GRACEFUL_FAST_TEST_WHEEL" not in os.environ, reason="only when the wheel is tested")
def test_the_wheel_is_what_is_tested() -> None:
    assert SOURCE_TREE / "graceful_fast" not in Path(graceful_fast.__file__).resolve().parents
    assert Path(_ops.__file__).parent.joinpath("py.typed").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("nm"), reason="needs Linux and nm")
def test_op_library_uses_nothing_of_torch_but_its_stable_c_interface() -> None:
    library = str(files("graceful_fast").joinpath("graceful_fast_cpu.so"))
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", library], capture_output=True, text=True, check=True
    )
    used = {line.split(maxsplit=1)[-1].removeprefix("U ").split("@")[0] for line in symbols.stdout.splitlines()}
    of_torch = {name for name in used if "torch" in name or "c10" in name or "at::" in name}
    assert of_torch
    assert not {name for name in of_torch if not name.startswith(("torch_", "aoti_torch_"))}


def test_an_instruction_set_that_is_unknown_is_refused_with_the_ones_there_are() -> None:
    result = run("import graceful_fast._ops", GRACEFUL_FAST_ISA="sse9")
    assert result.returncode == 1
    assert "GRACEFUL_FAST_ISA: expected one of " in result.stderr
    assert "baseline" in result.stderr
    assert "'sse9'" in result.stderr


def test_an_instruction_set_can_be_chosen() -> None:
    result = run("from graceful_fast import _ops; print(_ops.isa)", GRACEFUL_FAST_ISA="baseline")
    assert result.stdout.strip() == "baseline"


def test_info_reports_what_runs() -> None:
    command = [sys.executable, "-P", "-m", "graceful_fast", "info", "--json", "-"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(result.stdout)
    assert facts["isa"] == _ops.isa
    assert facts["version"] == graceful_fast.__version__
    assert facts["cuda"].startswith(("no:", "built", "available"))


@pytest.mark.parametrize("arguments", [["--nonsense"], ["info", "--nonsense"], ["nothing"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "graceful_fast", *arguments]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_command_line_without_its_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from graceful_fast.__main__ import main; main()"
    result = run(code)
    assert result.returncode != 0
    assert "pip install 'graceful-fast[cli]'" in result.stderr
