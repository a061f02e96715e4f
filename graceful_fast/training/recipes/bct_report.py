"""What the measurements of compatible training say: tables for a page, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results import Entry, Spread, spread
from .pct_report import save

UPDATE_COLUMNS = (
    "objective", "old/old", "new/old", "new/new", "compatible", "gain %", "new/new against plain", "accuracy %",
)  # fmt: skip

Table = tuple[Sequence[str], list[list[str]]]
"""Columns and rows, as printed."""


def grouped(entries: Mapping[str, Entry]) -> dict[str, list[Entry]]:
    """Entries named "group/seed" by their group, one of each seed."""
    found: dict[str, list[Entry]] = {}
    for name, entry in entries.items():
        found.setdefault(name.rpartition("/")[0], []).append(entry)
    return found


def of_pair(entries: Sequence[Entry], pair: str, value: str = "map") -> Spread:
    """One number of the cross-version matrix over the seeds."""
    return spread(entry[pair][value] for entry in entries)


def update_table(objectives: Mapping[str, Sequence[Entry]]) -> Table:
    """mAP of every pair of versions, the criterion, the gain and what compatibility costs.

    Args:
        objectives: Objective -> its entries, one of each seed.
    """
    rows = []
    for objective, entries in objectives.items():
        gains = [entry["gain"] for entry in entries]
        cost = spread(entry["new/new"]["map"] - entry["paragon"]["map"] for entry in entries)
        rows.append([
            objective,
            *(of_pair(entries, pair).percent(1) for pair in ("old/old", "new/old", "new/new")),
            f"{sum(entry['compatible'] for entry in entries)} of {len(entries)}",
            "-" if None in gains else spread(gains).percent(0),
            f"{100 * cost.mean:+.1f} ± {100 * cost.deviation:.1f}",
            "-" if None in (a := [entry["accuracy"] for entry in entries]) else spread(a).percent(1),
        ])  # fmt: skip
    return UPDATE_COLUMNS, rows


def chain_table(policies: Mapping[str, Sequence[Entry]]) -> Table:
    """Compatibility of each policy, and what the last version pays."""
    columns = (
        "each version fits", "average compatibility", "mean mAP of all pairs", "v4/v1", "v4/v2", "v4/v3", "v4/v4",
        "accuracy of v4 %",
    )  # fmt: skip
    rows = []
    for policy, entries in policies.items():
        compatibility = spread(entry["average_compatibility"] for entry in entries)
        rows.append([
            policy,
            f"{compatibility.mean:.2f} ± {compatibility.deviation:.2f}",
            spread(entry["average_map"] for entry in entries).percent(1),
            *(spread(entry["map"][3][version] for entry in entries).percent(1) for version in range(4)),
            spread(entry["accuracy"][3] for entry in entries).percent(1),
        ])  # fmt: skip
    return columns, rows


def matrix_table(entries: Sequence[Entry]) -> Table:
    """The mean cross-version matrix of one policy; bold: above the gallery's own version in all seeds."""
    versions = range(len(entries[0]["map"]))
    rows = []
    for i in versions:
        row = [f"queries v{i + 1}"]
        for j in versions[: i + 1]:
            text = spread(entry["map"][i][j] for entry in entries).percent(1)
            wins = i > j and all(entry["map"][i][j] > entry["map"][j][j] for entry in entries)
            row.append(f"**{text}**" if wins else text)
        rows.append(row + [""] * (len(versions) - i - 1))
    return ("", *(f"gallery v{j + 1}" for j in versions)), rows


def area_table(variants: Mapping[str, Mapping[str, Sequence[Entry]]]) -> Table:
    """The area under each curve, by order."""
    orders = list(next(iter(variants.values())))
    rows = []
    for variant, by_order in variants.items():
        ends = [spread(entry["map"][place] for entry in by_order[orders[0]]).percent(1) for place in (0, -1)]
        areas = [spread(entry["area"] for entry in by_order[order]).percent(1) for order in orders]
        rows.append([variant, ends[0], *areas, ends[1]])
    return ("index", "nothing done", *(f"area, {order}" for order in orders), "all done"), rows


def cluster_table(entries: Sequence[Entry]) -> Table:
    """Agreement of clusters with the identities, and with the old clusters."""
    values = {"bcubed_f": "B-cubed F", "pairwise_f": "pairwise F"}
    keys = [key + suffix for suffix in ("", "_with_old") for key in values]
    columns = ["gallery", *(f"{name}, {what}" for what in ("identities", "old clusters") for name in values.values())]
    rows = [
        [kind, *(of_pair(entries, kind, key).percent(1) for key in keys)] for kind in entries[0] if kind != "seconds"
    ]
    return columns, rows


def cascade_table(shortlists: Mapping[str, Sequence[Entry]]) -> Table:
    """Quality against the length of the shortlist."""
    rows = [
        [name, *(spread(entry[key] for entry in entries).percent(1) for key in ("hit", "precision@10"))]
        for name, entries in shortlists.items()
    ]
    return ("shortlist", "hit@1", "precision@10"), rows


def plot_updates(settings: Mapping[str, Mapping[str, Sequence[Entry]]], file: Path) -> None:
    """New/new against new/old, a panel of each setting; compatible is above the dashed line, old/old."""
    figure, panels = _panels(len(settings))
    for panel, (setting, objectives) in zip(panels, settings.items(), strict=True):
        for place, (objective, entries) in enumerate(objectives.items()):
            new, across = of_pair(entries, "new/new"), of_pair(entries, "new/old")
            panel.errorbar(
                100 * new.mean, 100 * across.mean, 100 * across.deviation, 100 * new.deviation,
                fmt="osD^v<>phX*d"[place % 12], color=f"C{place % 10}", label=objective, capsize=2, elinewidth=0.8,
            )  # fmt: skip
        panel.axhline(100 * of_pair(next(iter(objectives.values())), "old/old").mean, color="0.4", linestyle="--")
        panel.set_title(setting, fontsize=10)
        panel.set_xlabel("mAP new/new, %")
    panels[0].set_ylabel("mAP new/old, %")
    _finish(figure, panels, file)


def plot_chain(policies: Mapping[str, Sequence[Entry]], file: Path) -> None:
    """The last version's queries in every gallery, by policy; crosses: each gallery's own version."""
    figure, (panel,) = _panels(1)
    for place, (policy, entries) in enumerate(policies.items()):
        last = [spread(entry["map"][3][version] for entry in entries) for version in range(4)]
        own = [spread(entry["map"][version][version] for entry in entries).mean for version in range(4)]
        panel.errorbar(
            range(1, 5), [100 * x.mean for x in last], [100 * x.deviation for x in last],
            marker="o", color=f"C{place}", label=policy, capsize=2,
        )  # fmt: skip
        panel.plot(range(1, 5), [100 * x for x in own], "x", color=f"C{place}")
    panel.set_xticks(range(1, 5), [f"v{version}" for version in range(1, 5)])
    panel.set_xlabel("gallery")
    panel.set_ylabel("mAP of v4's queries, %")
    _finish(figure, [panel], file)


def plot_backfill(variants: Mapping[str, Mapping[str, Sequence[Entry]]], file: Path) -> None:
    """Quality against the fraction embedded again, a panel of each order; means over the seeds."""
    orders = list(next(iter(variants.values())))
    figure, panels = _panels(len(orders))
    for panel, order in zip(panels, orders, strict=True):
        for place, (variant, by_order) in enumerate(variants.items()):
            entries = by_order[order]
            fractions = entries[0]["fractions"]
            means = [spread(entry["map"][i] for entry in entries).mean for i in range(len(fractions))]
            panel.plot(
                [100 * x for x in fractions], [100 * x for x in means], marker=".", color=f"C{place}", label=variant
            )
        panel.set_title(f"order: {order}", fontsize=10)
        panel.set_xlabel("gallery embedded again, %")
    panels[0].set_ylabel("mAP, %")
    _finish(figure, panels, file)


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.2 * count, 5.5), 3.8), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _finish(figure: Any, panels: Any, file: Path) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3 * len(panels)), fontsize=7)
    save(figure, file)
