"""The page of the command line: the help of every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from rich.text import Text

from docs.making.markdown import code, page, table
from peftc.cli.application import app
from peftc.cli.running import COMMANDS
from peftc.cli.specs import CommandOfRules, grammar


def commands() -> str:
    """The page."""
    assert COMMANDS, "without their modules, the commands are not there"
    group: Any = typer.main.get_command(app)
    context = group.make_context("peftc", ["--help"], resilient_parsing=True)
    return page(
        "The command line",
        _plain(group.help or ""),
        _parameters(group, context),
        f"```\n{_plain(grammar())}\n```",
        *(
            text
            for name in group.list_commands(context)
            for text in _command(name, group.get_command(context, name), context)
        ),
        "Every command ends with 0, with 2 where the user can put something right, and with 1 for a bug of peftc "
        "or a certificate that fails.",
    )


def _command(name: str, command: Any, parent: Any) -> Iterator[str]:
    context = command.make_context(name, ["--help"], parent=parent, resilient_parsing=True)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    words = " ".join(_argument(each) for each in arguments)
    yield f"## peftc {name}"
    yield f"`peftc {name} [OPTIONS]{f' {words}' if words else ''}`"
    yield _plain(command.help)
    if isinstance(command, CommandOfRules):
        yield "How rules are written stands above."
    yield _parameters(command, context)


def _argument(argument: Any) -> str:
    word = argument.name.upper() + ("..." if argument.nargs != 1 else "")
    return word if argument.required else f"[{word}]"


def _parameters(command: Any, context: Any) -> str:
    shown = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    return table(("option", "value", "default", "meaning"), (_row(each, context) for each in shown))


def _row(parameter: Any, context: Any) -> tuple[str, str, str, str]:
    is_argument = parameter.param_type_name == "argument"
    name = _argument(parameter) if is_argument else ", ".join(parameter.opts)
    flag = getattr(parameter, "is_flag", False)
    value = "" if flag else parameter.display_type(context).strip("<>") + _range(parameter)
    default = parameter.get_default(context)
    shown = "" if flag or default in (None, []) else str(getattr(default, "value", default))
    return (
        code(name),
        code(value),
        "required" if parameter.required else code(shown),
        _plain(parameter.help or ""),
    )


def _range(parameter: Any) -> str:
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    return (f" from {low:g}" if low is not None else "") + (f" to {high:g}" if high is not None else "")


def _plain(text: str) -> str:
    """Without the markup of terminals."""
    return Text.from_markup(text).plain
