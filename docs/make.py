"""Writes the documentation that is made from the code, or with --check says which of it is stale.

python -m docs.make [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.making.choosing import choosing
from docs.making.commands import commands
from docs.making.compositions import compositions, matrix
from docs.making.language import language
from docs.making.league import league
from docs.making.method import MissingText, left_over, pages
from docs.making.roles import roles
from docs.making.spellings import spellings
from docs.making.tutorial import tutorial
from peftc.lang.schema import rule_schema

ROOT = Path(__file__).parents[1]


def schema() -> str:
    """The JSON Schema of rule files, as a file."""
    return json.dumps(rule_schema(), indent=2, ensure_ascii=False) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "docs/rule-language.md": language,
    "docs/roles.md": roles,
    "docs/spellings.md": spellings,
    "docs/cli.md": commands,
    "docs/tutorial-first-rule.md": tutorial,
    "docs/league.md": league,
    "docs/choosing.md": choosing,
    "docs/compositions.md": compositions,
    "docs/compositions.svg": matrix,
    "rules/rule.schema.json": schema,
    **pages(),
}


def stale() -> list[str]:
    """The pages that are not what the code makes of them, and what is to be done, a line each."""
    found = [f"{path.relative_to(ROOT)} is of no rule: delete it" for path in left_over(ROOT)]
    for name, make in PAGES.items():
        try:
            if not _is_current(ROOT / name, make()):
                found.append(f"{name} is stale: make docs")
        except MissingText as missing:
            found.append(str(missing))
    return found


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv[1:]:
        old = stale()
        print("\n".join(old) or "the made documentation is current")
        return len(old)
    missing = 0
    for name, make in PAGES.items():
        try:
            text = make()
        except MissingText as lack:
            missing += 1
            print(lack)
            continue
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(text, encoding="utf-8")
        print(name)
    return missing


if __name__ == "__main__":
    sys.exit(main())
