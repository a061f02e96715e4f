"""What an op runs on in a test.

* "cpu"
* "simt": the CUDA kernels' very source on the emulator (csrc/simt), threads in ascending order
* "simt-random": the same with warps that race ahead and stop anywhere, and with rows that are not split over warps
* "cuda": a GPU, where torch sees one

A test that takes the fixture `engine` (conftest.py) runs once on each. Its tensors go through `engine.place`; public
functions are called as ever: on "simt", `graceful_fast._ops` calls the ops of `torch.ops.graceful_fast_simt` instead,
which take CPU tensors and treat their storage as device memory.
"""

import ctypes
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from graceful_fast import _ops

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "simt"


class Engine(NamedTuple):
    name: str
    device: str

    def place(self, value: Any) -> Any:
        """A tensor on the engine's device, strides kept; what is no tensor as it is."""
        if not isinstance(value, torch.Tensor) or value.device.type == self.device:
            return value
        out = torch.empty(0, dtype=value.dtype, device=self.device)
        return out.set_(value.untyped_storage().to(self.device), value.storage_offset(), value.size(), value.stride())

    def tensors(self, *values: Any) -> list[Any]:
        """Each of them so."""
        return [self.place(value) for value in values]


current = Engine("cpu", "cpu")
"""The engine in use."""

ORDERS = {"simt": 0, "simt-random": 2}  # of csrc/simt/control.h


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine, in use until `monkeypatch` is undone."""
    if name in ORDERS:
        simt().graceful_fast_simt_schedule(ORDERS[name], ctypes.c_uint64(1))
        simt().graceful_fast_simt_distill_warps(ctypes.c_int64(1 if name == "simt-random" else 2048))
        monkeypatch.setattr(_ops, "_ops", torch.ops.graceful_fast_simt)
        monkeypatch.setitem(_ops.SCANS, "cpu", _ops.SCANS["cuda"])
    elif name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    elif name == "cuda" and not _ops.cuda:
        pytest.skip("the package was built without CUDA kernels")
    engine = Engine(name, "cuda" if name == "cuda" else "cpu")
    monkeypatch.setattr(sys.modules[__name__], "current", engine)
    return engine


@functools.cache
def simt() -> ctypes.CDLL:
    """Builds the CUDA kernels on the emulator, which no wheel holds, and loads them."""
    cmake = Path(sys.executable).with_name("cmake")
    if not (BUILD / "build.ninja").exists():
        options = {
            "GF_SIMT": "ON",
            "CMAKE_BUILD_TYPE": "Release",
            "Python_EXECUTABLE": sys.executable,
            "CMAKE_MAKE_PROGRAM": cmake.with_name("ninja"),
        }
        _run(cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *(f"-D{name}={value}" for name, value in options.items()))
    _run(cmake, "--build", BUILD, "--target", "graceful_fast_simt")
    library = str(BUILD / "csrc" / "cuda" / "graceful_fast_simt.so")
    torch.ops.load_library(library)
    return ctypes.CDLL(library)


def _run(*command: Any) -> None:
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the emulator's library was not built:\n{done.stdout[-4000:]}")
