"""What the commands share: where they print, their exit codes, and the options that several have."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

out = Console(markup=False, width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True, markup=False)

EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


def say(line: str) -> None:
    """A line to standard error, where people read it and pipes do not."""
    if not out.quiet:  # of several processes one speaks
        err.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """To standard output, for machines."""
    if not out.quiet:
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
