"""Every kernel also compiles at run time, by NVRTC of pip's package, which needs no GPU and has no standard library."""

import ctypes
import functools
import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
HEADERS = sorted(path.relative_to(CSRC).as_posix() for path in (CSRC / "kernels").glob("*.cuh"))
LIMITS = json.loads((CSRC / "cuda" / "limits.json").read_text())  # names every kernel, by the source that launches it


@functools.cache
def nvrtc() -> ctypes.CDLL:
    try:
        names = files("nvidia-cuda-nvrtc") or []
    except PackageNotFoundError:
        pytest.skip("nvidia-cuda-nvrtc is not installed (extra `dev`, on Linux)")
    paths = [Path(str(name.locate())) for name in names if ".so" in name.name]
    for path in sorted(paths, key=lambda path: "builtins" not in path.name):  # NVRTC finds its builtins loaded
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return library


def compiled(source: str, kernels: list[str]) -> str:
    """PTX of the source with these kernels; fails with the compiler's log."""
    lib, program = nvrtc(), ctypes.c_void_p()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    for kernel in kernels:
        assert lib.nvrtcAddNameExpression(program, kernel.encode()) == 0
    # The Params' headers also declare launchers, functions of the host; how good the code is does not matter here.
    options = [
        b"--gpu-architecture=compute_80",
        b"--std=c++20",
        b"--device-as-default-execution-space",
        b"--Ofast-compile=max",
    ]
    options += [f"-I{CSRC}".encode(), f"-I{CSRC / 'nvrtc'}".encode()]
    status = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    for kernel in kernels:
        lowered = ctypes.c_char_p()
        assert lib.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(lowered)) == 0, kernel
    lib.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetPTX(program, ptx)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode()


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header: str) -> None:
    assert ".target sm_80" in compiled(f'#include "{header}"\n', [])


@pytest.mark.parametrize("source", LIMITS)
def test_kernels_compile(source: str) -> None:
    includes = [
        line for line in (CSRC / "cuda" / source).read_text().splitlines() if line.startswith('#include "kernels/')
    ]
    ptx = compiled("\n".join(includes), list(LIMITS[source]))
    assert ptx.count(".entry") == len(LIMITS[source])


def test_an_error_is_reported() -> None:
    with pytest.raises(AssertionError, match="undefined"):
        compiled("__global__ void kernel() { nothing(); }", [])
