"""Runs the command line: an error is one clear line plus detail; its kind is the exit code.

What the user can put right ends with 2, a bug of peftc with 3; `--debug` shows where either came from. A command ends with
1 where it did its work and the answer is no.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console

from peftc.cli import graphs, models, plans, rules, scaffold, training
from peftc.cli.application import app
from peftc.errors import PeftcError

COMMANDS = (graphs, models, plans, rules, scaffold, training)
"""The modules that have put their commands into `app`, by being imported."""


def lines_of(error: PeftcError) -> list[str]:
    """Where and what in one line, then the detail and what there is instead."""
    parts = [getattr(error, "code", ""), error.where, error.message]
    details = [*error.detail, *([error.hint] if error.hint else [])]
    return [": ".join(part for part in parts if part), *(f"  {line}" for line in details)]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process: 0, 1 for a no, 2 for what the user can put right, 3 for a bug."""
    # No hub is ever asked, and the tokenizers' threads do not fight the data loader's.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Loading takes a second or two: transformers' own bars only break the lines of this output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given  # also after the command, where people put it
    try:
        app(args=[argument for argument in given if argument != "--debug"], prog_name="peftc")
    except PeftcError as error:
        if debug:
            raise
        errors.print("[bold red]error[/]", end=" ")
        errors.print("\n".join(lines_of(error)), markup=False)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        if debug:
            raise
        errors.print("[bold red]error[/]", end=" ")
        errors.print(f"{error.filename or 'the system'}: {error.strerror or error}", markup=False)
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        errors.print("[bold red]internal error[/]", end=" ")
        errors.print(f"{type(error).__name__}: {error}", markup=False)
        errors.print("this is a bug in peftc; --debug shows the traceback")
        sys.exit(3)
