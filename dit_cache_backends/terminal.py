"""What the commands share: errors in a line, columns, and a quiet terminal."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from dit_cache_backends.errors import DitCacheError


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equal length, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def quiet() -> None:
    """Leave the terminal to the command: no hints about optional packages, no bars for each file that is read.

    Set variables win, and the hub's own bars for downloads stay.
    """
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    # torchao, which diffusers imports where it is installed, tells of kernels that are not for this machine.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def readable_errors(extra: str = "demo") -> Iterator[None]:
    """What a user can mend is said in a line on standard error, and the exit status is 2; no traceback.

    ``extra`` brings the packages that the command needs.
    """
    try:
        yield
    except DitCacheError as error:
        typer.echo(f"dit-cache: {error}", err=True)
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "dit_cache_backends"):
            raise
        typer.echo(
            f"dit-cache: this command needs {package}, which is not installed."
            f" Install the extra: pip install 'dit-cache-backends[{extra}]'",
            err=True,
        )
        raise typer.Exit(2) from error
