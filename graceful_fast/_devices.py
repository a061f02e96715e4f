"""Blocks of a gallery on their way to a GPU: each is copied while the one before is being scanned."""

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def on_device(
    blocks: "Generator[tuple[Any, ...], None, None]", device: "torch.device"
) -> "Generator[tuple[Any, ...], None, None]":
    """The blocks, (first row, tensors...) each, on `device`; two of them are there at a time."""
    if device.type == "cpu":
        yield from blocks
        return
    import torch

    side = torch.cuda.Stream(device)
    waiting: list[tuple[tuple[Any, ...], torch.cuda.Event]] = []
    with closing(blocks):
        for first, *tensors in blocks:
            with torch.cuda.stream(side):
                # Pages that are not locked would be copied while everybody waits.
                copied = [(x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True) for x in tensors]
                waiting.append(((first, *copied), side.record_event()))
            if len(waiting) > 1:
                yield _arrived(*waiting.pop(0))
        for block, event in waiting:
            yield _arrived(block, event)


def _arrived(block: tuple[Any, ...], event: "torch.cuda.Event") -> tuple[Any, ...]:
    import torch

    for tensor in block[1:]:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(event)
        tensor.record_stream(stream)  # its memory was taken on another stream
    return block
