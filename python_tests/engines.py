"""What an op runs on in a test: "cpu"; "simt", the CUDA kernels' very source on the emulator; "cuda", on a GPU.

A test that takes the fixture `engine` (conftest.py) runs once on each. Its tensors go through `engine.tensors`; public
functions are called as ever: on "simt", `graceful_fast._ops` calls the ops of `torch.ops.graceful_fast_simt` instead,
which take CPU tensors and treat their storage as device memory.
"""

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

    def tensors(self, *tensors: Any) -> list[Any]:
        """The same on the engine's device, strides kept; what is no tensor stays."""
        return [self._placed(x) if isinstance(x, torch.Tensor) else x for x in tensors]

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device == "cpu":
            return tensor
        storage = tensor.untyped_storage().to(device=self.device)
        out = torch.empty(0, dtype=tensor.dtype, device=self.device)
        return out.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


ENGINES = {"cpu": "cpu", "simt": "cpu", "cuda": "cuda"}


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine, in use until `monkeypatch` is undone."""
    if name == "simt":
        load_simt()
        monkeypatch.setattr(_ops, "_ops", torch.ops.graceful_fast_simt)
        monkeypatch.setitem(_ops.SCANS, "cpu", _ops.SCANS["cuda"])
    elif name == "cuda" and not torch.cuda.is_available():
        pytest.skip("cuda: torch sees no GPU")
    elif name == "cuda" and not torch._C._dispatch_has_kernel_for_dispatch_key("graceful_fast::flips", "CUDA"):
        pytest.skip("cuda: the package was built without CUDA kernels")
    return Engine(name, ENGINES[name])


@functools.cache
def load_simt() -> None:
    """Builds the CUDA kernels on the emulator, which no wheel holds, and loads them."""
    cmake = Path(sys.executable).with_name("cmake")
    if not (BUILD / "build.ninja").exists():
        configure = ["-DGF_SIMT=ON", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
        _run(
            cmake,
            "-S",
            ROOT,
            "-B",
            BUILD,
            "-G",
            "Ninja",
            *configure,
            f"-DCMAKE_MAKE_PROGRAM={cmake.with_name('ninja')}",
        )
    _run(cmake, "--build", BUILD, "--target", "graceful_fast_simt")
    torch.ops.load_library(str(BUILD / "csrc" / "cuda" / "graceful_fast_simt.so"))


def _run(*command: Any) -> None:
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the emulator's library was not built:\n{done.stdout[-4000:]}")
