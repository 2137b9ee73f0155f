"""The reference of the rule language: every key, operation, law, limit, code and the spec grammar."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.making.markdown import code, page, said, table
from peftc.lang import CODES, FORMATS, GRAMMAR, LAWS, OPERATIONS, PIECES, POLICIES, Operation, Rule, Section
from peftc.lang.axes import contract, meet, read_axes, read_dimensions
from peftc.lang.expression import CONDITION_WORDS, EXPRESSION_WORDS
from peftc.lang.limits import LIMITS
from peftc.lang.operations import Setting
from peftc.lang.results import numbers as numbers_axes
from peftc.lang.sizes import FUNCTIONS

EXAMPLE = Path(__file__).parents[2] / "rules" / "lora.toml"
CHOICES = (
    ("a scope, layers, a path", "Nothing outside of them is changed, whatever the section; only sections that go along "
     "with others, below, are not asked for a path or layers."),
    ("a path, where parts follow the rule's colon", "It stands in the place of the parts: `lora:path=*.out_proj`. "
     "Elsewhere it chooses among the sections' own."),
    ("a part", "Sections whose roles have it go there, instead of to their own parts; sections whose roles do not have "
     "it do not act. A part that no section can have is refused, with those that some can."),
    ("a part, of a rule that places different things", "It chooses among each section's own parts, and adds none: "
     "`houlsby:attention` is the bottleneck behind `o`, `houlsby:ffn` that behind the feed-forward network. Sections "
     "place different things if their roles or parts differ; where parts follow the colon, they are as above."),
)  # fmt: skip
WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number"}


def language() -> str:
    """The page."""
    return page(
        "The rule language",
        "A method is one TOML file. It says which sites of a model it is for, which parameters it makes there, and "
        "which values become what. It is proved when it is loaded, before there is a model: every name is bound, "
        "every axis accounted for, every parameter used. Nothing in it is ever run by Python.",
        f"```toml\n{EXAMPLE.read_text(encoding='utf-8').partition('[[also]]')[0].rstrip()}\n```",
        "`peftc new NAME` writes a file to start from, `peftc check FILE` proves one, `peftc rules NAME` tells what "
        "one does. Roles, their parts and their ports: [roles.md](roles.md).",
        "## Keys",
        *_tables(),
        "## Axes",
        "Axes have names, and everything lines up by name: no transpose, no unsqueeze.",
        table(
            ("written", "meaning"),
            (
                ('`"* d_in"`', said(read_axes)),
                ('`"kv_heads keys=length"`', said(read_dimensions)),
                ("`a + b`, `a - b`, `a * b`, `a / b`", said(meet)),
                ("`a @ b`", said(contract)),
            ),
        ),
        "Functions that a size can be made with; `divisor` and `pairs` stand for numbers in expressions too.",
        table(("function", "meaning"), (_size_function(name) for name in sorted(FUNCTIONS))),
        "## Expressions",
        f"An expression is made of {EXPRESSION_WORDS}; a condition of `where` of {CONDITION_WORDS}. The syntax is "
        "Python's, which only parses it. Names stand for options, sizes of axes, ports, parameters and bindings.",
        "## Operations",
        table(
            ("operation", "settings", "axes", "meaning"), (_operation(each) for each in _sorted_operations())
        ),
        "## Policies",
        "What a `schedule` can name. Policies act between two steps of the optimiser: `peftc finetune` carries them "
        "out; with a Trainer of your own, give it the callback `peftc.finetune.schedules.RunSchedules(compiled)`; in "
        "a loop of your own, call `compiled.update_schedules(step, total)` after each `optimizer.step()`. Whatever "
        "they need to go on is in `compiled.schedules.state_dict()`.",
        "What a policy leaves to be set by hand is set with `compiled.set_schedule(name=value)` at any time, and saved "
        "with the adapter.",
        table(
            ("policy", "parameters", "settings", "set by hand", "meaning"),
            (_policy(name) for name in sorted(POLICIES)),
        ),
        "## Number formats",
        'What a `quantise` can name. Weights are packed and unpacked by bitsandbytes (`pip install "peftc[quant]"`). '
        "Products read packed weights, and unpack them once more for the gradient of what was multiplied; any other "
        "expression that reads one gets it unpacked. An adapter beside them is saved alone: the same backbone is "
        "packed into the same bits again.",
        table(
            ("format", "settings", "bits a number", "meaning"), (_format(name) for name in sorted(FORMATS))
        ),
        "## Initial laws",
        table(("law", "settings", "axes at least", "meaning"), (_law(name) for name in sorted(LAWS))),
        "## Limits",
        "A file of a stranger can be loaded without fear: these hold before anything is done with it.",
        table(("what", "at most"), ((what, f"{most:,}") for what, most in LIMITS.items())),
        "## Errors",
        "A message says where, what, the text with carets, and what there is instead. Its code keeps its meaning.",
        table(("code", "meaning"), CODES.items()),
        "## Specs",
        f"What users write for a rule: `{GRAMMAR}`.",
        table(("piece", "meaning"), ((code(piece), meaning) for piece, meaning in PIECES)),
        "## What is chosen in which section",
        "What a user names narrows every section of a rule, those of the rules that it uses too.",
        table(("named", "what it does"), CHOICES),
        "A section that makes no parameters, at other roles than those that do, **accompanies** them: it acts whatever part "
        "is named, as norms do that train beside adapters (`houlsby:ffn` trains them too), within the scopes, layers and "
        "path. One that trains nothing either, such as what moves positions for a prefix, **goes along**: it acts where "
        "sections do that read an option which it reads too, in their scopes. What "
        "stands around an attention across is the decoder's.",
        "A plan notes what was asked for and comes to nothing: an option with another value than its default that only "
        "switches on sections which act nowhere, a part nothing of which is changed, a section that would act by itself "
        "and has no site among those that were named.",
        "## Editors",
        "[`rules/rule.schema.json`](../rules/rule.schema.json) is a JSON Schema of rule files: an editor that knows "
        "one completes keys, roles and parts, and marks what is wrong. In this repository `.taplo.toml` points to it; "
        "elsewhere, the first line of a rule file does: `#:schema path/to/rule.schema.json`.",
    )


def _tables() -> Iterator[str]:
    """A heading and a table for each kind of table in a rule file, from the outside in."""
    own = {key: field for key, field in Rule.model_fields.items() if key not in Section.model_fields}
    yield "### The file"
    yield keys_of({**own, **Section.model_fields})
    for path, model in _nested("", Rule):
        yield f"### `[{path}]`"
        yield said(model)
        yield keys_of(model.model_fields)


def _nested(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each record that fields of a record hold, with its path in the file; `also` has the tables of the file."""
    for key, field in model.model_fields.items():
        held = _record(field.annotation)
        if held is None or held is Section:
            continue
        name = f"{path}.{key}".lstrip(".") + (".NAME" if get_origin(field.annotation) is dict else "")
        yield name, held
        yield from _nested(name, held)


def _record(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_record(argument) for argument in get_args(annotation)]
    return next((record for record in found if record), None)


def said_of(model: type[BaseModel]) -> str:
    """What a record's docstring says of it."""
    return said(model)


def keys_of(fields: Mapping[str, FieldInfo]) -> str:
    for key, field in fields.items():
        assert field.description, (
            f"the key {key!r} has no Field(description=…): it is part of the documentation"
        )
    return table(
        ("key", "type", "default", "meaning"),
        (
            (code(key), _type(field.annotation), _default(field), field.description or "")
            for key, field in fields.items()
        ),
    )


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(_type(each) for each in arguments if each is not type(None))
        return ", ".join(word for word in words if not (word == "whole number" and "number" in words))
    if origin is Literal:
        return ", ".join(code(repr(each).replace("'", '"')) for each in arguments)
    if origin is dict:
        inner = _type(arguments[1])
        return f"table of {inner}s by name" if ", or" not in inner else f"table by name: {inner}"
    if origin is tuple:
        inner = _type(arguments[0])
        return f"{inner}, or a list of them" if inner == "text" else f"list of {inner}s"
    return WORDS.get(annotation, "table")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True, validated_data={})
    if (
        default is PydanticUndefined
        or default is None
        or isinstance(default, BaseModel)
        or not (default or default is False)
    ):
        return "nothing"
    return code({True: "true", False: "false"}.get(default, default))


def _sorted_operations() -> list[Operation]:
    return [OPERATIONS[name] for name in sorted(OPERATIONS)]


def _operation(operation: Operation) -> tuple[str, str, str, str]:
    settings = "; ".join(_setting(name, setting) for name, setting in operation.settings.items())
    numbers = [name for name, kind in operation.takes if kind == "number"]
    takes = (
        f" {', '.join(map(code, numbers))} is a number."
        if numbers and operation.axes is not numbers_axes
        else ""
    )
    takes += "".join(f" {code(name)} may be a number." for name, kind in operation.takes if kind == "any")
    takes += "".join(f" {code(f'{name}=…')} may give a value." for name in operation.optional)
    return code(operation.call), settings, said(operation.axes), operation.doc + takes


def _size_function(name: str) -> tuple[str, str]:
    function = FUNCTIONS[name]
    return code(f"{name}({','.join(function.takes)})"), function.doc


def _setting(name: str, setting: Setting) -> str:
    limits = [
        *(["must be given"] if setting.default is None else [f"{setting.default} unless given"]),
        *([f"from {setting.min:g}"] if setting.min is not None else []),
        *([f"to {setting.max:g}"] if setting.max is not None else []),
        *([" ".join(map(code, setting.choices))] if setting.choices else []),
        *([f"one of {', '.join(map(str, setting.among))}"] if setting.among else []),
    ]
    return f"{code(name)}: {setting.doc} ({', '.join(limits)})"


def _policy(name: str) -> tuple[str, str, str, str, str]:
    policy = POLICIES[name]
    targets = "; ".join(
        f"{code(key)}: {target.doc} ({'trained' if target.trainable else 'frozen'})"
        for key, target in policy.takes.items()
    )
    settings = "; ".join(_setting(key, setting) for key, setting in policy.settings.items())
    by_hand = "; ".join(_setting(key, setting) for key, setting in policy.sets.items())
    return code(name), targets, settings, by_hand, f"{policy.doc} {policy.paper}".rstrip()


def _format(name: str) -> tuple[str, str, str, str]:
    told = FORMATS[name]
    settings = "; ".join(_setting(key, setting) for key, setting in told.settings.items())
    usual = {key: setting.default for key, setting in told.settings.items() if setting.default is not None}
    return code(name), settings, f"{told.bits(usual):.3g}", f"{told.doc} {told.paper}".rstrip()


def _law(name: str) -> tuple[str, str, str, str]:
    law = LAWS[name]
    settings = ", ".join(
        code(key) if value is None else f"{code(key)} ({value:.4g} unless given)"
        for key, value in law.settings.items()
    )
    return code(name), settings, str(law.axes) if law.axes else "", law.doc
