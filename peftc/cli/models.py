"""`peftc sites` and `peftc check-model`: which roles a model's parts play, and whether rules act on it rightly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from peftc.cli.application import app
from peftc.cli.inputs import InputsOption, load_with_inputs
from peftc.cli.specs import CommandOfRules, bound

if TYPE_CHECKING:
    from peftc.analyse.site import Site

Model = Annotated[Path, typer.Argument(help="A local model folder, or a .gguf file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(no_args_is_help=True)
def sites(
    model: Model,
    role: Annotated[
        str | None, typer.Option("--role", help="Only sites of this role, such as [b]linear[/].")
    ] = None,
    inputs: InputsOption = None,
    as_json: AsJson = False,
) -> None:
    """List a model's sites: id, role, part, layer, sizes, and what in the data flow gave each its role."""
    from peftc import api
    from peftc.errors import UnknownPartError, instead

    analysis, unread = api.analysis_and_unread(*load_with_inputs(model, inputs))
    found = analysis.sites
    if role is not None:
        roles = sorted({site.role for site in found})
        if role not in roles:
            why = unread if role == "attention" else ()
            raise UnknownPartError(
                f"this model has no {role!r}", where="--role", detail=why, hint=instead(role, roles)
            )
        found = tuple(site for site in found if site.role == role)
    if as_json:
        rows = [
            {
                "id": site.id,
                "role": site.role,
                "part": site.part,
                "scope": site.scope,
                "layer": site.layer,
                "sizes": dict(site.sizes),
                "rows": site.rows,
                "weights": dict(site.weights),
                "evidence": site.evidence,
            }
            for site in found
        ]
        print(json.dumps(rows, indent=2))  # noqa: T201 - what the flag asks for
    else:
        print_table(found)
    if role in (None, "linear"):
        print_overlooked(analysis.overlooked)


@app.command("check-model", no_args_is_help=True, cls=CommandOfRules)
def check_model(
    model: Model,
    rules: Annotated[list[str], typer.Argument(help="Rules, as for [b]peftc plan[/].")],
    inputs: InputsOption = None,
    as_json: AsJson = False,
) -> None:
    """Prove rules right on a model: a certificate of properties that pass, fail or do not apply; 1 if one fails."""
    bound(rules)
    from peftc import api

    loaded, given = load_with_inputs(model, inputs)
    certificate = api.check(api.compile(loaded, rules, given), given)
    if as_json:
        print(json.dumps(certificate.as_dict(), indent=2))  # noqa: T201 - what the flag asks for
    else:
        Console().print(certificate.table())
    if not certificate.passed:
        raise typer.Exit(1)


WHOLE, FOLDING = ("site", "role", "layer"), ("sizes", "evidence")
"""Columns whose cells stay in one line whatever the width: an id that is cut or folded could not be copied. And others."""
NARROWEST = 14
"""Characters of a column that folds, at least."""


def print_overlooked(left: Sequence[Site]) -> None:
    """A line for each weight that no site has, where messages go: programs read sites and nothing else."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if left:
        console.print("weights that are no site:")
    for site in left:
        scope = f"{site.scope}." if site.scope else ""
        console.print(f"{scope}{site.id}: {site.evidence}", markup=False)


def print_table(found: Iterable[Site]) -> None:
    """A line for each site, as wide as it comes out; on a terminal sizes and evidence fold, and ids never do."""
    table = Table(box=None, header_style="bold")
    for heading in WHOLE:
        table.add_column(heading, no_wrap=True)
    for heading in FOLDING:
        table.add_column(heading, overflow="fold")
    for site in found:
        sizes = ", ".join(f"{name} {size}" for name, size in site.sizes.items())
        rows_of = "" if site.rows is None else f", {len(site.rows)} slices of its outputs"
        scope = f"{site.scope}." if site.scope else ""
        layer = "" if site.layer is None else str(site.layer)
        table.add_row(scope + site.id, site.role, layer, sizes, site.evidence + rows_of)
    console = Console()
    widths = [max(map(cell_len, (str(column.header), *map(str, column.cells)))) for column in table.columns]
    for column, width in zip(table.columns[: len(WHOLE)], widths, strict=False):
        column.min_width = width
    if console.is_terminal:
        widths[len(WHOLE) :] = [min(width, NARROWEST) for width in widths[len(WHOLE) :]]
    beside = sum(table.padding[1] + table.padding[3] for _ in widths)
    console.width = max(console.width, sum(widths) + beside)
    console.print(table, markup=False)
