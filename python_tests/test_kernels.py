"""CPU kernels compiled apart from the package: vector widths that this machine would never choose."""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or ""]


@pytest.mark.skipif(not COMPILER[0] or not (ROOT / "csrc").exists(), reason="needs a compiler and the sources")
@pytest.mark.parametrize("width", [64])
def test_kernels_agree_with_the_definitions_for_every_vector_width(width: int, tmp_path: Path) -> None:
    # 64 is the AVX-512 source with the compiler's own instructions: its tiles, masks and tails run on any machine.
    kernels = ("scan", "scan_count", "scan_histogram", "distill")
    sources = ["python_tests/kernel_check.cpp", *(f"csrc/cpu/{name}_kernels.cpp" for name in kernels)]
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-w", "-Icsrc", "-DGF_ISA=baseline"]
    command = [*COMPILER, *flags, f"-DGF_PORTABLE_VECTORS={width}"]

    def compiled(source: str) -> Path:
        target = tmp_path / f"{Path(source).stem}.o"
        subprocess.run([*command, "-c", source, "-o", str(target)], check=True, cwd=ROOT)
        return target

    program = tmp_path / "kernel_check"
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compiler's processes run beside each other
        subprocess.run([*COMPILER, *pool.map(compiled, sources), "-o", str(program)], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith("0 failures\n")


@pytest.mark.skipif(not COMPILER[0] or not (ROOT / "csrc").exists(), reason="needs a compiler and the sources")
@pytest.mark.parametrize(
    "flags", [["-DGF_PORTABLE_VECTORS=64"], [], ["-march=native"]], ids=["portable", "baseline", "native"]
)
def test_exponentials_are_accurate_and_conversions_exact(flags: list[str], tmp_path: Path) -> None:
    program = tmp_path / "vector_check"
    always = ["-std=c++20", "-O2", "-ffp-contract=off", "-w", "-Icsrc", "-DGF_ISA=baseline", "-DGF_NARROW_STEP=251"]
    subprocess.run(
        [*COMPILER, *always, *flags, "python_tests/vector_check.cpp", "-o", str(program)], check=True, cwd=ROOT
    )
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
