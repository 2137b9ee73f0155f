"""What the README says of the library is so."""

from __future__ import annotations

import re
from pathlib import Path

from peftc.lang import default_library

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_every_rule_stands_in_the_table_of_methods_once() -> None:
    table = README.partition("| kind | rules |")[2].partition("\n\n")[0]
    named = re.findall(
        r"`([a-z0-9_]+)`", "\n".join(line.split("|")[2] for line in table.splitlines() if "|" in line)
    )
    assert sorted(named) == sorted(default_library().names())


def test_every_page_that_is_linked_is_there() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert not [target for target in targets if not (Path(__file__).parent.parent / target).exists()]
