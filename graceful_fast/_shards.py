"""A search over several devices in one process: each scans a share of the gallery; the shares' best are merged."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from ._progress import Progress, progress_of
from ._search_blocks import Search
from .gallery import Gallery

if TYPE_CHECKING:
    import torch

    Found = tuple[torch.Tensor, torch.Tensor, Counter[str]]


def as_devices(devices: Any) -> "list[torch.device]":
    """`devices` as torch devices that are there; "cpu" may stand in the list more than once, a GPU too."""
    import torch

    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise ValueError(f"devices: expected a list of at least one device, got {devices!r}")
    gpus = torch.cuda.device_count()
    known = []
    for name in devices:
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"devices: expected devices as torch names them, got {name!r}") from error
        index = torch.cuda.current_device() if str(device) == "cuda" and gpus else device.index or 0
        if index >= {"cpu": 1, "cuda": gpus}.get(device.type, 0):
            raise ValueError(f"devices: expected 'cpu', or 'cuda:i' of {gpus} GPUs, got {name!r}")
        known.append(torch.device("cuda", index) if device.type == "cuda" else torch.device("cpu"))
    return known


def nearest_on(
    devices: "Sequence[torch.device]",
    search: Search,
    gallery: Gallery,
    memory_limit: int | None,
    progress: bool | Progress,
    checkpoint: str | os.PathLike[str] | None,
) -> "Found":
    """`search.nearest` with the i-th of as many shares of the gallery on the i-th device, its checkpoint in folder i.

    A thread for each device that is named; the shares of one device come one after the other.
    """
    import torch

    from .search import nearest

    bounds = [len(gallery) * i // len(devices) for i in range(len(devices) + 1)]
    told, limit = _Told(progress, bounds), memory_limit and max(1, memory_limit // len(devices))

    def scan(device: "torch.device") -> "dict[int, Found]":
        found = {}
        for i, (first, end) in enumerate(pairwise(bounds)):
            if devices[i] == device and first < end:
                share = search._replace(queries=queries[device], first=first, end=end)
                folder = None if checkpoint is None else Path(checkpoint, str(i))
                found[i] = nearest(share, gallery, limit, told.share(i), folder)
        return found

    queries = {device: search.queries.to(device) for device in devices}
    held = gallery.array.device if gallery.array is not None else search.queries.device
    for device in {*queries, search.queries.device, held}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # threads have streams of their own
    with ThreadPoolExecutor(len(queries)) as threads:
        try:
            scans = [threads.submit(scan, device) for device in queries]
            done, _ = wait(scans, return_when=FIRST_EXCEPTION)
            shares = {i: found for one in done for i, found in one.result().items()}
        finally:
            told.stop.set()
    best = merged([shares[i] for i in sorted(shares)], search.k, search.queries.device)
    if search.queries.device.type == "cuda":
        torch.cuda.synchronize(search.queries.device)  # the shares' memory goes back to the threads' streams
    return best


def merged(shares: "list[Found]", k: int, device: "torch.device") -> "Found":
    """The k best of all; the shares are in the order of their rows, so that of equal keys the smaller row is first."""
    import torch

    keys = torch.cat([share[0].to(device) for share in shares], 1)
    rows = torch.cat([share[1].to(device) for share in shares], 1)
    order = keys.argsort(dim=1, descending=True, stable=True)[:, :k]
    facts: Counter[str] = Counter()
    for share in shares:
        facts.update(share[2])
    return keys.gather(1, order), rows.gather(1, order), facts


class _StoppedError(ValueError):
    """Another share has failed, or the user has had enough."""


class _Told:
    """What the shares tell of their progress, as that of the whole; `stop` ends them at their next block."""

    def __init__(self, progress: bool | Progress, bounds: list[int]) -> None:
        self.stop = Event()
        self._tell, self._lock = progress_of(progress, "searched"), Lock()
        self._bounds, self._done = bounds, bounds[:-1]

    def share(self, i: int) -> Progress:
        def tell(done: int, total: int | None) -> None:
            if self.stop.is_set():
                raise _StoppedError
            with self._lock:
                self._done[i] = done
                self._tell(sum(self._done) - sum(self._bounds[:-1]), self._bounds[-1])

        return tell
