"""How many rows a rewrite puts in front of what a model reads. Knows no tensors."""

from __future__ import annotations

from collections.abc import Mapping

from peftc.lang.axes import Constant
from peftc.lang.document import Rule, Section
from peftc.lang.lengths import lengths_of, proving_scope
from peftc.lang.roles import ROLES
from peftc.lang.signature import signature
from peftc.lang.sizes import size_at


def grows_in_front(length: str, axis: str) -> bool:
    """Whether a length is that of the axis with something in front of it."""
    *front, last = length.split("+")
    return last == axis and bool(front) and axis not in front


def grown_by(rule: Rule, section: Section, role: str, known: Mapping[str, Constant]) -> int:
    """How many rows a section puts in front at a site of a role; 0 for a role that does not grow.

    Args:
        known: the rule's options, and the sizes of the site's axes.
    """
    total, grown = 0, ROLES[role].grows
    if not grown:
        return 0
    told = signature(section, role)
    options = {name: known[name] for name in rule.options}
    scope = proving_scope(rule, section, told, options)
    for port in section.rewrite:
        own = dict(zip(ROLES[role].ports[port].axes, told.ports[port], strict=True))
        length = lengths_of(scope.rewrite(port)).get(own.get(grown, ""), "")
        total += sum(size_at(piece, known) or 0 for piece in length.split("+")[:-1])
    return total
