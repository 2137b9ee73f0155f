"""The typer application that every group of commands adds itself to, and how its help looks."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from peftc.cli.specs import grammar, options

HELP = """A compiler for parameter-efficient fine-tuning: methods as rules, applied to any model's graph.

The exit code is 0; 1 where a check says no; 2 for what you can put right; 3 for a bug of peftc.
"""


class Group(TyperGroup):
    """Commands whose flags are shown without a type: `--overwrite <bool>` reads as if it took a value."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; how rules are written stands below, read when it is shown."""
        self.epilog = grammar() + options()
        super().format_help(ctx, formatter)

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own parameters."""
        return without_types_of_flags(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, its parameters and its --help included."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            without_types_of_flags(command.get_params(ctx))
        return command


def without_types_of_flags(parameters: list[Any]) -> list[Any]:
    """The same parameters; flags among them have an empty metavar."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="peftc",
    cls=Group,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A compiler for parameter-efficient fine-tuning: methods as rules, applied to any model's graph.

    The exit code is 0; 1 where a check says no; 2 for what you can put right; 3 for a bug of peftc.
    """
    del debug  # main() acts on it, which stands outside of typer; here it is for --help
