"""peftc: a compiler for parameter-efficient fine-tuning. Methods are rules; architectures are whatever the graph shows.

Names are looked up when first used, so that `import peftc.lang` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftc.api import check, compile, diff, explain, graph, load, param_groups, plan, rules, sites
    from peftc.certificate.findings import Certificate
    from peftc.errors import PeftcError
    from peftc.lang import Rule
    from peftc.match import Plan

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "PeftcError",
    "Plan",
    "Rule",
    "__version__",
    "check",
    "compile",
    "diff",
    "explain",
    "graph",
    "load",
    "param_groups",
    "plan",
    "rules",
    "sites",
]

_HOMES = {
    "PeftcError": "peftc.errors",
    "Plan": "peftc.match",
    "Rule": "peftc.lang",
    **dict.fromkeys(
        ("check", "compile", "diff", "explain", "graph", "load", "param_groups", "plan", "rules", "sites"),
        "peftc.api",
    ),
    "Certificate": "peftc.certificate.findings",
}


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'peftc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
