"""Every rule file with one token changed, and what a rule does as data to compare: its surface and its numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftc.lang import ANY, ROLES, Axes, Constant, Option, Parameter, Rule, Scope, Section, Term, signature
from peftc.lang.condition import is_on, unmet
from peftc.rewrite.backend import Settings, Terms
from peftc.rewrite.eager import EagerBackend

PROSE = re.compile(r'\b(?:help|summary|paper)\s*=\s*"[^"]*"|#.*')
TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|\d+(?:\.\d+)?|[<>=!]=|[-+*/@<>]")
OPERATORS = ("+", "-", "*", "/", "@")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
OPERAND = r"[A-Za-z_][A-Za-z0-9_]*"
SIZES = {"d_in": 12, "d_out": 4, "d_model": 6, "d": 5, "heads": 4, "kv_heads": 2, "head_dim": 3, "value_dim": 3, "vocab": 7,
         "keys": 10, "queries": 3, "batch": 2, "seq": 3}  # fmt: skip
NUMBERS = {"post_norms": 1}


@dataclass(frozen=True)
class Mutant:
    """A rule file with one change."""

    kind: str
    line: int
    old: str
    new: str
    text: str
    whole: str
    """The line as it was."""

    def __str__(self) -> str:
        return f"{self.kind}, line {self.line}: {self.old!r} → {self.new!r}"


def mutants(text: str) -> Iterator[Mutant]:
    """Each one-token change of a rule file, in the order of the file; each text once."""
    seen = {text}
    for mutant in itertools.chain(_tokens(text), _swaps(text), _deleted(text)):
        if mutant.text not in seen:
            seen.add(mutant.text)
            yield mutant


def _made(kind: str, text: str, start: int, stop: int, new: str) -> Mutant:
    line = text.count("\n", 0, start) + 1
    whole = text.splitlines()[line - 1]
    return Mutant(kind, line, text[start:stop], new, text[:start] + new + text[stop:], whole)


def _prose(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in PROSE.finditer(text)]


def _tokens(text: str) -> Iterator[Mutant]:
    prose = _prose(text)
    found = [t for t in TOKEN.finditer(text) if not any(start <= t.start() < stop for start, stop in prose)]
    words = list(dict.fromkeys(t[0] for t in found if t[0][0].isalpha()))
    for start, stop in prose:
        quoted = text.find('"', start, stop)
        if quoted > 0:
            yield _made("prose", text, quoted + 1, stop - 1, "Other.")
    for token in found:
        for new in _others(token[0], words):
            yield _made("name" if token[0][0].isalpha() else "sign", text, *token.span(), new)


def _others(token: str, words: list[str]) -> list[str]:
    if token in ("true", "false"):
        return ["false" if token == "true" else "true"]
    if token[0].isdigit():
        more = f"{float(token) + 1}" if "." in token else str(int(token) + 1)
        return [new for new in (more, f"-{token}", f"{token}0") if float(new) != float(token)]
    if token in OPERATORS:
        return [other for other in OPERATORS if other != token]
    if token in COMPARISONS:
        return [other for other in COMPARISONS if other != token]
    return [*(word for word in words if word != token), f"{token}z"] if token[0].isalpha() else []


def _swaps(text: str) -> Iterator[Mutant]:
    pair = re.compile(rf"({OPERAND})( [-+*/@<] |, |\", \")({OPERAND})")
    start = 0
    while found := pair.search(text, start):
        start = found.start(3)
        if any(first <= found.start() < stop for first, stop in _prose(text)):
            continue
        yield _made("swap", text, *found.span(), f"{found[3]}{found[2]}{found[1]}")


def _deleted(text: str) -> Iterator[Mutant]:
    for line in re.finditer(r"^.*\n", text, re.MULTILINE):
        if line[0].strip():
            yield _made("deleted line", text, *line.span(), "")
    for entry in re.finditer(rf"(?:, )?\b{OPERAND} = (?:\"[^\"]*\"|[\w.]+|\[[^]]*\])(?:,|(?= \}}))", text):
        yield _made("deleted entry", text, *entry.span(), "")
    for element in re.finditer(r"\"[^\"]*\", |, \"[^\"]*\"", text):
        yield _made("deleted element", text, *element.span(), "")


def surface(rule: Rule) -> str:
    """What users of a rule rely on besides its equations: a golden file holds it for every shipped rule."""
    lines = [f"{rule.name}: shorthand {rule.shorthand}, by default {rule.default}"]
    lines += [
        f"  {key} {', '.join(getattr(rule, key))}"
        for key in ("before", "after", "conflicts")
        if getattr(rule, key)
    ]
    for name, option in rule.options.items():
        limits = f"{option.min} to {option.max}, {' | '.join(option.choices) or 'any'}"
        lines.append(f"  option {name} = {option.default!r}, {limits}")
    for section in rule.sections:
        roles = ", ".join(sorted(section.match.role))
        parts = ", ".join(sorted(section.match.part)) or "every part"
        lines.append(
            f"  at {roles}: {parts}{' if asked' if section.asked else ''}{', following' if section.follows else ''}"
        )
        lines += [f"    fold {', '.join(section.fold)}"] if section.fold else []
        lines += [
            f"    train {port} {train.insert or ''}".rstrip() for port, train in sorted(section.train.items())
        ]
        lines += [
            f"    {name} [{made.axes}] {made.init} {made.dtype} "
            f"{'trained' if made.trainable else 'frozen'}, one a {made.share}, seed {made.seed}"
            + (f", learning rate times {made.lr}" if made.lr != 1.0 else "")
            + (", a gate" if made.gate else "")
            for name, made in sorted(section.parameters.items())
        ]
        for port, kept in sorted(section.quantise.items()):
            lines.append(f"    quantise {port}: {kept.format}, products in {kept.compute}")
            lines += [f"      {key} = {value!r}" for key, value in sorted(kept.settings.items())]
        lines += [
            f"    loss {name}: {term.weight} times the {term.reduce}"
            for name, term in sorted(section.loss.items())
        ]
        for name, told in sorted(section.schedule.items()):
            lines.append(f"    schedule {name}: {told.policy}")
            lines += [f"      {key} of {of}" for key, of in sorted(told.parameters.items())]
            lines += [f"      {key} = {value!r}" for key, value in sorted(told.settings.items())]
    return "\n".join(lines)


class Eager(EagerBackend):
    """Computes at once what the rewriting would put into a graph, the model being in training."""

    def lower_dropout(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """One fixed pattern of zeros for each rate."""
        held, rate = terms[0].held, settings["p"]
        assert isinstance(held, Tensor)
        assert not isinstance(rate, str)
        return held * (torch.rand(held.shape, generator=_seeded("dropout")) >= rate)


def _seeded(*names: object) -> torch.Generator:
    return torch.Generator().manual_seed(
        sum(ord(sign) * 31**at for at, sign in enumerate(str(names))) % 2**31
    )


def numbers(rule: Rule) -> dict[str, Any]:
    """What a rule computes, with each choice of its options: new values, merges, first values, laws, where it is off."""
    torch.manual_seed(0)  # some values are drawn
    return {
        f"{options} {number} {role}": _at(rule, section, role, options)
        for options in _settings(rule)
        for number, section in enumerate(rule.sections)
        for role in section.match.role
    }


def _settings(rule: Rule) -> list[dict[str, Constant]]:
    """Options that are not the defaults, for numbers to depend on them; each choice in turn."""
    plain = {name: _value(name, at, option) for at, (name, option) in enumerate(rule.options.items())}
    turns = [{**plain, name: choice} for name, option in rule.options.items() for choice in option.choices]
    return turns or [plain]


def _value(name: str, at: int, option: Option) -> Constant:
    """A value that no other option has, so that one in the place of another is seen."""
    if isinstance(option.default, (bool, str)):
        return option.default
    drawn = 0.3 + 0.1 * (len(name) + ord(name[0]) % 7) / 7
    value = 2 + at % 8 if isinstance(option.default, int) else drawn
    if (option.min, option.default) == (0, 1):
        value = at % 2  # how many of very few
    return type(option.default)(min(max(value, option.min or -math.inf), option.max or math.inf))


def _at(rule: Rule, section: Section, role: str, options: Mapping[str, Constant]) -> Any:
    if not is_on(rule, section, options):
        return "off"
    said = signature(section, role)
    sizes = said.sizes_at(SIZES | NUMBERS)
    made: dict[str, Any] = {}

    def new_parameter(name: str, parameter: Parameter, shape: tuple[int, ...]) -> Term:
        law = parameter.initial
        said = law.law or parameter.init
        made[name] = (shape, said, law.resolve(options), parameter.dtype, parameter.trainable)
        return Term(parameter.named, torch.randn(shape, generator=_seeded(name)))

    given: dict[str, Term] = {
        port: Term(axes, _drawn(_shape(role, port, len(axes)), port)) for port, axes in said.ports.items()
    }
    given |= {axis: Term((), size) for axis, size in sizes.items()}
    scope = Scope(rule, options, given, Eager(training=True), new_parameter, section=section)
    edits = {f"{port} =": _held(scope.rewrite(port), given[port].axes) for port in sorted(section.rewrite)}
    merges = {f"{port} merged": _held(scope.merge(port), given[port].axes) for port in sorted(section.merge)}
    starts = {
        f"{name} starts": _held(scope.initial(name), section.parameters[name].named)
        for name, parameter in sorted(section.parameters.items())
        if parameter.initial.expression is not None
    }
    losses = {f"loss {name}": scope.loss(name).held for name in sorted(section.loss)}
    fixed = [axis for axis in sizes if axis not in said.moving]
    left_out = [
        unmet(rule, section, options, dict(zip(fixed, grid, strict=True))) is None
        for grid in itertools.product(*(range(axis not in NUMBERS, 12) for axis in fixed[:3]))
        if len(fixed) <= 3
    ]
    trained = {port: train.insert for port, train in sorted(section.train.items())}
    return {**edits, **merges, **starts, **losses, "parameters": made, "sites": left_out, "trained": trained}


def _drawn(shape: tuple[int, ...], port: str) -> Tensor:
    """A value for a port: ids are whole numbers, of rows that every table here has."""
    drawn = torch.randn(shape, generator=_seeded(port))
    if port == "tokens":
        return (torch.arange(drawn.numel()) % 4 != 0).view(shape).to(drawn.dtype)
    return (100 * drawn).long().abs() % min(SIZES.values()) if port == "ids" else drawn


def _shape(role: str, port: str, count: int) -> tuple[int, ...]:
    named = [axis for axis in ROLES[role].ports[port].axes if axis != ANY]
    if len(named) == len(ROLES[role].ports[port].axes):
        return tuple(SIZES[axis] for axis in named)
    leading = max(count - len(named), 0) if count != len(named) + 1 else 2
    return (*(2, 3, 2, 2)[:leading], *(SIZES[axis] for axis in named))


def _held(term: Term, axes: Axes) -> Any:
    """The value, its axes in the order of the port's, so that two ways to write it compare."""
    held = term.held
    if not isinstance(held, Tensor) or ANY in axes or term.axes == axes:
        return held
    return held.permute([term.axes.index(axis) for axis in axes])


def same(one: Any, other: Any) -> bool:
    """Whether two results of `numbers` are equal, values up to rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-5, equal_nan=True)
    return type(one) is type(other) and bool(one == other)
