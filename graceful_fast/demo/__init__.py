"""The demo: what an update breaks and what compatible training saves, on real digits and on one published update."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._files import write_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "graceful_fast.demo/1"


def run(output: Path, *, seeds: int = 5, quick: bool = False, console: "Console | None" = None) -> dict[str, Any]:
    """Run the demo, print its tables and write its reports.

    Args:
        output: folder for the HTML reports; made if it is not there.
        seeds: how often the digits are trained, 1 or more.
        quick: one seed, few steps and no published pair: shows that everything runs, not the effect.
        console: where to print; stdout by default.

    Returns:
        The numbers of every seed, their summary, the published pair's (or why it was left out), the files written.

    Raises:
        ValueError: `seeds` below 1, or no images installed.
        OSError: `output` cannot be made or written to.
    """
    from rich.console import Console

    if seeds < 1:
        raise ValueError(f"seeds: expected 1 or more, got {seeds}")
    console = console or Console()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{output}: cannot make the folder: {error.strerror}") from error
    start = perf_counter()
    digits = _run_digits(output, 1 if quick else seeds, quick, console)
    published = _run_published(output, quick, console)
    reports = [*digits.pop("reports"), *published.pop("reports", [])]
    for report in reports:
        console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
    return {
        "schema": SCHEMA,
        "quick": quick,
        "digits": digits,
        "published": published,
        "reports": reports,
        "seconds": round(perf_counter() - start, 1),
    }


def _run_digits(output: Path, seeds: int, quick: bool, console: "Console") -> dict[str, Any]:
    from dataclasses import asdict

    import torch

    from . import tables
    from .digits import QUICK, Recipe, Trained, train_seed
    from .evaluate import evaluate_seed, summarise
    from .images import load_images, split_images

    recipe = QUICK if quick else Recipe()
    images = load_images()
    split = split_images(images.labels)
    labels = images.labels[split.test]
    console.print(tables.setting(images.source, len(split.train), len(labels), recipe, seeds), markup=False)
    # One thread: batches this small gain little from more, and the sums, so the models, are the same on every machine
    # of one kind.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first: dict[str, Trained] = {}
    numbers = []
    try:
        for seed in range(seeds):
            models: dict[str, Trained] = {}

            def done(model: Trained, seed: int = seed, models: dict[str, Trained] = models) -> None:
                models[model.name] = model
                console.print(tables.trained(seed, seeds, model, labels), markup=False, highlight=False)

            train_seed(seed, recipe, images, split, done)
            numbers.append(evaluate_seed(seed, models, labels))
            first = first or models
    finally:
        torch.set_num_threads(threads)
    summary = summarise(numbers)
    for table in (tables.flips(summary, seeds), tables.retrieval(summary, seeds)):
        console.print(table)
    console.print(tables.in_words(summary, seeds), markup=False, highlight=False)
    return {
        "source": images.source,
        "train": len(split.train),
        "test": len(labels),
        "recipe": asdict(recipe),
        "seeds": numbers,
        "summary": summary,
        "reports": _write_digit_reports(output, images.pixels[split.test], labels, first),
    }


def _write_digit_reports(output: Path, pixels: Any, labels: Any, models: dict[str, Any]) -> list[str]:
    """Reports of the first seed's updates, with pictures of the digits that broke."""
    from graceful_fast import compare_classifiers

    from .images import write_png

    pictures = output / "digits"
    pictures.mkdir(exist_ok=True)
    files = []
    old = models["old"].logits
    for name in ("plain", "focal distillation"):
        report = compare_classifiers(old, models[name].logits, labels)
        inputs = [f"test image {row}" for row in range(len(labels))]
        for sample in report.broken:
            file = pictures / f"{sample.row}.png"
            write_png(pixels[sample.row], file)
            inputs[sample.row] = str(file)
        report = compare_classifiers(
            old, models[name].logits, labels, inputs=inputs, classes=[str(i) for i in range(10)]
        )
        page = output / f"digits-{name.replace(' ', '-')}.html"
        write_text(report.to_html(title=f"Digits, seed 0: what the {name} update broke"), page)
        files.append(str(page))
    return files


def _run_published(output: Path, quick: bool, console: "Console") -> dict[str, Any]:
    from . import published, tables

    try:
        if quick:
            raise published.Unavailable("left out by --quick")
        result = published.run(lambda line: console.print(line, markup=False, highlight=False))
    except published.Unavailable as reason:
        console.print(f"published pair skipped: {reason}", markup=False, highlight=False, soft_wrap=True)
        return {"skipped": str(reason)}
    page = output / "magika.html"
    title = f"magika {published.OLD.version} to {published.NEW.version} on this machine's files"
    write_text(result.to_html(title=title), page)
    console.print(tables.published(result))
    console.print(tables.published_in_words(result), markup=False, highlight=False)
    return {
        "old": published.OLD._asdict(),
        "new": published.NEW._asdict(),
        **tables.facts(result),
        "reports": [str(page)],
    }
