"""`peftc new`: a rule file that is proved as it stands, and its reference test, for a new method to grow from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peftc.cli.application import app
from peftc.errors import OutputExistsError, SpecError
from peftc.lang import check, read_text
from peftc.lang.document import RULE_NAME

RULE = """\
# Every key is explained in docs/rule-language.md, roles and ports in docs/roles.md.
format    = 1
name      = "NAME"
summary   = "Say in one sentence what the method does."
# paper   = "https://arxiv.org/abs/…"
shorthand = "part"

[options]
scale = { default = 1.0, help = "How much of the update is added." }

[match]
role   = "linear"
part   = ["q", "v"]
values = { x = "* d_in", W = "d_out d_in", y = "* d_out" }

[parameters]
s = { axes = "d_out", init = "zeros" }

[let]
delta = "scale * (y * s)"

[rewrite]
y = "y + delta"
"""

TEST = '''\
"""NAME against its equation, written out by hand and independent of the rule file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import peftc

RULE = Path(__file__).parent / "PATH"
OPTIONS = {"scale": 0.5}


def reference(x: Tensor, linear: nn.Linear, p: Mapping[str, Tensor], scale: float) -> Tensor:
    """The paper's equation for the new result of one linear map. x: [batch d_in] -> [batch d_out]."""
    y = x @ linear.weight.T + linear.bias
    return y + scale * (y * p["s"])


class Model(nn.Module):
    """One linear map for the rule to act on, and another behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def compiled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with the rule at `first` alone."""
    rule = {"rule": RULE, "path": "first", **OPTIONS}
    return peftc.compile(model, [rule], {"x": x}, defaults=False)


def test_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 6)
    torch.testing.assert_close(compiled(model, x)(x), model(x))


def test_is_its_equation() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 6)
    tuned = compiled(model, x)
    made = {name.rpartition(".")[2]: p for name, p in tuned.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in made.values():
            parameter.normal_()
    expected = model.last(torch.tanh(reference(x, model.first, made, **OPTIONS)))
    torch.testing.assert_close(tuned(x), expected)
'''


@app.command(no_args_is_help=True)
def new(
    name: Annotated[str, typer.Argument(help="The rule's name: small letters, digits and _.")],
    out: Annotated[Path, typer.Option(help="The folder for the rule file.")] = Path(),
    tests: Annotated[
        Path | None, typer.Option(help="The folder for its test; that of --out without it.")
    ] = None,
) -> None:
    """Write a rule file to start from, and its reference test; both hold as they stand. Replaces nothing."""
    if not re.fullmatch(RULE_NAME, name):
        raise SpecError(
            f"{name!r} is no name", hint="a rule's name is small letters, digits and _, after a letter"
        )
    rule, test = out / f"{name}.toml", (tests or out) / f"test_{name}.py"
    path = Path(os.path.relpath(rule.absolute(), test.absolute().parent)).as_posix()
    texts = {rule: RULE.replace("NAME", name), test: TEST.replace("NAME", name).replace("PATH", path)}
    check(read_text(texts[rule], rule.name))
    for file in texts:
        if file.exists():
            raise OutputExistsError("the file is there already", where=str(file), hint="it is left as it is")
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    out_console = Console(highlight=False, soft_wrap=True)
    out_console.print(f"{rule} and {test}")
    out_console.print(f"peftc check {rule} proves it; python -m pytest {test} compares it with its equation")
