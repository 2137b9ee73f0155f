"""The page of roles: what a rule can name of a model."""

from __future__ import annotations

from collections.abc import Iterator

from docs.making.markdown import code, page, table
from peftc.lang import CALL_AXES, GROUPS, ROLES, SCOPES, Role, show
from peftc.lang.roles import KINDS_OF_PORT, Port


def roles() -> str:
    """The page."""
    return page(
        "Roles, parts and ports",
        "A rule names roles; which site of a model has which role is found out from the data flow of its graph. A "
        "spec chooses among the sites of a rule's role by part, group, scope or path: see "
        "[rule-language.md](rule-language.md#specs).",
        *(text for role in ROLES.values() for text in _role(role)),
        "## Kinds of port",
        table(("kind", "meaning"), KINDS_OF_PORT.items()),
        "Lengths of these axes change from call to call, so no parameter can have them as a size: "
        + ", ".join(code(axis) for axis in sorted(CALL_AXES))
        + ".",
        "## Groups of parts",
        table(
            ("group", "parts"), ((code(name), " ".join(map(code, parts))) for name, parts in GROUPS.items())
        ),
        "## Scopes",
        "In front of a part, with a dot: " + ", ".join(code(f"{scope}.q") for scope in SCOPES) + ".",
        "`path=GLOB` chooses by module path instead, as in `path=*.out_proj`.",
    )


def _role(role: Role) -> Iterator[str]:
    yield f"## `{role.name}`"
    yield role.doc
    if role.parts:
        yield f"Parts: {' '.join(map(code, role.parts))}."
    yield table(
        ("port", "kind", "axes", "meaning"),
        (
            (
                code(port.name),
                port.kind,
                code(show(port.axes)),
                port.doc + (" Optional." if port.optional else "") + _counted(port),
            )
            for port in role.ports.values()
        ),
    )
    if role.numbers:
        yield "Conditions and expressions can read:"
        yield table(("number", "meaning"), ((code(name), doc) for name, doc in role.numbers.items()))


def _counted(port: Port) -> str:
    if port.counted:
        return f" There is none where {code(port.counted)} is 0."
    return "" if port.neutral is None else f" Where a site has none, it reads as {port.neutral:g}."
