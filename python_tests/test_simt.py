"""The emulator that runs CUDA kernels' source on the CPU, by its own tests in C++: `csrc/simt/tests`.

Each test runs under five schedules: ascending, descending, and three seeds of random.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sysconfig.get_path("scripts")  # pip's cmake and ninja
PROGRAMS = ("warp", "matrices", "memory", "races", "bugs")
pytestmark = pytest.mark.skipif(not (ROOT / "csrc/simt").is_dir(), reason="the source tree is not here")


def run(*command):
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "ASAN_OPTIONS": "detect_leaks=0",
    }  # a launch that fails leaves its stacks
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout


def build(*options):
    """The folder of the emulator's test programs, built with these options of cmake."""
    folder = ROOT / "build" / "-".join(("simt-tests", *(option.removeprefix("-D").lower() for option in options)))
    run("cmake", "-G", "Ninja", "-S", ROOT / "csrc/simt", "-B", folder, *options)
    run("cmake", "--build", folder)
    return folder / "tests"


@pytest.fixture(scope="module")
def programs():
    return build()


def names(program):
    source = (ROOT / f"csrc/simt/tests/{program}.cpp").read_text()
    return [line[len("TEST(") : line.index(")")] for line in source.splitlines() if line.startswith("TEST(")]


@pytest.mark.parametrize(("program", "name"), [(program, name) for program in PROGRAMS for name in names(program)])
def test_emulator(programs, program, name):
    assert f"PASS {name}" in run(programs / f"test_{program}", name)


@pytest.mark.slow
@pytest.mark.parametrize("program", [program for program in PROGRAMS if program != "races"])  # those need the hooks
def test_emulator_under_address_and_undefined_behaviour_sanitizers(program):
    assert "PASS" in run(build("-DSIMT_SANITIZE=ON") / f"test_{program}")


def test_static_shared_memory_does_not_compile(tmp_path):
    source = tmp_path / "static.cpp"
    source.write_text('#include "kernels/simt.cuh"\n__global__ void kernel() { __shared__ float tile[32]; }\n')
    command = ["c++", "-std=c++20", f"-I{ROOT / 'csrc'}", "-fsyntax-only", source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "take dynamic shared memory, simt::Smem, instead" in result.stderr


def test_hooks_are_hidden_from_the_rest_of_the_process(programs):
    """A process that has ThreadSanitizer of its own must not meet the emulator's."""
    objects = [str(path) for path in (programs.parent / "CMakeFiles/simt.dir").glob("*.o")]
    symbols = run("readelf", "--wide", "--symbols", *objects).splitlines()
    hooks = [line.split() for line in symbols if "__tsan_" in line and " UND " not in line]
    assert len(hooks) > 30
    assert {line[5] for line in hooks if line[4] != "LOCAL"} == {"HIDDEN"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_every_primitive_compiles_for_every_architecture(tmp_path):
    kernels = ROOT / "csrc/simt/tests/primitives.cu"
    architectures = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90, 100)]
    options = ["-std=c++20", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", *architectures]
    run("nvcc", *options, "-c", kernels, "-o", tmp_path / "primitives.o")
