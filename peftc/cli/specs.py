"""How rules are written on the command line, made from the tables of the rule language."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from peftc.errors import PeftcError, SpecError
from peftc.lang import GRAMMAR, GROUPS, PIECES, ROLES, SCOPES, Bound, bind_all, default_library

EXAMPLES = ("lora:q,v", "prefix:20", "lora:attention(rank=16)@4-11", "lora:decoder.q", "lora:path=*.out_proj")

SavedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--saved",
        metavar="NAME=FOLDER",
        help="A trained adapter, for a rule that is made of them: any name, and the folder it is in. Give --saved "
        "once for each.",
        rich_help_panel="Model and rules",
    ),
]


def grammar() -> str:
    """How a rule is written, for people at a terminal."""
    pieces = [f"  [b]{escape(piece)}[/]  {escape(meaning.replace('`', ''))}" for piece, meaning in PIECES]
    parts = [f"  {role.name}: {' '.join(role.parts)}" for role in ROLES.values() if role.parts]
    groups = [f"  {name} = {' '.join(parts)}" for name, parts in GROUPS.items()]
    return "\n\n".join(
        (
            f"[b]How a rule is written[/]: {escape(GRAMMAR)}, such as {escape(', '.join(EXAMPLES))}",
            "\n".join(pieces),
            "\n".join(("Parts, by the role that a rule matches:", *parts)),
            "\n".join(("Groups of parts:", *groups)),
            f"Scopes, in front of a part: {', '.join(f'{scope}.' for scope in SCOPES)}",
            "[b]peftc rules[/] lists the rules, [b]peftc rules NAME[/] the options, parts and defaults of one.",
        )
    )


def options() -> str:
    """The rules of the library with their options and defaults, a line each."""
    try:
        rules = default_library().rules()
    except PeftcError:  # help is shown whatever state the rule files are in; using them says what is wrong
        return ""
    lines = [
        f"  [b]{rule.name}[/]{f':{rule.shorthand}' if rule.shorthand else ''}  "
        + escape(", ".join(f"{name}={option.default}" for name, option in rule.options.items()))
        for rule in rules
    ]
    return "\n".join(("\n\nRules, what follows their colon, and their options with defaults:", *lines))


class CommandOfRules(TyperCommand):
    """A command whose help also tells how rules are written and which there are, read when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        self.epilog = grammar() + options()
        super().format_help(ctx, formatter)


def saved_adapters(given: Iterable[str]) -> dict[str, Path]:
    """`NAME=FOLDER` of the command line, by name. Raises SpecError."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name.strip() and equals and folder.strip()):
            message = f"{text!r} is not NAME=FOLDER"
            raise SpecError(message, where="--saved", hint="as in --saved sentiment=out/sentiment")
        if name.strip() in found:
            raise SpecError(f"{name.strip()} is given twice", where="--saved")
        found[name.strip()] = Path(folder.strip())
    return found


def bound(rules: Iterable[str]) -> tuple[Bound, ...]:
    """The rules of a command line, read and proved before anything slow is loaded. Raises as `bind`."""
    return bind_all(list(rules))
