"""`peftc rules` and `peftc check`: the library, and the proof of a rule file. No torch is needed here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftc.cli.application import app
from peftc.errors import PeftcError
from peftc.lang import (
    POLICIES,
    Option,
    Parameter,
    Rule,
    Section,
    by_default,
    default_library,
    load_rule,
    words,
    write,
)


@app.command()
def rules(
    name: Annotated[
        str | None, typer.Argument(help="A rule of the library, or the path of a rule file; all without it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data for programs.")] = False,
) -> None:
    """List the rules of the library; or tell everything of one: options, parts, parameters, equations."""
    library = default_library()
    if name is not None:
        rule = load_rule(name) if name.endswith(".toml") else library.rule(name)
        _print_json(rule.content) if as_json else _describe(rule)
    elif as_json:
        _print_json([rule.content for rule in library.rules()])
    else:
        table = Table("rule", "shorthand", "on by default", "summary", box=None, header_style="bold")
        for rule in library.rules():
            table.add_row(rule.name, rule.shorthand or "", "yes" if rule.default else "", rule.summary)
        Console().print(table)


@app.command(no_args_is_help=True)
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Rule files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print data for programs.")] = False,
) -> None:
    """Prove rule files, without a model; print each one flattened, as an adapter would store it.

    The exit code is 2 where one is wrong; its message says where, what, and what there is instead.
    """
    told = [_proof(path) for path in files]
    if as_json:
        _print_json([{"file": str(path), **_as_data(proof)} for path, proof in zip(files, told, strict=True)])
    else:
        for path, proof in zip(files, told, strict=True):
            _print_proof(path, proof, several=len(files) > 1)
    if any(isinstance(proof, PeftcError) for proof in told):
        raise typer.Exit(2)


def _proof(path: Path) -> Rule | PeftcError:
    try:
        return load_rule(path)
    except PeftcError as error:
        return error


def _print_proof(path: Path, proof: Rule | PeftcError, *, several: bool) -> None:
    if isinstance(proof, PeftcError):
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        errors.print("[bold red]error[/]", end=" ")
        errors.print(str(proof), markup=False)
        return
    out = Console(highlight=False, soft_wrap=True)
    title = f"# {path}: {proof.name} is a proved rule, digest {proof.digest[:12]}"
    out.print(f"{title}\n{write(proof.content)}", markup=False, end="\n" if several else "")


def _as_data(proof: Rule | PeftcError) -> dict[str, Any]:
    if isinstance(proof, Rule):
        return {"proved": True, "name": proof.name, "digest": proof.digest, "rule": proof.content}
    return {
        "proved": False,
        "code": getattr(proof, "code", ""),
        "where": proof.where,
        "message": proof.message,
        "detail": list(proof.detail),
        "hint": proof.hint,
    }


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _describe(rule: Rule) -> None:
    console = Console(highlight=False)
    console.print(f"[b]{rule.name}[/]  ", Text(rule.summary))
    for title, table in _tables(rule):
        console.print(f"\n[b]{title}[/]")
        console.print(table)


def _tables(rule: Rule) -> Iterator[tuple[str, Table]]:
    """Each part of the description with its title."""
    after = {"part": "the parts", None: "nothing"}.get(rule.shorthand, f"the option {rule.shorthand}")
    facts = {
        "paper": rule.paper,
        "after the colon": after,
        "goes to": "; ".join(dict.fromkeys(map(_place, by_default(rule)))),
        "parts it can go to": ", ".join((*words(rule), "path=GLOB")),
        "on by default": "yes, wherever it matches" if rule.default else "",
        **{key: ", ".join(getattr(rule, key)) for key in ("before", "after", "conflicts")},
    }
    yield "rule", _table((key, value) for key, value in facts.items() if value)
    if rule.options:
        yield "options", _table((name, *_option(option)) for name, option in rule.options.items())
    for number, section in enumerate(rule.sections):
        suffix = f" (also[{number - 1}])" if number else ""
        if section.parameters:
            yield (
                f"parameters{suffix}",
                _table(
                    (name, f"[{made.axes}]", made.init, " ".join(kinds_of(made)))
                    for name, made in section.parameters.items()
                ),
            )
        yield f"equations{suffix}", _table(_equations(section))


def _place(section: Section) -> str:
    """Where a section goes by itself."""
    parts = ", ".join(section.match.part) or "all parts"
    return f"{', '.join(section.match.role)}: {parts}"


def kinds_of(made: Parameter) -> Iterator[str]:
    """What is to be known of a parameter besides."""
    if not made.trainable:
        yield "frozen"
    if made.gate:
        yield "gate"


def _equations(section: Section) -> Iterator[tuple[str, ...]]:
    """Everything that a section says of values: its bindings, its edits, what it trains, its conditions."""
    for key, table in (("let", section.let), ("rewrite", section.rewrite), ("merge", section.merge)):
        yield from ((key, name, f"= {text}") for name, text in table.items())
        if key == "let" and section.fold:
            yield ("fold", ", ".join(section.fold), "computed once for evaluation")
    for port, train in section.train.items():
        yield ("train", port, f"put in by {train.insert}" if train.insert else "")
    for port, kept in section.quantise.items():
        given = {**kept.settings, **({"compute": kept.compute} if kept.compute else {})}
        yield (
            "quantise",
            port,
            f"{kept.format}({', '.join(f'{key}={value}' for key, value in given.items())})",
        )
    for name, term in section.loss.items():
        yield ("loss", name, f"+ {term.weight} * {term.reduce} over sites of {term.value}")
    for name, told in section.schedule.items():
        given = {**told.parameters, **told.settings}
        yield (
            "schedule",
            name,
            f"{told.policy}({', '.join(f'{key}={value}' for key, value in given.items())})",
        )
        for key, setting in POLICIES[told.policy].sets.items():
            yield ("set_schedule", key, setting.doc)
    for text in section.match.where:
        yield ("only where", "", text)


def _option(option: Option) -> tuple[str, str, str]:
    """Default, range and help."""
    limits = [
        *([f"at least {option.min}"] if option.min is not None else []),
        *([f"at most {option.max}"] if option.max is not None else []),
        *([" | ".join(option.choices)] if option.choices else []),
    ]
    return f"= {option.default}", ", ".join(limits), option.help


def _table(rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in ("  ", *row)))
    return table
