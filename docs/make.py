"""Writes the documentation that is made from the code, or with --check says which of it is stale.

python -m docs.make [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.making.commands import commands
from docs.making.language import language
from docs.making.league import league
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
    "rules/rule.schema.json": schema,
}


def stale() -> list[str]:
    """The pages that are not what the code makes of them."""
    return [name for name, make in PAGES.items() if not _is_current(ROOT / name, make())]


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main() -> int:
    """Write, or check."""
    if "--check" in sys.argv[1:]:
        old = stale()
        print("\n".join(f"{name} is stale: make docs" for name in old) or "the made documentation is current")
        return len(old)
    for name, make in PAGES.items():
        (ROOT / name).write_text(make(), encoding="utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
