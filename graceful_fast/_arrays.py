"""Arrays in, the same kind of array out: torch, numpy, CuPy, or anything with `__dlpack__`."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class _Writable:
    """A numpy array whose interface claims to be writable: torch warns about read-only memory, which we never write."""

    def __init__(self, array: np.ndarray) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._owner = array


def as_numpy(value: Any, name: str) -> np.ndarray:
    """`value` as a numpy array, without a copy where its memory is on the CPU; torch is never imported for it."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # torch
        tensor = value.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        array: np.ndarray = tensor.numpy()
        return array
    if hasattr(value, "get") and hasattr(value, "__cuda_array_interface__"):  # CuPy
        return np.asarray(value.get())
    if isinstance(value, (list, tuple)) or np.isscalar(value):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name}: expected rows of one length, got a nested list of several") from error
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    raise TypeError(f"{name}: expected a torch tensor, a numpy or CuPy array, or DLPack, got {type(value).__name__}")


def as_tensor(value: Any, name: str) -> "torch.Tensor":
    """`value` as a detached torch tensor that shares its memory where it can."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if _cuda_index(value) is not None:
        if not torch.version.cuda:
            raise ValueError(f"{name}: expected an array on the CPU, as torch {torch.__version__} is without CUDA")
        return torch.from_dlpack(value)
    array = as_numpy(value, name)  # torch.from_dlpack of a negative stride ends the process
    if array.dtype.name == "bfloat16":  # ml_dtypes
        return as_tensor(array.view(np.int16), name).view(torch.bfloat16)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected real numbers of at most 64 bits, got dtype {array.dtype}")
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if odd or not array.dtype.isnative or not array.flags.aligned:
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


def like(values: Any, original: Any) -> Any:
    """`values`, a numpy array or a torch tensor, as the kind of array that `original` is and on its device.

    The kind of a list, or of what has no `from_dlpack` in its array namespace or its package, is numpy.
    """
    if hasattr(original, "detach") or (index := _cuda_index(original)) is not None:
        import torch

        tensor = torch.as_tensor(values, device=original.device if hasattr(original, "detach") else f"cuda:{index}")
        return tensor if hasattr(original, "detach") else _namespace(original).from_dlpack(tensor)
    array = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    if isinstance(original, np.ndarray) or not hasattr(original, "__dlpack__"):
        return array
    namespace = _namespace(original)
    return namespace.from_dlpack(array) if hasattr(namespace, "from_dlpack") else array


def _cuda_index(value: Any) -> int | None:
    """Number of the CUDA device that a DLPack array lies on, else None."""
    cuda = 2  # kDLCUDA
    if not hasattr(value, "__dlpack_device__"):
        return None
    kind, index = value.__dlpack_device__()
    return int(index) if kind == cuda else None


def _namespace(value: Any) -> Any:
    """The module of an array's functions: by the array API standard, else the package of its class, as of CuPy."""
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    return sys.modules[type(value).__module__.partition(".")[0]]


def bytes_of(tensor: "torch.Tensor") -> memoryview:
    """The values' bytes, row after row; of a contiguous tensor on the CPU its own memory."""
    import torch

    return memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data).cast("B")
