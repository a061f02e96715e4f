"""Progress of long work: a line on standard error, or a call of the user's own."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[int, int | None], None]
"""Called with rows done and rows in all (None while a stream has not said)."""


class ProgressLine:
    """Rows done, their rate and the time that remains, on standard error: one line of a terminal, a few of a log."""

    def __init__(self, verb: str, done: int = 0) -> None:
        self._verb = verb
        self._first = done
        self._start = time.monotonic()
        self._shown = float("-inf")

    def __call__(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` rows are done."""
        now = time.monotonic()
        if done != total and now - self._shown < (0.1 if sys.stderr.isatty() else 10):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        text = f"{self._verb} {done:,} rows"
        if total is not None:
            text = f"{self._verb} {done:,} of {total:,} rows ({100 * done // max(total, 1)} %)"
        text += f", {rate:,.0f} rows/s"
        if total is not None and rate > 0 and done < total:
            text += f", {_clock((total - done) / rate)} left"
        print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
        if done == total or not sys.stderr.isatty():
            print(file=sys.stderr, flush=True)


def progress_of(progress: bool | Progress, verb: str, done: int = 0) -> Progress:
    """What to call: the user's own, a line where True, nothing where False."""
    if callable(progress):
        return progress
    return ProgressLine(verb, done) if progress else lambda done, total: None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
