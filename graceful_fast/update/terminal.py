"""The report on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import words
from .report import SliceFlips, UpdateReport

_SLICES, _SAMPLES = 5, 10  # a report that fits on one screen; the files hold the rest


def print_report(report: UpdateReport, console: Console) -> None:
    """Headline, the four outcomes, the worst classes and groups, the worst samples."""
    flips = report.flips
    console.print(Text(words.headline(report), style="bold"))
    console.print(Text(words.explanation(report)))
    outcomes = _table("", "right now", "wrong now")
    outcomes.add_row(
        "right before", words.whole(flips.both_correct), Text(f"{words.whole(flips.negative)} broken", style="red")
    )
    outcomes.add_row(
        "wrong before", Text(f"{words.whole(flips.positive)} fixed", style="green"), words.whole(flips.both_wrong)
    )
    console.print(outcomes)
    console.print(
        f"NFR {words.percent(flips.nfr, 2)}  relative NFR {words.number(flips.relative_nfr, 3)}  "
        f"McNemar p {words.probability(report.mcnemar_p)}\n",
        highlight=False,
    )
    _print_slices("worst classes", report.per_class, console)
    _print_slices("worst groups", report.per_group, console)
    _print_samples(report, console)


def _print_slices(title: str, slices: tuple[SliceFlips, ...], console: Console) -> None:
    worst = [part for part in slices if part.flips.negative][:_SLICES]
    if not worst:
        return
    table = _table(title, "samples", "broken", "fixed", "share broken")
    for part in worst:
        of = part.flips
        counts = [words.whole(count) for count in (of.total, of.negative, of.positive)]
        table.add_row(_clean(part.name), *counts, words.percent(of.nfr))
    console.print(table)


def _print_samples(report: UpdateReport, console: Console) -> None:
    if not report.broken:
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("samples that broke", "right answer", "before", "now"):
        table.add_column(title, overflow="fold")
    table.add_column("margin", justify="right")
    for sample in report.broken[:_SAMPLES]:
        row = f"row {sample.row}"
        names = [report.class_name(index) for index in (sample.target, sample.old, sample.new)]
        label = row if sample.name is None else f"{row}  {sample.name}"
        table.add_row(_clean(label), *map(_clean, names), words.number(sample.margin))
    console.print(table)
    if report.flips.negative > _SAMPLES:
        console.print(
            Text(f"… {words.whole(report.flips.negative - _SAMPLES)} more; --json and --html hold them", style="dim")
        )


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right")
    return table


def _clean(name: str) -> Text:
    """A name as plain text: no markup, and no control characters for the terminal to obey."""
    return Text("".join(letter if letter.isprintable() else "\ufffd" for letter in name))
