"""An update's report in words and formatted numbers, for the page and the terminal alike."""

import math

from .report import UpdateReport

_SPACE = "\u00a0"


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage; as many digits more as it takes not to call something nothing, or nearly all all."""
    if math.isnan(share):
        return "–"
    while (
        digits < 9
        and 0 < abs(share) < 1
        and f"{abs(share) * 100:.{digits}f}" in (f"{0:.{digits}f}", f"{100:.{digits}f}")
    ):
        digits += 1
    return f"{share * 100:.{digits}f}{_SPACE}%"


def whole(count: int) -> str:
    """A count with a comma every three digits."""
    return f"{count:,}"


def number(value: float | None, digits: int = 2) -> str:
    """A plain number; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """A p-value: three decimals, below a thousandth as a power of ten."""
    if p >= 0.001:
        return f"{p:.3f}"
    if p == 0:
        return "below 1e-300"
    return f"{p:.0e}"


def headline(report: UpdateReport) -> str:
    """The one sentence that everybody reads: what accuracy says, and what broke."""
    flips = report.flips
    if flips.total == 0:
        return "There was nothing to compare."
    name = "Accuracy" if report.topk == 1 else f"Top-{report.topk} accuracy"
    change = flips.positive - flips.negative
    digits = 1
    while change and digits < 9 and percent(report.accuracy_old, digits) == percent(report.accuracy_new, digits):
        digits += 1
    old, new = percent(report.accuracy_old, digits), percent(report.accuracy_new, digits)
    moved = f"stayed at {old}" if change == 0 else f"{'rose' if change > 0 else 'fell'} from {old} to {new}"
    if flips.negative == 0:
        return f"{name} {moved}, and no answer broke."
    joint = "yet" if change >= 0 else "and"
    return f"{name} {moved}, {joint} {percent(flips.nfr)} of all answers broke."


def explanation(report: UpdateReport) -> str:
    """Two sentences of counts under the headline."""
    flips, interval = report.flips, report.nfr_interval
    if flips.total == 0:
        return "No samples were given."
    were, are = ("was", "is") if flips.negative == 1 else ("were", "are")
    fixed = "1 was" if flips.positive == 1 else f"{whole(flips.positive)} were"
    return (
        f"{whole(flips.negative)} of {whole(flips.total)} samples {were} right before and {are} wrong now; "
        f"{fixed} fixed. On fresh samples of the same kind, between {percent(interval.lower)} and "
        f"{percent(interval.upper)} would break ({percent(interval.confidence, 0)} confidence)."
    )
