"""The command line. Each command checks its input, calls one public function, and prints or writes what it returns."""

import json
import sys
import traceback
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import __version__
from ._files import read_array, read_names, replacing

BAD_INPUT, UNEXPECTED = 2, 70

commands = typer.Typer(name="graceful-fast", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
console = Console()

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file, - for stdout.")]


def app() -> int:
    """Run the command line; the exit code."""
    try:
        code = commands(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (ValueError, TypeError, OSError) as error:
        print(f"graceful-fast: {error}", file=sys.stderr)
        return BAD_INPUT
    except ImportError as error:
        if "pip install" not in str(error):  # an extra that is not installed says so; anything else is a defect
            return unexpected(error)
        print(f"graceful-fast: {error}", file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # usage errors of the option parser
            error.show()
            return BAD_INPUT
        return unexpected(error)


def unexpected(error: Exception) -> int:
    """Show the whole traceback; the exit code of a defect."""
    traceback.print_exception(error)
    print(f"graceful-fast: unexpected error: {error}", file=sys.stderr)
    return UNEXPECTED


def write_json(content: dict[str, Any], target: Path) -> None:
    """Write JSON to a temporary name and rename it, or to stdout for `-`."""
    text = json.dumps(content, indent=2, allow_nan=True) + "\n"
    if str(target) == "-":
        sys.stdout.write(text)
        return
    write_text(text, target)


def write_text(text: str, target: Path) -> None:
    """Write a file under a temporary name, then rename it: a reader never sees half of it."""
    with replacing(target) as file:
        file.write(text.encode())


@commands.callback()
def root() -> None:
    """Replace a model that is in use: see what an update broke, search across versions, decide."""


@commands.command()
def info(json_file: JsonFile = None) -> None:
    """Versions, the instruction set in use, CUDA or why not."""
    import torch

    from . import _C, _ops

    if _C.cuda_built:
        cuda = "available" if torch.cuda.is_available() else "built, but torch sees no GPU"
    else:
        cuda = "no: this build has no CUDA kernels"
    facts = {
        "version": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "isa": _ops.isa,
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "compiler": _C.compiler,
    }
    if json_file is not None:
        write_json(facts, json_file)
        if str(json_file) == "-":
            return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key, str(value))
    console.print(table)


@commands.command()
def compare(
    old_file: Annotated[Path, typer.Option("--old", help="The old model's (N, classes) scores or (N,) classes, .npy.")],
    new_file: Annotated[Path, typer.Option("--new", help="The same of the new model.")],
    labels_file: Annotated[Path, typer.Option("--labels", help="The (N,) right classes, integers, .npy.")],
    classes_file: Annotated[Path | None, typer.Option("--classes", help="Names of the classes, one a line.")] = None,
    groups_file: Annotated[Path | None, typer.Option("--groups", help="A group of each sample, .npy.")] = None,
    inputs_file: Annotated[
        Path | None, typer.Option("--inputs", help="Name or image file of each sample, one a line.")
    ] = None,
    topk: Annotated[int, typer.Option("--topk", help="Right if the label is among the K best.")] = 1,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write the report as a page to this file.")] = None,
    json_file: JsonFile = None,
) -> None:
    """What an update of a classifier broke: how much, in which classes, which samples."""
    from .update.report import compare_classifiers
    from .update.terminal import print_report

    report = compare_classifiers(
        read_array(old_file),
        read_array(new_file),
        read_array(labels_file),
        topk=topk,
        classes=None if classes_file is None else read_names(classes_file),
        groups=None if groups_file is None else read_array(groups_file),
        inputs=None if inputs_file is None else read_names(inputs_file),
    )
    if html_file is not None:
        write_text(report.to_html(), html_file)
    if json_file is not None:
        write_json(report.to_dict(), json_file)
    if str(json_file) != "-":
        print_report(report, console)


@commands.command()
def search(
    queries_file: Annotated[Path, typer.Option("--queries", help="(Q, D) embeddings, .npy.")],
    gallery_file: Annotated[Path, typer.Option("--gallery", help="(N, D) embeddings, .npy.")],
    out_file: Annotated[
        Path, typer.Option("--out", help="Write `indices` and `scores`, (Q, K) each, to this .npz file.")
    ],
    k: Annotated[int, typer.Option("-k", "--k", help="Neighbours of each query.")] = 10,
    metric: Annotated[str, typer.Option("--metric", help="cosine, ip or l2.")] = "cosine",
    json_file: JsonFile = None,
) -> None:
    """The exact nearest neighbours of every query."""
    queries, gallery = read_array(queries_file), read_array(gallery_file)
    from .search import knn

    with replacing(out_file) as file:  # opened first: a name that cannot be written is known before the work is done
        start = perf_counter()
        found = knn(queries, gallery, k, metric=cast(Any, metric))  # knn itself checks the name
        seconds = perf_counter() - start
        np.savez(file, indices=found.indices, scores=found.scores)
    facts = {
        "schema": "graceful_fast.search/1",
        "queries": len(queries),
        "gallery": len(gallery),
        "dimensions": int(gallery.shape[1]),
        "k": k,
        "metric": metric,
        "seconds": round(seconds, 6),
        "out": str(out_file),
    }
    if json_file is not None:
        write_json(facts, json_file)
    if str(json_file) != "-":
        table = Table(show_header=False, box=None)
        for key, value in facts.items():
            table.add_row(key, Text(str(value)))
        console.print(table)


@commands.command()
def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder for the HTML reports.")] = Path("demo-output"),
    seeds: Annotated[int, typer.Option("--seeds", help="How often the digits are trained.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that it runs: one seed, few steps.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Train an old digit classifier and its successors, compare a published update; under 3 minutes."""
    from .demo import run

    # With --json - the tables go to stderr, so that stdout holds nothing but the JSON.
    result = run(output, seeds=seeds, quick=quick, console=Console(stderr=True) if str(json_file) == "-" else console)
    if json_file is not None:
        write_json(result, json_file)
