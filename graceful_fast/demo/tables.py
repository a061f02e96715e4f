"""What the demo prints."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from .evaluate import SUCCESSORS

if TYPE_CHECKING:
    import torch

    from ..update.report import UpdateReport
    from .digits import Recipe, Trained

_MOST_KINDS = 12


def setting(source: str, train: int, test: int, recipe: "Recipe", seeds: int) -> str:
    """What is about to be trained."""
    return (
        f"{source}: {test} test images that no model trains on. Old model: a small CNN, on {recipe.old_share:.0%} of "
        f"the {train} training images. Its successors: twice as wide, on all of them. {seeds} seed{'s' * (seeds > 1)}."
    )


def trained(seed: int, seeds: int, model: "Trained", labels: "torch.Tensor") -> str:
    """One line per trained model."""
    accuracy = float((model.logits.argmax(1) == labels).double().mean())
    return f"seed {seed + 1}/{seeds}  {model.name:<18}  accuracy {accuracy:6.2%}  {model.seconds:5.1f} s"


def flips(summary: dict[str, dict[str, Any]], seeds: int) -> Table:
    """Accuracy and negative flips of every successor."""
    table = Table(title=f"Classification: what the update breaks, {_range_of(seeds)}", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("accuracy %", "NFR %", "relative NFR %"):
        table.add_column(column, justify="right")
    table.add_row("old", _spread(summary["old"]["accuracy"]), "-", "-")
    for name in SUCCESSORS:
        row = summary[name]
        label = "old, reseeded" if name == "reseed" else name
        table.add_row(
            label.replace("distillation", "distill."),
            _spread(row["accuracy"]),
            _spread(row["nfr"], 2),
            _spread(row["relative_nfr"]),
        )
    return table


def retrieval(summary: dict[str, dict[str, Any]], seeds: int) -> Table:
    """Search with each model's queries: in the gallery that the old model embedded, and in one of its own."""
    table = Table(title=f"Retrieval: hit@1 in %, {_range_of(seeds)}", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("old gallery", "own gallery", "compatible", "gain"):
        table.add_column(column, justify="right")
    table.add_row("old", _spread(summary["old"]["old/old"]), "-", "-", "-")
    for name in ("plain", "focal distillation", "BCT"):
        row = summary[name]
        gain = row["update_gain"]
        table.add_row(
            name.replace("distillation", "distill."),
            _spread(row["new/old"]),
            _spread(row["new/new"]),
            f"{row['compatible']} of {seeds}",
            f"{100 * gain['mean']:.0f}" if gain and gain["mean"] > 0 else "-",
        )
    return table


def in_words(summary: dict[str, dict[str, Any]], seeds: int) -> str:
    """The two tables in two sentences, numbers from the means."""
    plain, distilled, bct = (summary[name] for name in SUCCESSORS[1:])

    def mean(row: dict[str, Any], key: str) -> str:
        return f"{row[key]['mean']:.2%}"

    return (
        f"Plain update: accuracy {mean(summary['old'], 'accuracy')} -> {mean(plain, 'accuracy')}, and "
        f"{mean(plain, 'nfr')} of the images that were right are wrong now, as a share of all; with focal distillation "
        f"{mean(distilled, 'nfr')}, at accuracy {mean(distilled, 'accuracy')}.\n"
        f"A query of the new model finds its class in the old gallery in {mean(plain, 'new/old')} of cases after the "
        f"plain update, in {mean(bct, 'new/old')} after BCT; the old model did in {mean(bct, 'old/old')}.\n"
        f"Compatible (finds more in the old gallery than the old model): BCT in {bct['compatible']} of {seeds} seeds, "
        f"the plain update in {plain['compatible']}. Gain: in %, how much it brings of what embedding the "
        "whole gallery again with the plain model would; - where it brings nothing."
    )


def published(report: "UpdateReport") -> Table:
    """The classes of the published pair that broke most."""
    table = Table(title="Published update: file types that broke most", title_justify="left")
    table.add_column("type")
    for column in ("files", "broken", "fixed"):
        table.add_column(column, justify="right")
    table.add_column("broken ones are now taken for")
    taken: dict[int, list[str]] = {}
    for confusion in report.confusions:
        taken.setdefault(confusion.target, []).append(f"{report.class_name(confusion.new)} {confusion.samples}")
    for kind in report.per_class[:_MOST_KINDS]:
        if kind.flips.negative:
            names = ", ".join(taken.get(int(kind.key), [])[:3])
            table.add_row(kind.name, str(kind.flips.total), str(kind.flips.negative), str(kind.flips.positive), names)
    return table


def published_in_words(report: "UpdateReport") -> str:
    """The published pair in two sentences, and how far to trust them."""
    lines = [
        f"{report.flips.total} files: accuracy {report.accuracy_old:.1%} before, {report.accuracy_new:.1%} after; "
        f"negative flips {report.flips.nfr:.2%}, positive flips {report.flips.pfr:.2%}."
    ]
    for group in report.per_group:
        counts = group.flips
        lines.append(
            f"{group.name}: {counts.total} files, {1 - counts.error_old:.1%} before, {1 - counts.error_new:.1%} after."
        )
    lines.append("The truth is the file's extension, which is noisy (.pl is also a table, .txt anything).")
    return "\n".join(lines)


def facts(report: "UpdateReport") -> dict[str, Any]:
    """The published pair's numbers for the JSON."""
    counts = report.flips
    return {
        "files": counts.total,
        "accuracy_old": report.accuracy_old,
        "accuracy_new": report.accuracy_new,
        "nfr": counts.nfr,
        "pfr": counts.pfr,
        "groups": {
            str(group.key): {
                "files": group.flips.total,
                "accuracy_old": 1 - group.flips.error_old,
                "accuracy_new": 1 - group.flips.error_new,
                "nfr": group.flips.nfr,
            }
            for group in report.per_group
        },
        "classes": {
            kind.name: {"files": kind.flips.total, "broken": kind.flips.negative, "fixed": kind.flips.positive}
            for kind in report.per_class
        },
    }


def _range_of(seeds: int) -> str:
    return f"mean and \\[range] of {seeds} seeds" if seeds > 1 else "1 seed"  # escaped: brackets are markup


def _spread(value: dict[str, float] | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    mean, least, most = (f"{100 * value[key]:.{digits}f}" for key in ("mean", "min", "max"))
    return mean if least == most else f"{mean} [{least}, {most}]"
