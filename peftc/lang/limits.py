"""How large a rule may be: what keeps a stranger's file from costing more than a moment."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FILE_BYTES = 64 * 1024
LINE_DOTS = 100
"""The standard library's reader takes seconds over a key of thousands of parts."""
TEXT = 500
"""Characters of any text: an expression, a help, a summary."""
DEEPEST = 32
"""Brackets and operators inside each other; bindings that need each other."""
ENTRIES = 500
"""Entries of a table or of a list."""
NESTING = 12
"""Tables and lists inside each other."""
NAME = 41
AXES = 12
"""Of a value; two of them together still fit the letters of an einsum."""
SECTIONS = 64
ALL_TEXT = 64 * 1024
"""Characters of all texts of a rule together."""
PROOF = 150_000
"""Characters that proving a section walks: its expressions, once for each role and each choice of an option."""
LARGEST_NUMBER = 2**63
"""Numbers stay below this; a chain of products cannot grow without bound."""
LENGTH_NAME = 200
"""Characters of what the length of an axis is called: joining a value to itself doubles it."""
SPEC = 1000

LIMITS: Mapping[str, int] = MappingProxyType(
    {
        "bytes of a file": FILE_BYTES,
        "dots in a line of a file": LINE_DOTS,
        "characters of a text, such as an expression": TEXT,
        "characters of all texts of a rule together": ALL_TEXT,
        "depth of an expression, and of bindings that need each other": DEEPEST,
        "entries of a table or a list": ENTRIES,
        "depth of tables and lists": NESTING,
        "sections of a rule under `also`": SECTIONS,
        "characters of a section's expressions × roles × choices": PROOF,
        "characters of a name": NAME,
        "axes of a value": AXES,
        "size of a number, below": LARGEST_NUMBER,
        "characters of a spec": SPEC,
    }
)
"""For the documentation. New parameters have a budget besides, which the model's size sets: see `match`."""
