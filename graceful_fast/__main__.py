"""`graceful-fast` and `python -m graceful_fast`: runs the command line and turns what goes wrong into an exit code."""

import sys
from io import TextIOWrapper


def main() -> None:
    """Exit with the command's code; 2 for usage or bad input, 70 for an unexpected error: a traceback is no verdict."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the sign for it is no bad input
    try:
        from .cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("graceful-fast: the command line needs typer and rich: pip install 'graceful-fast[cli]'")
    sys.exit(app())


if __name__ == "__main__":
    main()
