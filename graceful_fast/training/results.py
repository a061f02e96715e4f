"""Results of experiments: entries of one JSON file, each written as soon as it is known and never computed twice."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .._files import write_text

Entry = dict[str, Any]


class Results:
    """Entries by name, in a file that says how they were made.

    Args:
        path: The file; made when the first entry is written. Its folder is made, too.
        schema: Name and version of what the entries hold.
        recipe: All that decides the entries; JSON values.

    Raises:
        ValueError: The file holds something else, or entries of another recipe.
    """

    def __init__(self, path: Path, schema: str, recipe: dict[str, Any]) -> None:
        self.path = path
        self.head = {
            "schema": schema,
            "command": shlex.join(["graceful-fast", *sys.argv[1:]]),
            "versions": versions(),
            "recipe": json.loads(json.dumps(recipe)),  # as it will be read
        }
        self.entries: dict[str, Entry] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = found["entries"]
            same = [found[name] == self.head[name] for name in ("schema", "recipe")]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: expected results of {self.head['schema']}, got another file") from error
        if not all(same):
            raise ValueError(f"{self.path}: expected results of the same recipe, got another one's; use a new file")

    def entry(self, name: str, measure: Callable[[], Entry]) -> Entry:
        """The entry of that name: from the file, or measured now and written at once."""
        if name not in self.entries:
            self.entries[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(json.dumps(self.head | {"entries": self.entries}, indent=1, allow_nan=False) + "\n", self.path)
        return self.entries[name]


class Spread(NamedTuple):
    """Mean and sample standard deviation (0 of a single value)."""

    mean: float
    deviation: float

    def percent(self, digits: int = 2) -> str:
        """As in a table: both times 100."""
        return f"{100 * self.mean:.{digits}f} ± {100 * self.deviation:.{digits}f}"


def spread(values: Iterable[float]) -> Spread:
    """Mean and spread of one number over seeds.

    Example:
        >>> spread([0.01, 0.02, 0.03]).percent()
        '2.00 ± 1.00'
    """
    numbers = list(values)
    mean = math.fsum(numbers) / len(numbers)
    return Spread(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / max(len(numbers) - 1, 1)))


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    import numpy
    import torch

    from .. import __version__, _ops

    return {
        "graceful_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": f"{platform.machine()}, {_ops.isa}, {os.cpu_count()} CPUs",
    }
