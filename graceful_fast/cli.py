"""The command line. Each command checks its input, calls one public function, and prints or writes what it returns."""

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import __version__

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
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # usage errors of the option parser
            error.show()
            return BAD_INPUT
        traceback.print_exc()
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
    temporary = target.with_name(target.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)


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
