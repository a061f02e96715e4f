"""The command line. Each command checks its input, calls one public function, and prints or writes what it returns."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import __version__
from ._files import check_outputs, json_output, read_array, read_names, replacing, write_text

BAD_INPUT, UNEXPECTED = 2, 70
INTERRUPTED, CLOSED_PIPE = 130, 141  # 128 + SIGINT, SIGPIPE, as a shell says it

commands = typer.Typer(name="graceful-fast", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
console = Console()

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{end}": base**power for power, prefix in enumerate("kmgt", 1) for end, base in (("ib", 1024), ("b", 1000))
}

GallerySource = Annotated[
    str, typer.Argument(metavar="GALLERY", help="A file, a directory, a quoted pattern, or what `prepare` has written.")
]
Key = Annotated[str | None, typer.Option("--key", help="Which array or column of GALLERY.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Of raw files: float32, float16, int8, ...")]
Dim = Annotated[int | None, typer.Option("--dim", help="Of raw files: values in a row.")]
Offset = Annotated[int, typer.Option("--offset", help="Of raw files: bytes before the first row.")]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", help="How much memory the search may take: 2GiB, 500MB, bytes.")
]
QueryIds = Annotated[Path | None, typer.Option("--query-ids", help="(Q,) integers, .npy: no row finds itself.")]
GalleryIds = Annotated[Path | None, typer.Option("--gallery-ids", help="(N,) integers, .npy.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file, - for stdout.")]


def app() -> int:
    """Run the command line; the exit code."""
    try:
        code = commands(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # whoever reads has seen enough; typer and rich then exit, with 1
        drop_output()
        return CLOSED_PIPE
    except OSError as error:
        if error.strerror is not None and error.filename is None:
            drop_output()
        place = "standard output" if error.filename is None else error.filename
        print(f"graceful-fast: {error if error.strerror is None else f'{place}: {error.strerror}'}", file=sys.stderr)
        return BAD_INPUT
    except (ValueError, TypeError) as error:
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


def drop_output() -> None:
    """What stdout could not take is not tried again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def naming(arguments: dict[str, str]) -> Iterator[None]:
    """Errors name what was typed: `target: expected ...` becomes `--labels y.npy: expected ...`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        argument, _, rest = str(error).partition(": ")
        if argument not in arguments:
            raise
        raise ValueError(f"{arguments[argument]}: {rest.replace('target', 'labels')}") from error


@commands.callback()
def root() -> None:
    """Replace a model that is in use: see what an update broke, search across versions, decide."""


@commands.command()
def info(json_file: JsonFile = None) -> None:
    """Versions, the instruction set in use, CUDA or why not."""
    import torch

    from . import _C, _ops

    if not _C.cuda:
        cuda = f"no: {_C.no_cuda}"
    elif not torch.version.cuda:
        cuda = f"built for {_C.cuda}, but torch is without CUDA"
    else:
        cuda = f"{'available' if torch.cuda.is_available() else 'built, but torch sees no GPU'}: {_C.cuda}"
    facts = {
        "version": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "isa": _ops.isa,
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "compiler": _C.compiler,
    }
    with json_output(json_file) as write_json:
        write_json(facts)
    print_facts(facts, json_file)


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

    files = {
        "old": old_file,
        "new": new_file,
        "target": labels_file,
        "classes": classes_file,
        "groups": groups_file,
        "inputs": inputs_file,
    }
    options = {name: "--labels" if name == "target" else f"--{name}" for name in files}
    check_outputs({"--html": html_file, "--json": json_file}, ((options[name], file) for name, file in files.items()))
    typed = {name: f"{options[name]} {file}" for name, file in files.items()}
    with json_output(json_file) as write_json:
        with naming(typed | {"topk": "--topk"}):
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
        write_json(report.to_dict())
    if str(json_file) != "-":
        print_report(report, console)


@commands.command()
def search(
    queries_file: Annotated[Path, typer.Argument(metavar="QUERIES", help="(Q, D) embeddings, in any gallery format.")],
    gallery_source: GallerySource,
    k: Annotated[int, typer.Option("-k", "--k", help="Neighbours of each query.")] = 10,
    metric: Annotated[str, typer.Option("--metric", help="cosine, ip or l2.")] = "cosine",
    scan: Annotated[str, typer.Option("--scan", help="auto, int8 or float32; the answer is the same.")] = "auto",
    query_ids_file: QueryIds = None,
    gallery_ids_file: GalleryIds = None,
    query_groups_file: Annotated[
        Path | None, typer.Option("--query-groups", help="(Q,) integers, .npy: no row of the query's group is found.")
    ] = None,
    gallery_groups_file: Annotated[Path | None, typer.Option("--gallery-groups", help="(N,) integers, .npy.")] = None,
    memory_limit: MemoryLimit = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Directory to go on from when the search was stopped.")
    ] = None,
    npz_file: Annotated[
        Path | None, typer.Option("--output", help="Write `indices` and `scores` to this .npz.")
    ] = None,
    indices_file: Annotated[
        Path | None, typer.Option("--indices", help="Write (Q, K) int64 rows to this .npy.")
    ] = None,
    scores_file: Annotated[Path | None, typer.Option("--scores", help="Write (Q, K) float32 to this .npy.")] = None,
    queries_key: Annotated[str | None, typer.Option("--queries-key", help="Which array of QUERIES.")] = None,
    key: Key = None,
    dtype: Dtype = None,
    dim: Dim = None,
    offset: Offset = 0,
    model: Annotated[str | None, typer.Option("--model", help="The model that GALLERY must be prepared for.")] = None,
    json_file: JsonFile = None,
) -> None:
    """The exact nearest neighbours of every query, in a gallery of files that may be larger than memory."""
    from .gallery import Gallery
    from .search import knn

    outputs = {"--output": npz_file, "--indices": indices_file, "--scores": scores_file}
    if not any(outputs.values()):
        raise ValueError("search: expected at least one of --output, --indices, --scores, got none")
    limit = None if memory_limit is None else byte_count(memory_limit, "--memory-limit")
    rows = Gallery.open(queries_file, key=queries_key)
    gallery = Gallery.open(gallery_source, key=key, dtype=dtype, dim=dim, offset=offset, model=model)
    vectors = {
        "query_ids": query_ids_file,
        "gallery_ids": gallery_ids_file,
        "query_groups": query_groups_file,
        "gallery_groups": gallery_groups_file,
    }
    options = {name: f"--{name.replace('_', '-')}" for name in ("metric", "scan", "memory_limit", *vectors)}
    typed = {"queries": str(queries_file), "gallery": gallery_source, "k": "-k"} | options
    typed |= {name: f"{options[name]} {path}" for name, path in vectors.items() if path is not None}
    inputs = [("QUERIES", rows), ("GALLERY", gallery)]
    opened_files = [(name, state.path) for name, source in inputs for state in source.files]
    check_outputs(
        outputs | {"--json": json_file}, [*opened_files, *((options[name], path) for name, path in vectors.items())]
    )
    labels = {name: None if path is None else read_array(path) for name, path in vectors.items()}
    with json_output(json_file) as write_json, ExitStack() as files:
        opened = {name: files.enter_context(replacing(path)) for name, path in outputs.items() if path is not None}
        queries = rows.load().array
        with naming(typed):
            start = perf_counter()
            found = knn(
                queries,
                gallery,
                k,
                metric=cast(Any, metric),  # knn itself checks the names
                scan=cast(Any, scan),
                **labels,
                progress=sys.stderr.isatty(),
                memory_limit=limit,
                checkpoint=checkpoint,
                info=True,
            )
            seconds = perf_counter() - start
        indices, scores = found.indices.numpy(), found.scores.numpy()
        for name, file in opened.items():
            if name == "--output":
                np.savez(file, indices=indices, scores=scores)
            else:
                np.save(file, indices if name == "--indices" else scores)
        facts = {
            "schema": "graceful_fast.search/1",
            "queries": len(rows),
            "gallery": len(gallery),
            "dimensions": gallery.dim,
            "k": k,
            "metric": metric,
            **{name: str(path) for name, path in vectors.items() if path is not None},
            "seconds": round(seconds, 6),
            **(found.info or {}),
            **{name.removeprefix("--"): str(path) for name, path in outputs.items() if path is not None},
        }
        write_json(facts)
    print_facts(facts, json_file)


@commands.command()
def prepare(
    gallery_source: GallerySource,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A new or empty one.")],
    model: Annotated[str | None, typer.Option("--model", help="Name of the model that made the embeddings.")] = None,
    key: Key = None,
    dtype: Dtype = None,
    dim: Dim = None,
    offset: Offset = 0,
    json_file: JsonFile = None,
) -> None:
    """Write the int8 copy of a gallery that searches read in place of it: a quarter of the bytes, the same answers."""
    from .gallery import Gallery

    gallery = Gallery.open(gallery_source, key=key, dtype=dtype, dim=dim, offset=offset)
    check_outputs({"--json": json_file}, (("GALLERY", state.path) for state in gallery.files))
    with json_output(json_file) as write_json:
        start = perf_counter()
        with naming({"gallery": gallery_source}):
            prepared = gallery.prepare(directory, model=model, progress=sys.stderr.isatty())
        facts = {
            "schema": "graceful_fast.prepare/1",
            "gallery": len(prepared),
            "dimensions": prepared.dim,
            "dtype": str(prepared.dtype).removeprefix("torch."),
            "model": model,
            "seconds": round(perf_counter() - start, 6),
            "directory": str(directory),
        }
        write_json(facts)
    print_facts(facts, json_file)


def byte_count(text: str, option: str) -> int:
    """The bytes that `text` means: a whole number, or any with a unit."""
    number, unit = re.fullmatch(r"\s*([\d.]*)\s*(.*?)\s*", text, re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        return int(float(number) * _UNITS[unit.lower()])
    except (KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"{option}: expected bytes, or KiB to TiB or KB to TB as in 1.5GiB, got {text!r}") from error


@commands.command()
def retrieve(
    old_queries_source: Annotated[
        str, typer.Option("--old-queries", help="(Q, D) embeddings of the old model, in any gallery format.")
    ],
    new_queries_source: Annotated[str, typer.Option("--new-queries", help="The same queries under the new model.")],
    old_gallery_source: Annotated[str, typer.Option("--old-gallery", help="(N, D) embeddings of the old model.")],
    query_labels_file: Annotated[Path, typer.Option("--query-labels", help="(Q,) integers, .npy.")],
    gallery_labels_file: Annotated[Path, typer.Option("--gallery-labels", help="(N,) integers, .npy.")],
    new_gallery_source: Annotated[
        str | None, typer.Option("--new-gallery", help="The same gallery under the new model.")
    ] = None,
    query_ids_file: QueryIds = None,
    gallery_ids_file: GalleryIds = None,
    k: Annotated[list[int] | None, typer.Option("-k", "--k", help="Depths, one or more; 1, 5 and 10.")] = None,
    metric: Annotated[str, typer.Option("--metric", help="cosine, ip or l2.")] = "cosine",
    memory_limit: MemoryLimit = None,
    json_file: JsonFile = None,
) -> None:
    """Retrieval before, during and after a backfill: old/old, new/old, new/new, and which queries broke."""
    from .gallery import Gallery

    limit = None if memory_limit is None else byte_count(memory_limit, "--memory-limit")
    sources = {
        "--old-queries": old_queries_source,
        "--new-queries": new_queries_source,
        "--old-gallery": old_gallery_source,
        "--new-gallery": new_gallery_source,
    }
    vectors = {
        "--query-labels": query_labels_file,
        "--gallery-labels": gallery_labels_file,
        "--query-ids": query_ids_file,
        "--gallery-ids": gallery_ids_file,
    }
    rows = {option: None if source is None else Gallery.open(source) for option, source in sources.items()}
    opened = [(option, state.path) for option, gallery in rows.items() if gallery for state in gallery.files]
    check_outputs({"--json": json_file}, [*opened, *vectors.items()])
    loaded = {
        option: gallery.load().array if gallery and option.endswith("queries") else gallery
        for option, gallery in rows.items()
    }
    arrays = {option: None if path is None else read_array(path) for option, path in vectors.items()}
    from .update.matrix import compare_versions

    inputs: dict[str, Any] = sources | vectors
    names = {option: option.removeprefix("--").replace("-", "_") for option in inputs}
    typed = {names[option]: option if source is None else f"{option} {source}" for option, source in inputs.items()}
    options = {"k": "-k", "metric": "--metric", "memory_limit": "--memory-limit"}
    with json_output(json_file) as write_json, naming(typed | options):
        found = compare_versions(
            **{names[option]: array for option, array in (loaded | arrays).items()},
            metric=cast(Any, metric),
            k=tuple(k or (1, 5, 10)),
            progress=sys.stderr.isatty(),
            memory_limit=limit,
        )
        write_json(found.to_dict())
    if str(json_file) != "-":
        print_retrieval(found.to_dict())


def print_retrieval(facts: dict[str, Any]) -> None:
    """A line for each pair of versions, then the flips."""
    table = Table("queries/gallery", "mAP", "MRR", *(f"CMC@{k}" for k in facts["k"]), box=None)
    for name, row in facts["matrix"].items():
        values = [row["map"], row["mrr"], *row["cmc"].values()]
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
    for name, by_k in facts["flips"].items():
        for depth, flips in by_k.items():
            console.print(
                f"{name} after old/old, hit@{depth}: {flips['negative']} of {flips['total']} queries broke, "
                f"{flips['positive']} were fixed"
            )
    if facts["without_positive"]:
        console.print(f"{facts['without_positive']} queries have no positive in the gallery and are in no mean")


def print_facts(facts: dict[str, Any], json_file: Path | None) -> None:
    """A line each, unless stdout is for the JSON."""
    if str(json_file) == "-":
        return
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
    screen = Console(stderr=True) if str(json_file) == "-" else console
    with json_output(json_file) as write_json:
        write_json(run(output, seeds=seeds, quick=quick, console=screen))


train = typer.Typer(
    name="train", help="Recipes of compatible training, measured over several seeds.", no_args_is_help=True
)
commands.add_typer(train)


@train.command()
def pct(
    output: Annotated[
        Path, typer.Option("--output", help="Folder of the results; a stopped run goes on there.")
    ] = Path("pct-output"),
    part: Annotated[
        str, typer.Option("--part", help="settings (four updates of digits), sweep (their options) or published.")
    ] = "settings",
    seeds: Annotated[int, typer.Option("--seeds", help="How often everything is trained.")] = 5,
    images: Annotated[
        int | None, typer.Option("--images", help="Of settings: images to train on, 20 or more; 100 by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that it runs: one seed, few steps.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Positive-congruent training: error and negative flips of every objective in four kinds of update."""
    from .training.recipes.pct_run import run

    screen = Console(stderr=True) if str(json_file) == "-" else console
    options = {"part": "--part", "seeds": "--seeds", "images": "--images"}
    with json_output(json_file) as write_json, naming(options):
        write_json(run(output, part=cast(Any, part), seeds=seeds, images=images, quick=quick, console=screen))


@train.command()
def bct(
    output: Annotated[
        Path, typer.Option("--output", help="Folder of the results; a stopped run goes on there.")
    ] = Path("bct-output"),
    part: Annotated[
        str, typer.Option("--part", help="images, text, chain, backfill; images-sweep or text-sweep (their options).")
    ] = "images",
    seeds: Annotated[int, typer.Option("--seeds", help="How often everything is trained.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Only see that it runs: one seed, few steps.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Backward-compatible training: new queries in the old gallery, chains of versions, half a backfill."""
    from .training.recipes.bct_run import run

    screen = Console(stderr=True) if str(json_file) == "-" else console
    options = {"part": "--part", "seeds": "--seeds"}
    with json_output(json_file) as write_json, naming(options):
        write_json(run(output, part=cast(Any, part), seeds=seeds, quick=quick, console=screen))
