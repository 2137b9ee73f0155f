"""The tutorial: a page of text with files of the examples, and what commands print, put in."""

from __future__ import annotations

import os
import re
from pathlib import Path

from typer.testing import CliRunner

from docs.making.markdown import page
from peftc.cli.application import app
from peftc.cli.running import lines_of
from peftc.errors import PeftcError

ROOT = Path(__file__).parents[2]
TEXT = Path(__file__).with_name("tutorial-first-rule.md")
MARK = re.compile(r"^<!-- (include|run) (.*) -->$", re.MULTILINE)
LANGUAGES = {".toml": "toml", ".py": "python"}


def tutorial() -> str:
    """The page."""
    title, _, text = TEXT.read_text(encoding="utf-8").partition("\n")
    return page(title.removeprefix("# "), MARK.sub(_filled, text).strip())


def _filled(mark: re.Match[str]) -> str:
    if mark[1] == "run":
        return f"```\n$ {mark[2]}\n{output(mark[2].split()[1:])}\n```"
    text = (ROOT / mark[2]).read_text(encoding="utf-8").rstrip()
    return f"[`{mark[2]}`](../{mark[2]}):\n\n```{LANGUAGES[Path(mark[2]).suffix]}\n{text}\n```"


def output(arguments: list[str]) -> str:
    """What a command prints, run where the repository's root is."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    finally:
        os.chdir(before)
    if isinstance(done.exception, PeftcError):
        return "\n".join(lines_of(done.exception))
    return done.output.rstrip()
