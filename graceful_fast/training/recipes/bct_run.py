"""`graceful-fast train bct`: every part of the recipe, resumed where it was stopped, and what its results say."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from ..._files import write_text
from ..chain import Policy
from ..results import Entry, Results
from . import bct_backfill, bct_digits, bct_glosses, bct_report, bct_sweep, chain_digits
from .bct_report import Table, grouped
from .digits import Digits, load_digits
from .glosses import load_glosses
from .pct_report import markdown

if TYPE_CHECKING:
    from rich.console import Console

Part = Literal["images", "images-sweep", "text", "text-sweep", "chain", "backfill"]
SCHEMA = "graceful_fast.train.bct.summary/1"

Work = Callable[[], Entry]
Tables = dict[str, Table]


def run(
    output: Path, *, part: Part = "images", seeds: int = 5, quick: bool = False, console: "Console | None" = None
) -> dict[str, Any]:
    """Measure what is not yet in the results file of this part, print its tables, write its plot.

    Args:
        output: Folder of `PART.json`, `tables-PART.md` and `PART.svg`; made if it is not there.
        part: "images": four updates on digits; "text": from WordLlama to MiniLM on WordNet's glosses; their "-sweep":
            options, on other rows and seeds; "chain": four versions; "backfill": mixed galleries and their clusters.
        seeds: How often everything is trained, 1 or more. At most 2 in a sweep.
        quick: One seed, few steps: shows that it runs, not the effect.
        console: Where to print; stdout by default.

    Returns:
        The summary and the files.

    Raises:
        ValueError: A bad option, no images installed, or results of another recipe in `output`.
        ImportError, OSError: "text" without its packages or without WordNet; `output` cannot be written to.
    """
    from rich.console import Console

    if part not in get_args(Part):
        raise ValueError(f"part: expected one of {', '.join(get_args(Part))}, got {part!r}")
    if seeds < 1:
        raise ValueError(f"seeds: expected 1 or more, got {seeds}")
    console = console or Console()
    numbers = range(1 if quick else seeds)
    if part.endswith("sweep"):
        numbers = range(bct_sweep.FIRST_SEED, bct_sweep.FIRST_SEED + min(len(numbers), bct_sweep.SEEDS))
    # One thread: batches this small gain nothing from more, and the sums, so the models, are the same on every machine
    # of one kind.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = {"images": images, "text": text, "chain": chain, "backfill": backfill}[part.partition("-")[0]]
        schema, recipe, work = measured(numbers, quick, part.endswith("sweep"))
        results = Results(output / f"{part}.json", schema, recipe)
        for name, measure in work:
            _timed(results, name, measure, console)
    finally:
        torch.set_num_threads(threads)
    tables, plot = report(part, results.entries)
    files = [results.path, output / f"tables-{part}.md"]
    write_text("\n".join(f"### {title}\n\n{markdown(*table)}" for title, table in tables.items()), files[1])
    if plot is not None:
        files.append(output / f"{part}.svg")
        plot(files[2])
    for title, table in tables.items():
        console.print(_console_table(title, table))
    return {
        "schema": SCHEMA,
        "part": part,
        "recipe": results.head["recipe"],
        "tables": {title: {"columns": list(columns), "rows": rows} for title, (columns, rows) in tables.items()},
        "files": [str(file) for file in files],
    }


Measured = tuple[str, dict[str, Any], Iterable[tuple[str, Work]]]
"""Schema, recipe, and what to measure by the name of its entry."""


def digits_recipe(quick: bool) -> bct_digits.Recipe:
    """Of all parts on digits."""
    return replace(bct_digits.Recipe(), steps=5) if quick else bct_digits.Recipe()


def digits_of(recipe: bct_digits.Recipe, quick: bool) -> Digits:
    """Images, cut to those that are measured on; few where it is to be quick."""
    digits = load_digits(recipe.train, recipe.validation)
    items = 100 if quick else recipe.items
    return digits._replace(validation=digits.validation[:items], test=digits.test[:items])


def images(seeds: range, quick: bool, sweep: bool) -> Measured:
    """Updates on digits, or their options."""
    recipe = digits_recipe(quick)
    if sweep:
        recipe = replace(recipe, options={})

    def work() -> Iterable[tuple[str, Work]]:
        digits = digits_of(recipe, quick)
        for seed in seeds:
            models = bct_digits.Models(digits, recipe, seed, digits.validation if sweep else digits.test)
            measure = partial(bct_digits.measure, models)
            if sweep:
                for objective, options in bct_sweep.grid():
                    name = f"{bct_sweep.name_of(objective, options)}/{seed}"
                    yield name, partial(measure, "more data", objective, options)
                continue
            for setting in bct_digits.SETTINGS:
                for objective in bct_digits.objectives_of(setting):
                    options = bct_digits.options_of(recipe.options, objective)
                    yield f"{setting}/{objective}/{seed}", partial(measure, setting, objective, options)

    return bct_digits.SCHEMA, asdict(recipe), work()


def text(seeds: range, quick: bool, sweep: bool) -> Measured:
    """An update of encoders, or its options."""
    recipe = bct_glosses.Recipe()
    if quick:
        recipe = replace(recipe, epochs=1)
    if sweep:
        recipe = replace(recipe, options={})

    def work() -> Iterable[tuple[str, Work]]:
        parts = bct_glosses.Parts(load_glosses(), recipe)
        measure = partial(bct_glosses.measure, parts, recipe)
        for seed in seeds:
            if sweep:
                for objective, options in bct_sweep.grid():
                    name = f"{bct_sweep.name_of(objective, options)}/{seed}"
                    yield name, partial(measure, objective, seed, options, parts.validation)
                continue
            for objective in bct_glosses.OBJECTIVES:
                options = bct_digits.options_of(recipe.options, objective)
                yield f"{objective}/{seed}", partial(measure, objective, seed, options, parts.test)
        if not sweep:
            both, topics = parts.test.tensors
            for shortlist in bct_glosses.SHORTLISTS:
                old, new = both[:, : -bct_glosses.NEW_DIM], both[:, -bct_glosses.NEW_DIM :]
                yield f"cascade/{shortlist}/0", partial(bct_glosses.measure_cascade, old, new, topics, shortlist)

    return bct_glosses.SCHEMA, asdict(recipe), work()


def chain(seeds: range, quick: bool, sweep: bool) -> Measured:
    """Four versions on digits."""
    recipe = digits_recipe(quick)

    def work() -> Iterable[tuple[str, Work]]:
        digits = digits_of(recipe, quick)
        options = bct_digits.options_of(recipe.options, "BCT")
        for seed in seeds:
            models = bct_digits.Models(digits, recipe, seed, digits.test)
            for policy in get_args(Policy):
                yield f"{policy}/{seed}", partial(chain_digits.measure, models, policy, options)

    return chain_digits.SCHEMA, asdict(recipe), work()


def backfill(seeds: range, quick: bool, sweep: bool) -> Measured:
    """Mixed galleries of digits."""
    recipe = digits_recipe(quick)

    def work() -> Iterable[tuple[str, Work]]:
        digits = digits_of(recipe, quick)
        for seed in seeds:
            models = bct_digits.Models(digits, recipe, seed, digits.test)
            found = bct_backfill.galleries(models, bct_digits.options_of(recipe.options, "BCT"))
            for variant in bct_backfill.SEARCHES:
                for order in bct_backfill.ORDERS:
                    yield f"{variant}/{order}/{seed}", partial(bct_backfill.measure, found, variant, order, seed)
            yield f"clusters/{seed}", partial(bct_backfill.measure_clusters, found, seed)

    return bct_backfill.SCHEMA, asdict(recipe), work()


def report(part: str, entries: dict[str, Entry]) -> tuple[Tables, Callable[[Path], None] | None]:
    """Tables by title, and what draws the plot."""
    groups = grouped(entries)
    if part.endswith("sweep"):
        return {part: bct_report.update_table(groups)}, None
    if part == "chain":
        tables = {"Four versions": bct_report.chain_table(groups)}
        tables |= {f"mAP, each fits: {policy}": bct_report.matrix_table(found) for policy, found in groups.items()}
        return tables, partial(bct_report.plot_chain, groups)
    nested: dict[str, dict[str, list[Entry]]] = {}
    for name, found in groups.items():
        first, _, second = name.partition("/")
        nested.setdefault(first, {})[second] = found
    if part == "backfill":
        clusters = nested.pop("clusters")[""]
        tables = {
            "mAP during the backfill": bct_report.area_table(nested),
            "Clusters": bct_report.cluster_table(clusters),
        }
        return tables, partial(bct_report.plot_backfill, nested)
    if part == "text":
        cascade = nested.pop("cascade", {})
        updates = {"WordLlama to MiniLM": {name: found[""] for name, found in nested.items()}}
    else:
        cascade, updates = {}, nested
    tables = {title: bct_report.update_table(objectives) for title, objectives in updates.items()}
    if cascade:
        tables["Cascade"] = bct_report.cascade_table(cascade)
    return tables, partial(bct_report.plot_updates, updates)


def _timed(results: Results, name: str, work: Work, console: "Console") -> None:
    """One entry: from the file without a word, or measured, timed and told."""
    if name in results.entries:
        return
    start = process_time()
    results.entry(name, lambda: {**work(), "seconds": round(process_time() - start, 2)})
    console.print(
        f"{name:<60} {results.entries[name]['seconds']:6.1f} s", markup=False, highlight=False, soft_wrap=True
    )


def _console_table(title: str, table: Table) -> Any:
    from rich.table import Table as Printed

    columns, rows = table
    printed = Printed(title=title, title_justify="left")
    for place, column in enumerate(columns):
        printed.add_column(column, justify="right" if place else "left")
    for row in rows:
        printed.add_row(*row)
    return printed
