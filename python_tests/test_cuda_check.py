"""csrc/cuda/check.py: what it must notice, on kernels with planted faults."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECK = Path(__file__).parents[1] / "csrc" / "cuda" / "check.py"
spec = importlib.util.spec_from_file_location("cuda_check", CHECK)
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
sys.modules["cuda_check"] = check  # dataclasses look their module up
spec.loader.exec_module(check)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")

KERNELS = """
#include "kernels/simt.cuh"
namespace {
// An array indexed at run time has no place in registers.
__global__ void __launch_bounds__(64) spills(int* x) {
  int array[64];
  for (int i = 0; i < 64; ++i) array[i] = x[i];
  for (int i = 0; i < 64; ++i) array[x[i] & 63] += i;
  x[threadIdx.x] = array[x[threadIdx.x] & 63];
}
template <typename T>
__global__ void __launch_bounds__(64) wide(const T* x, T* y) {
  simt::store_16B(y + threadIdx.x * 4, simt::load_16B(x + threadIdx.x * 4));
}
__global__ void unbounded(int* x) { x[threadIdx.x] = 1; }
}  // namespace
void launch(int* x) {
  spills<<<1, 64>>>(x);
  wide<int><<<1, 64>>>(x, x);
  unbounded<<<1, 64>>>(x);
}
"""


def kernel(**changed: Any) -> Any:
    counts = dict.fromkeys(check.INSTRUCTIONS, 0) | {"HMMA": 4, "LDG.128": 2} | changed.pop("instructions", {})
    return check.Kernel(**{"registers": 60, "threads": 128, "stack_bytes": 0, "instructions": counts} | changed)


def compiled(one: Any) -> list[Any]:
    return [check.Compiled("a.cu", "sm_90", "", {"k<float>": one})]


def limits(**changed: Any) -> dict[str, Any]:
    entry = {"shared_bytes": 1024, "instructions": ["HMMA", "LDG.128"], "sm_90": {"registers": 64, "blocks_per_sm": 7}}
    return {"a.cu": {"k<float>": entry | changed}}


def test_a_kernel_within_its_limits_passes() -> None:
    assert check.problems(compiled(kernel()), limits()) == []


@pytest.mark.parametrize(
    ("one", "limit", "message"),
    [
        (kernel(stack_bytes=8), limits(), "expected no stack, got 8 bytes, 0 accesses"),
        (kernel(instructions={"STL": 3}), limits(), "expected no stack, got 0 bytes, 3 accesses"),
        (kernel(instructions={"LDL": 1}), limits(), "expected no stack, got 0 bytes, 1 accesses"),
        (kernel(registers=65), limits(), "expected at most 64 registers, got 65"),
        (kernel(threads=0), limits(), "expected __launch_bounds__, got none"),
        (kernel(), limits(shared_bytes=40 << 10), "expected at least 7 blocks per multiprocessor, got 5"),
        (kernel(instructions={"HMMA": 0}), limits(), "expected HMMA in the machine code, got none"),
        (kernel(instructions={"LDG.128": 0}), limits(), "expected LDG.128 in the machine code, got none"),
        (kernel(), {}, "no limits"),
        (kernel(), limits() | {"b.cu": {"gone": {}}}, "b.cu gone: limits without a kernel"),
        (kernel(), {"a.cu": limits()["a.cu"] | {"gone": {}}}, "a.cu gone: limits without a kernel"),
    ],
)
def test_what_breaks_a_limit_is_named(one: Any, limit: dict[str, Any], message: str) -> None:
    (problem,) = check.problems(compiled(one), limit)
    assert message in problem


def test_an_update_keeps_what_was_written_by_hand() -> None:
    new = check.updated(compiled(kernel(registers=41, instructions={"HMMA": 0})), limits())
    assert new == limits(sm_90={"registers": 48, "blocks_per_sm": 10})
    assert check.updated(compiled(kernel()), {})["a.cu"]["k<float>"]["instructions"] == ["HMMA", "LDG.128"]


def test_every_instruction_is_told_from_its_like() -> None:
    sass = {
        "HMMA.16816.F32.BF16": "HMMA",
        "IMMA.16832.S8.S8": "IMMA",
        "LDSM.16.M88.4": "LDSM",
        "LDGSTS.E.BYPASS.128": "LDGSTS",
        "LDG.E.128": "LDG.128",
        "LDG.E.128.CONSTANT": "LDG.128",
        "STL.64": "STL",
        "LDL": "LDL",
        "LDG.E.64": None,
        "STG.E.128": None,
        "LDS.128": None,
    }
    for opcode, expected in sass.items():
        assert [kind for kind, form in check.INSTRUCTIONS.items() if form.match(opcode)] == [expected] * bool(expected)


def test_it_says_so_where_there_is_no_nvcc(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, CHECK], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected nvcc on PATH, found none" in done.stderr


@needs_nvcc
def test_occupancy_is_that_of_nvidias_own_header(tmp_path: Path) -> None:
    nvcc = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
    ).stderr
    include = next(line.split("=", 1)[1] for line in nvcc.splitlines() if "TOP=" in line).strip() + "/include"
    cases = [
        (r, t, s)
        for r in (16, 33, 64, 96, 128, 255)
        for t in (32, 96, 128, 256, 512)
        for s in (0, 3000, 48 << 10, 99 << 10)
    ]
    chips = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
    program = "#include <cstdio>\n#include <cuda_occupancy.h>\nint main() {\n"
    for name, (major, minor) in chips.items():
        shared = check.SHARED_BYTES_OF_SM[name]
        program += f"""{{ cudaOccDeviceProp p; p.computeMajor = {major}; p.computeMinor = {minor};
            p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = 2048; p.regsPerBlock = 65536;
            p.regsPerMultiprocessor = 65536; p.warpSize = 32; p.sharedMemPerBlock = 48 << 10;
            p.sharedMemPerMultiprocessor = {shared}; p.numSms = 100; p.sharedMemPerBlockOptin = {shared} - 1024;
            p.reservedSharedMemPerBlock = 1024;
            const int cases[][3] = {{{",".join(f"{{{r},{t},{s}}}" for r, t, s in cases)}}};
            for (auto& c : cases) {{
              cudaOccFuncAttributes a; a.maxThreadsPerBlock = 1024; a.numRegs = c[0]; a.sharedSizeBytes = 0;
              a.partitionedGCConfig = PARTITIONED_GC_OFF; a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
              a.maxDynamicSharedSizeBytes = {shared} - 1024;
              cudaOccDeviceState s; cudaOccResult r;
              if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, c[1], c[2])) return 1;
              printf("%d ", r.activeBlocksPerMultiprocessor); }} }}"""
    (tmp_path / "occupancy.cpp").write_text(program + "}\n")
    subprocess.run(["c++", "-w", "-I", include, "-o", tmp_path / "run", tmp_path / "occupancy.cpp"], check=True)
    nvidias = subprocess.run([tmp_path / "run"], capture_output=True, text=True, check=True).stdout.split()
    assert [check.blocks_per_sm(name, *case) for name in chips for case in cases] == [int(blocks) for blocks in nvidias]


@needs_nvcc
def test_planted_faults_are_found_in_what_nvcc_compiles(tmp_path: Path) -> None:
    (tmp_path / "planted.cu").write_text(KERNELS)
    arguments = [
        sys.executable,
        CHECK,
        "--sources",
        tmp_path,
        "--limits",
        tmp_path / "limits.json",
        "--cache",
        tmp_path / "cache",
    ]

    def run(*more: str) -> tuple[int, str, list[str]]:
        done = subprocess.run([*arguments, *more], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines(keepends=True)
        failures = [line.strip() for line in lines if line.startswith("FAIL")]
        return done.returncode, "".join(line for line in lines if not line.startswith("FAIL")), failures

    code, report, failures = run()
    assert code == 1
    assert report.count("Used ") == 9  # three kernels, three architectures
    for architecture in ("sm_80", "sm_90", "sm_100"):
        of_one = [line for line in failures if f" {architecture} " in line]
        assert sum("spills(" not in line and " spills: expected no stack" in line for line in of_one) == 1
        assert sum(" unbounded: expected __launch_bounds__" in line for line in of_one) == 1
        assert sum(" wide<int>: no limits" in line for line in of_one) == 1

    _, again, failures = run("--update")  # from the cache
    assert again.splitlines()[:-1] == report.splitlines()[:-1]
    assert not any("no limits" in line for line in failures)
    written = json.loads((tmp_path / "limits.json").read_text())["planted.cu"]["wide<int>"]
    assert written["instructions"] == ["LDG.128"]

    (tmp_path / "planted.cu").write_text(KERNELS + "#error broken\n")
    code, report, failures = run()
    assert code == 1
    assert "broken" in report
    assert [line.endswith("nvcc failed") for line in failures] == [True] * 3
