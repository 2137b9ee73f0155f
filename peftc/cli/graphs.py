"""`peftc graph` and `peftc passes`: a model's graph as rules leave it, and the passes that give it one spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from peftc.cli.application import app
from peftc.cli.inputs import InputsOption, load_with_inputs
from peftc.cli.specs import CommandOfRules, bound
from peftc.errors import UnknownOptionError, instead

if TYPE_CHECKING:
    from torch import fx

    from peftc.passes import PassRecord

EVERY = "all"


@app.command()
def passes() -> None:
    """List the passes that run on every captured graph, in order, with their options."""
    from peftc.capture.normalise import CATALOGUE
    from peftc.passes import is_optional, name_of, options_of

    table = Table("pass", "can be off", "what it does, and its options", box=None, header_style="bold")
    for kind in CATALOGUE:
        options = (f"{name}={option.default}: {option.help}" for name, option in options_of(kind).items())
        summary = (kind.__doc__ or "").strip().splitlines()[0].replace("`", "")
        table.add_row(name_of(kind), "yes" if is_optional(kind) else "", "\n".join((summary, *options)))
    Console().print(table, markup=False)


@app.command(no_args_is_help=True, cls=CommandOfRules)
def graph(
    model: Annotated[Path, typer.Argument(help="A local model folder, or a .gguf file.")],
    rules: Annotated[
        list[str] | None, typer.Argument(help="Rules; without any, the model as it came.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--pass",
            metavar="SPEC",
            help="An option of a pass, as in [b]fold_masks(longest=64)[/], or [b]-group_heads[/] to turn one off; "
            "[b]peftc passes[/] lists them. May be given several times.",
        ),
    ] = None,
    print_after: Annotated[
        list[str] | None,
        typer.Option(
            "--print-after",
            metavar="PASS",
            help="Print the graph after this pass, or after [b]all[/] that changed it. May be given several times.",
        ),
    ] = None,
    inputs: InputsOption = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Only what rules changed, not the whole graph.")
    ] = False,
    times: Annotated[
        bool, typer.Option("--times", help="What each pass changed, and how long it took.")
    ] = False,
) -> None:
    """Print a model's graph with rules in it: new nodes are marked with + and with their rule and site."""
    bound(rules or ())
    wanted = pass_names(print_after or ())
    from peftc import api
    from peftc.graphs.printing import text
    from peftc.runtime import capture_example

    console = Console(highlight=False, soft_wrap=True, markup=False)
    records: list[PassRecord] = []
    printed = printer(console, wanted)

    def watch(record: PassRecord, seen: fx.Graph) -> None:
        records.append(record)
        printed(record, seen)

    loaded, given = load_with_inputs(model, inputs)
    if rules:
        compiled = api.compile(loaded, rules, given, passes=settings or (), watch=watch)
        difference = api.diff(compiled)
        shown = str(difference) if diff else "\n".join(f"{mark} {line}" for mark, line in difference.rows)
    else:
        _, _, (program, _, _) = capture_example(
            loaded, given, passes=api.pass_settings(settings or (), watch)
        )
        shown = "" if diff else text(program.graph)
    if times:
        console.print(timetable(records))
        for record in records:
            for miss in record.misses:
                console.print(f"{record.name} nearly found {miss}")
    console.print(shown)


def pass_names(given: Iterable[str]) -> frozenset[str]:
    """Names of passes, checked before anything slow happens; `all` stands for itself."""
    from peftc.capture.normalise import CATALOGUE
    from peftc.passes import name_of

    known = [EVERY, *(name_of(kind) for kind in CATALOGUE)]
    names = frozenset(given)
    for name in sorted(names):
        if name not in known:
            raise UnknownOptionError(
                f"there is no pass {name!r}", where="--print-after", hint=instead(name, known)
            )
    return names


def printer(console: Console, wanted: frozenset[str]) -> Callable[[PassRecord, fx.Graph], None]:
    """Prints a graph after the passes that are wanted."""

    def show(record: PassRecord, seen: fx.Graph) -> None:
        from peftc.graphs.printing import text

        if record.name in wanted or (EVERY in wanted and record.changed):
            changed = f"changed {record.changed} places" if record.changed else "changed nothing"
            console.print(f"# after {record.name}, which {changed}\n{text(seen)}")

    return show


def timetable(records: list[PassRecord]) -> Table:
    """A row for each pass that has run."""
    table = Table("pass", "changed", "nodes after", "ms", box=None, header_style="bold")
    for record in records:
        table.add_row(record.name, str(record.changed), str(record.nodes), f"{record.seconds * 1000:.1f}")
    return table
