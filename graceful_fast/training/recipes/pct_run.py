"""`graceful-fast train pct`: every part of the recipe, resumed where it was stopped, and what its results say."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from ..._files import write_text
from ..results import Entry, Results, spread
from . import pct_sections, pct_settings, pct_sweep
from .digits import load_digits
from .pct_report import COLUMNS, Curves, Row, by_objective, markdown, plot_rows, plot_weights, rows_of

if TYPE_CHECKING:
    from rich.console import Console

Part = Literal["settings", "sweep", "published"]
SCHEMA = "graceful_fast.train.pct.summary/1"


def run(
    output: Path,
    *,
    part: Part = "settings",
    seeds: int = 5,
    images: int | None = None,
    quick: bool = False,
    console: "Console | None" = None,
) -> dict[str, Any]:
    """Measure what is not yet in the results file of this part, print its tables, write its plot.

    Args:
        output: Folder of the results, of `tables-PART.md` and of the plots; made if it is not there.
        part: "settings": the four updates of digits; "sweep": their hyper-parameters, on other images and seeds;
            "published": text classifiers on two published encoders.
        seeds: How often everything is trained, 1 or more. At most 2 in the sweep.
        images: For "settings", images to train on in place of the recipe's, 20 or more; the options stay.
        quick: One seed, few steps: shows that it runs, not the effect.
        console: Where to print; stdout by default.

    Returns:
        The summary and the files.

    Raises:
        ValueError: A bad option, no images installed, or results of another recipe in `output`.
        ImportError: "published" without its packages.
        OSError: `output` cannot be written to; "published" without `apt-cache`.
    """
    from rich.console import Console

    if part not in get_args(Part):
        raise ValueError(f"part: expected one of {', '.join(get_args(Part))}, got {part!r}")
    if seeds < 1:
        raise ValueError(f"seeds: expected 1 or more, got {seeds}")
    if images is not None and (images < 20 or part != "settings"):
        raise ValueError(f"images: expected 20 or more, with part settings, got {images} with {part}")
    console = console or Console()
    # One thread: batches this small gain nothing from more, and the sums, so the models, are the same on every machine
    # of one kind.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = partial(_settings, images=images)
        parts: dict[str, Callable[..., Measured]] = {"settings": settings, "sweep": _sweep, "published": _published}
        tables, file, results = parts[part](output, 1 if quick else seeds, quick, console)
    finally:
        torch.set_num_threads(threads)
    text = "\n".join(
        f"### {title}\n\n{markdown(COLUMNS, (row.cells() for row in rows))}" for title, rows in tables.items()
    )
    write_text(text, output / f"tables-{part}.md")
    for title, rows in tables.items():
        console.print(_console_table(title, rows))
    return {
        "schema": SCHEMA,
        "part": part,
        "recipe": results.head["recipe"],
        "tables": {title: [_plain_values(row) for row in rows] for title, rows in tables.items()},
        "files": [str(name) for name in (results.path, output / f"tables-{part}.md", file)],
    }


Measured = tuple[dict[str, list[Row]], Path, Results]
"""Tables by title, the plot, the results."""


def _measure(results: Results, name: str, work: Any, console: "Console") -> Entry:
    """One entry: from the file without a word, or measured, timed and told."""
    if name in results.entries:
        return results.entries[name]
    start = process_time()

    def timed() -> Entry:
        entry: Entry = work()
        return {**entry, "seconds": round(process_time() - start, 2)}

    entry = results.entry(name, timed)
    numbers = f"error {entry['error_new_all']:6.2%}  NFR {entry['nfr']:6.2%}  {entry['seconds']:5.1f} s"
    console.print(f"{name:<60} {numbers}", markup=False, highlight=False, soft_wrap=True)
    return entry


def _settings(output: Path, seeds: int, quick: bool, console: "Console", images: int | None) -> Measured:
    recipe = pct_settings.Recipe()
    if images is not None:
        recipe = replace(recipe, train=images)
    if quick:
        recipe = replace(recipe, steps=5, members=2)
    results = Results(output / "settings.json", pct_settings.SCHEMA, asdict(recipe))
    digits = load_digits(recipe.train, recipe.validation)
    for seed in range(seeds):
        models = pct_settings.Models(digits, recipe, seed)
        for setting in pct_settings.SETTINGS:
            for objective in pct_settings.OBJECTIVES:
                options = recipe.options.get(setting, {}).get(objective, {})

                def work(
                    models: pct_settings.Models = models,
                    update: tuple[str, str, dict[str, Any]] = (setting, objective, options),
                ) -> Entry:
                    return pct_settings.measure(models, *update, digits.test)

                _measure(results, f"{setting}/{objective}/{seed}", work, console)
    tables = {setting: rows_of(by_objective(results.entries, setting)) for setting in pct_settings.SETTINGS}
    plot_rows(tables, output / "settings.svg")
    return tables, output / "settings.svg", results


def _sweep(output: Path, seeds: int, quick: bool, console: "Console") -> Measured:
    recipe = pct_settings.Recipe(options={})
    points = list(pct_sweep.grid())
    if quick:
        recipe = replace(recipe, steps=5, members=2)
    seeds = min(seeds, pct_sweep.SEEDS)
    results = Results(output / "sweep.json", pct_sweep.SCHEMA, asdict(recipe) | {"first_seed": pct_sweep.FIRST_SEED})
    digits = load_digits(recipe.train, recipe.validation)
    for seed in range(pct_sweep.FIRST_SEED, pct_sweep.FIRST_SEED + seeds):
        models = pct_settings.Models(digits, recipe, seed)
        for point in points:

            def work(models: pct_settings.Models = models, point: pct_sweep.Point = point) -> Entry:
                return pct_settings.measure(models, *point, digits.validation)

            _measure(results, f"{point.name}/{seed}", work, console)
    tables = {
        setting: rows_of({p.label: pct_sweep.of(results, p) for p in points if p.setting == setting})
        for setting in pct_settings.SETTINGS
    }
    plot_weights({setting: _curves(results, setting) for setting in tables}, output / "sweep.svg")
    return tables, output / "sweep.svg", results


def _curves(results: Results, setting: str) -> Curves:
    """What plots along the distillation weight: FD-KL and FD-LM as published, FD-KL where the old model is right."""
    curves: Curves = {}
    for point in pct_sweep.grid():
        entries, others = pct_sweep.of(results, point), dict(point.options)
        weight = others.pop("distillation_weight", None)
        kinds = {"{}": "", str(pct_sweep.ONLY_RIGHT): " where right, T = 4"}
        if point.setting == setting and str(others) in kinds and (weight or point.objective == "plain"):
            nfr, error = (spread(entry[key] for entry in entries) for key in ("nfr", "error_new_all"))
            curves.setdefault(point.objective + kinds[str(others)], []).append((weight or 1.0, nfr, error))
    return curves


def _published(output: Path, seeds: int, quick: bool, console: "Console") -> Measured:
    recipe = pct_sections.Recipe()
    if quick:
        recipe = replace(recipe, train=64, validation=8, test=64, epochs=1, members=2)
    grid = pct_sections.GRID
    results = Results(output / "published.json", pct_sections.SCHEMA, asdict(recipe) | {"grid": grid})
    texts = pct_sections.load_texts(recipe)
    tried = range(pct_sweep.FIRST_SEED, pct_sweep.FIRST_SEED + (1 if quick else pct_sweep.SEEDS))
    validating = [pct_sections.Heads(texts, recipe, seed) for seed in tried]

    def validated(objective: str, options: dict[str, Any]) -> list[Entry]:
        label = ", ".join([objective, *(f"{key}={value}" for key, value in options.items())])
        return [
            _measure(
                results,
                f"validation/{label}/{heads.seed}",
                lambda heads=heads: heads.measure(objective, options, texts.validation),
                console,
            )
            for heads in validating
        ]

    plain = validated("plain", {})
    chosen = {
        objective: pct_sweep.least_flips([(options, validated(objective, options)) for options in choices], plain)
        for objective, choices in grid.items()
    }
    chosen["ELODI after plain"] = chosen["ELODI"]
    for seed in range(seeds):
        heads = pct_sections.Heads(texts, recipe, seed)
        for objective in pct_sections.OBJECTIVES:

            def work(heads: pct_sections.Heads = heads, objective: str = objective) -> Entry:
                return heads.measure(objective, chosen.get(objective, {}), texts.test)

            _measure(results, f"{objective}/{seed}", work, console)
    title = f"{pct_sections.OLD.name} to {pct_sections.NEW.name}"
    tables = {title: rows_of(by_objective(results.entries))}
    plot_rows(tables, output / "published.svg")
    return tables, output / "published.svg", results


def _console_table(title: str, rows: list[Row]) -> Any:
    from rich.table import Table

    old = rows[0].error_old.percent()
    table = Table(title=f"{title}: the old model's error is {old} %", title_justify="left")
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row.cells())
    return table


def _plain_values(row: Row) -> dict[str, Any]:
    values = row._asdict()
    return {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in values.items()}
