"""`peftc plan`: what rules would do to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peftc.cli.application import app
from peftc.cli.inputs import InputsOption, load_with_inputs
from peftc.cli.specs import CommandOfRules, SavedOption, bound, saved_adapters


@app.command(no_args_is_help=True, cls=CommandOfRules)
def plan(
    model: Annotated[Path, typer.Argument(help="A local model folder, or a .gguf file.")],
    rules: Annotated[
        list[str],
        typer.Argument(
            help="Rules, as in [b]lora:q,v(rank=16)@4-11 prefix:20[/]; how they are written stands below."
        ),
    ],
    saved: SavedOption = None,
    inputs: InputsOption = None,
) -> None:
    """Show where rules would act on a model, where not and why, and how many parameters they train."""
    bound(rules)
    adapters = saved_adapters(saved or ())
    from peftc import api

    loaded, given = load_with_inputs(model, inputs)
    made = api.plan(loaded, rules, given, saved=adapters)
    Console().print(str(api.explain(made)), highlight=False, markup=False)
