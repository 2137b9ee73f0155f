"""`peftc sites` and `peftc check-model`: which roles a model's parts play, and whether rules act on it rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from peftc.cli.application import app
from peftc.cli.inputs import InputsOption, load_with_inputs
from peftc.cli.specs import CommandOfRules, bound

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

    analysis = api.analysis(*load_with_inputs(model, inputs))
    found = analysis.sites
    if role is not None:
        roles = sorted({site.role for site in found})
        if role not in roles:
            raise UnknownPartError(f"this model has no {role!r}", where="--role", hint=instead(role, roles))
        found = tuple(site for site in found if site.role == role)
    # Beside JSON, which is a list of sites and nothing else, they go where messages go.
    below = Console(stderr=as_json, highlight=False, soft_wrap=True)
    left = analysis.overlooked if role in (None, "linear") else ()
    lines = [f"{site.scope}{'.' if site.scope else ''}{site.id}: {site.evidence}" for site in left]
    if lines:
        lines.insert(0, "weights that are no site:")
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
        for line in lines:
            below.print(line, markup=False)
        return
    table = Table(box=None, header_style="bold")
    for heading in ("site", "role", "layer", "sizes", "evidence"):
        table.add_column(heading, overflow="fold")  # a path that is cut short could not be copied
    for site in found:
        sizes = ", ".join(f"{name} {size}" for name, size in site.sizes.items())
        rows_of = "" if site.rows is None else f", {len(site.rows)} slices of its outputs"
        scope = f"{site.scope}." if site.scope else ""
        layer = "" if site.layer is None else str(site.layer)
        table.add_row(scope + site.id, site.role, layer, sizes, site.evidence + rows_of)
    Console().print(table, markup=False)
    for line in lines:
        below.print(line, markup=False)


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
