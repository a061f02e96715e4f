"""What the measurements of positive-congruent training say: tables for a terminal and a page, and plots."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..._files import replacing
from ..results import Entry, Spread, spread

COLUMNS = ("objective", "error %", "NFR %", "relative NFR %", "NFR against plain", "error against plain")


Curves = dict[str, list[tuple[float, Spread, Spread]]]
"""Objective -> (weight, NFR, error), weights ascending; "plain" has one point of any weight."""


class Row(NamedTuple):
    """One objective over all seeds."""

    objective: str
    error_old: Spread
    error: Spread
    nfr: Spread
    relative_nfr: Spread | None
    """None where it is undefined in some seed."""
    nfr_change: float | None
    """Mean NFR / plain's - 1; None where plain breaks nothing."""
    error_change: float

    def cells(self) -> list[str]:
        """As printed, in the order of `COLUMNS`."""
        relative = "-" if self.relative_nfr is None else self.relative_nfr.percent(1)
        change = "-" if self.nfr_change is None else f"{100 * self.nfr_change:+.0f} %"
        return [
            self.objective,
            self.error.percent(),
            self.nfr.percent(),
            relative,
            change,
            f"{100 * self.error_change:+.2f}",
        ]


def rows_of(entries: Mapping[str, Sequence[Entry]]) -> list[Row]:
    """A row of each objective.

    Args:
        entries: Objective -> its entries, one of each seed; "plain" must be among them.
    """

    def spread_of(objective: str, key: str) -> Spread:
        return spread(entry[key] for entry in entries[objective])

    plain_nfr, plain_error = spread_of("plain", "nfr").mean, spread_of("plain", "error_new_all").mean
    return [
        Row(
            objective,
            spread_of(objective, "error_old"),
            spread_of(objective, "error_new_all"),
            spread_of(objective, "nfr"),
            None if None in (entry["relative_nfr"] for entry in found) else spread_of(objective, "relative_nfr"),
            spread_of(objective, "nfr").mean / plain_nfr - 1 if plain_nfr else None,
            spread_of(objective, "error_new_all").mean - plain_error,
        )
        for objective, found in entries.items()
    ]


def by_objective(entries: Mapping[str, Entry], setting: str | None = None) -> dict[str, list[Entry]]:
    """Objective -> entries of one setting, named "setting/objective/seed", or "objective/seed" without settings."""
    found: dict[str, list[Entry]] = {}
    for name, entry in entries.items():
        *first, objective, _ = name.split("/")
        if first == ([] if setting is None else [setting]):
            found.setdefault(objective, []).append(entry)
    return found


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a page."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot_rows(titles_and_rows: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Error against NFR, a panel of each setting, bars of one standard deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(titles_and_rows), 3.6), layout="constrained")
    panels = figure.subplots(1, len(titles_and_rows), squeeze=False)[0]
    for panel, (title, rows) in zip(panels, titles_and_rows.items(), strict=True):
        for place, row in enumerate(rows):
            panel.errorbar(
                100 * row.error.mean, 100 * row.nfr.mean, 100 * row.nfr.deviation, 100 * row.error.deviation,
                fmt="osD^v<>ph"[place % 9], color=f"C{place}", label=row.objective, capsize=2, elinewidth=0.8,
            )  # fmt: skip
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("error of the new model, %")
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("negative flip rate, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), fontsize=8)
    save(figure, file)


def plot_weights(settings: Mapping[str, Curves], file: Path) -> None:
    """NFR and error along the distillation weight, a panel of each setting.

    Args:
        settings: Setting -> its curves.
        file: The plot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(settings), 3.6), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for panel, (setting, curves) in zip(panels, settings.items(), strict=True):
        for place, (objective, points) in enumerate(curves.items()):
            for style, what in (("-", "NFR"), ("--", "error")):
                label = f"{objective}, {what}"
                values = [100 * (nfr if what == "NFR" else error).mean for _, nfr, error in points]
                if objective == "plain":
                    panel.axhline(values[0], color="0.6", linestyle=style, label=label)
                else:
                    panel.plot(
                        [weight for weight, _, _ in points], values, style, marker=".", color=f"C{place}", label=label
                    )
        panel.set_xscale("log")
        panel.set_title(setting, fontsize=10)
        panel.set_xlabel("distillation weight")
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("% of validation images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Write an SVG that is the same on every run."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": file.name, "svg.fonttype": "none"}), replacing(file) as target:
        figure.savefig(target, format="svg", metadata={"Date": None})
