"""A rule as data: the sections of the file format, read from TOML. `check` proves that they add up.

Names, axes and expressions stay texts here, so that a rule can be compared, hashed, stored and diffed
as it was written.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from peftc.errors import instead
from peftc.lang.axes import Axes, Constant, Dimension, read_axes, read_dimensions
from peftc.lang.codes import fault
from peftc.lang.initial import Initial, known_initial
from peftc.lang.limits import FILE_BYTES, LARGEST_NUMBER, LINE_DOTS
from peftc.lang.measure import refuse_large
from peftc.lang.source import Key, Place, Source

RULE_NAME = r"^[a-z][a-z0-9_]{0,40}$"
NAME = r"^[A-Za-z][A-Za-z0-9_]{0,40}$"


def _listed(value: object) -> object:
    """TOML and JSON have lists; a frozen record holds tuples. One text stands for a list of it."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


_LISTED = BeforeValidator(_listed, json_schema_input_type=str | list[str])
RuleName = Annotated[str, Field(pattern=RULE_NAME)]
Name = Annotated[str, Field(pattern=NAME)]
Texts = Annotated[tuple[str, ...], _LISTED]
RuleNames = Annotated[tuple[RuleName, ...], _LISTED]


class Data(BaseModel):
    """What all sections share: no unknown keys, no conversion between types, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Option(Data):
    """A value that the user can set; its type is that of its default."""

    default: bool | int | float | str = Field(
        description="What holds when the user sets nothing; its type is the option's."
    )
    min: int | float | None = Field(None, description="The least number allowed.")
    max: int | float | None = Field(None, description="The largest number allowed.")
    choices: Texts = Field((), description="The texts allowed, where the option is a text.")
    help: str = Field("", description="What the option does, in one sentence.")

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be this option's value, or None. A whole number will do for a fraction."""
        kind = type(self.default)
        if kind is float and type(value) is int and abs(value) < LARGEST_NUMBER:
            value = float(value)
        if type(value) is not kind:
            return f"must be {KINDS[kind]}, not {value!r}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}, not {value!r}"
        if isinstance(value, (int, float)):
            return self._range_problem(value)
        return None

    def _range_problem(self, value: float) -> str | None:
        if not abs(value) < LARGEST_NUMBER:
            return f"must be a number of ordinary size, not {value}"
        if self.min is not None and value < self.min:
            return f"must be at least {self.min}, not {value}"
        if self.max is not None and value > self.max:
            return f"must be at most {self.max}, not {value}"
        return None

    def typed(self, value: Constant) -> Constant:
        """`value` as this option holds it; call `problem` first."""
        return float(value) if isinstance(self.default, float) else value


KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Match(Data):
    """Which sites a section is for, and what it calls their axes."""

    role: Texts = Field(description="The role, or the roles, whose sites it is for.")
    part: Texts = Field(
        (),
        description="The parts of the role that are chosen unless the user names others; without it, all. "
        "A scope may stand in front: `decoder.q`.",
    )
    values: dict[Name, str] = Field(
        default_factory=dict,
        description="What the axes of a port are called here, in its order; `*` stands for any leading axes. "
        "A port that is not named has the axes of its role.",
    )
    where: Texts = Field(
        (),
        description="Conditions on options and on the sizes of axes. One on options alone says whether the "
        "section is on; any other leaves out the sites where it is not so, which is the reason in the plan.",
    )


class Parameter(Data):
    """A tensor that the rule makes at each site."""

    axes: str = Field(
        description="Its axes by name. The size of each is that of the option or the axis of this name, or "
        "what follows `=`: a number, an option or an axis."
    )
    init: str = Field(
        description="The initial law, whose settings are numbers or names of options: `normal(std=0.02)`."
    )
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = Field(
        None, description="Its number format; that of the model unless given."
    )
    trainable: bool = Field(True, description="Whether it is trained; one that is not stays as it started.")

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Its axes, each with where its size comes from."""
        return read_dimensions(self.axes)

    @property
    def named(self) -> Axes:
        """The names of its axes."""
        return tuple(dimension.axis for dimension in self.dimensions)

    @property
    def initial(self) -> Initial:
        """The law it starts by."""
        return known_initial(self.init, Place("", "parameters", "init"), len(self.dimensions))


class Train(Data):
    """A parameter of the model that the rule trains."""

    insert: Name | None = Field(
        None,
        description="An option with the choices `never`, `auto` and `always`: whether a zero parameter is put "
        "in where a site has none (auto: only if no matched site of the model has one), and added to `y`.",
    )


class Section(Data):
    """A match, and what is done at its sites. A rule is one section, and may have more under `also`."""

    match: Match = Field(description="Which sites this is for.")
    parameters: dict[Name, Parameter] = Field(
        default_factory=dict, description="Tensors that are made at each site, by name."
    )
    let: dict[Name, str] = Field(
        default_factory=dict, description="Named expressions; the seams by which other rules reach in."
    )
    rewrite: dict[Name, str] = Field(
        default_factory=dict,
        description="The new value of a port. Right sides see the values as they were before any rewrite.",
    )
    merge: dict[Name, str] = Field(
        default_factory=dict,
        description="The same edit as a change of a weight, for merging the adapter into the model.",
    )
    train: dict[Name, Train] = Field(
        default_factory=dict, description="Weights of the model that become trainable, by port."
    )

    def values(self) -> dict[str, Axes]:
        """The axes that the match gives to ports."""
        return {port: read_axes(text) for port, text in self.match.values.items()}


class Rule(Section):
    """One method, whole. Two rules are equal if they say the same, wherever they were read."""

    format: Literal[1] = Field(description="The version of the file format.")
    name: RuleName = Field(description="The name that specs use; in a library, also the file's.")
    summary: str = Field(description="What the method does, in one sentence.")
    paper: str = Field("", description="Where the method is described.")
    shorthand: Name | None = Field(
        None, description="The option that the text after a spec's colon sets, or `part`."
    )
    default: bool = Field(False, description="Whether the rule acts, where it matches, without being asked.")
    options: dict[Name, Option] = Field(default_factory=dict, description="What the user can set, by name.")
    also: Annotated[tuple[Section, ...], BeforeValidator(_listed)] = Field(
        (), description="More sections, each with a match and edits of its own; they share the options."
    )
    before: RuleNames = Field((), description="Rules that act after this one at the same place.")
    after: RuleNames = Field((), description="Rules that act before this one at the same place.")
    conflicts: RuleNames = Field((), description="Rules that cannot be used together with this one.")

    _source: Source | None = PrivateAttr(default=None)

    @property
    def source(self) -> Source:
        """The file it was read from, to point into; a rule from elsewhere has its name only."""
        return self._source or Source(self.name)

    def read_from(self, source: Source) -> Rule:
        """This rule, knowing the file it stands in."""
        self._source = source
        return self

    @property
    def sections(self) -> tuple[Section, ...]:
        """The rule's own section, then those under `also`."""
        return (self, *self.also)

    def keys(self, section: Section) -> tuple[Key, ...]:
        """Where a section of this rule stands in its file: nowhere deeper, or `("also", index)`."""
        for index, other in enumerate(self.also):
            if other is section:
                return ("also", index)
        return ()

    @property
    def content(self) -> dict[str, Any]:
        """What it says, as JSON can hold it; what is not said is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def digest(self) -> str:
        """A hash of what it says."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.digest)


def read_file(path: Path) -> Rule:
    """The rule in a file, not proved yet. Raises RuleSyntaxError, and OSError where there is no file."""
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES + 1)
    place = Place(path.name)
    if len(raw) > FILE_BYTES:
        raise fault("R001", place, "a rule file has at most 64 KiB")
    try:
        return read_text(
            raw.decode().removeprefix("\ufeff"), path.name
        )  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        raise fault("R002", place, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_text(text: str, file: str) -> Rule:
    """The rule in a TOML text, not proved yet. Raises RuleSyntaxError."""
    if len(text.encode(errors="replace")) > FILE_BYTES:
        raise fault("R001", Place(file), "a rule file has at most 64 KiB")
    source = Source(file, text)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > LINE_DOTS:
            message = f"a line of a rule file has at most {LINE_DOTS} dots, this has {line.count('.')}"
            raise fault("R002", source.line(number), message)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError alone
        raise _no_toml(error, source) from None
    return read_mapping(data, source)


def _no_toml(error: Exception, source: Source) -> Exception:
    """What the reader found, at the line and the column that it tells."""
    told = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    if "int_max_str_digits" in told:
        told = "a number has too many digits"
    said, _, at = told.partition(" (at ")
    message = f"is not TOML: {said[:1].lower()}{said[1:]}"
    if not (found := re.match(r"line (\d+), column (\d+)", at)):
        return fault("R002", Place(source.file), f"{message}{f' ({at}' if at else ''}")
    place, start = source.line(int(found[1])), int(found[2]) - 1
    return fault("R002", place, message, span=(start, start + 1) if start < len(place.said) - 1 else None)


def read_mapping(data: Mapping[str, object], source: Source) -> Rule:
    """The rule in a mapping, as TOML or JSON gives it, not proved yet. Raises RuleSyntaxError."""
    refuse_large(data, source)
    try:
        rule = Rule.model_validate(dict(data))
    except ValidationError as error:
        raise _fault(error.errors(include_url=False), source) from None
    return rule.read_from(source)


def _fault(errors: list[ErrorDetails], source: Source) -> Exception:
    """The first thing pydantic found, in the words of the format."""
    error = errors[0]
    keys = _keys(error)
    place = source.place(*keys)
    last = str(keys[-1]) if keys else ""
    if error["type"] == "extra_forbidden":
        return fault(
            "R003", place, f"there is no key {last!r} here", hint=instead(last, _known_keys(keys[:-1]))
        )
    if error["type"] == "missing":
        return fault("R004", source.place(*keys[:-1]), f"the key {last!r} is missing")
    if error["type"] == "string_pattern_mismatch":
        named = str(error["input"])
        return fault(
            "R005", place, f"{named!r} is no name", hint="a name is letters, digits and _, after a letter"
        )
    wanted = [_wanted(other) for other in errors if _keys(other) == keys]
    said = f"{last} should be {' or '.join(dict.fromkeys(wanted))}"
    shown = None if place.said else f"{last} = {json.dumps(error['input'], default=str)[:80]}"
    return fault("R005", place, said, text=shown)


WANTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
"""What pydantic misses, in the words of the format."""


def _wanted(error: ErrorDetails) -> str:
    return WANTED.get(error["type"], error["msg"].removeprefix("Input should be "))


def _keys(error: ErrorDetails) -> tuple[Key, ...]:
    """Where it is in the file, without the branch of a union that pydantic tried."""
    return tuple(key for key in error["loc"] if key not in KINDS_OF_UNION)


KINDS_OF_UNION = frozenset({"bool", "int", "float", "str", "[key]"})
"""What pydantic puts into an error's location besides keys of the file."""


def _known_keys(keys: tuple[Key, ...]) -> list[str]:
    """The keys of the section at `keys`."""
    if keys[:1] == ("also",):
        section: type[Data] = Section
        keys = keys[2:]
    else:
        section = Rule
    inner: Mapping[Key, type[Data]] = {
        "match": Match,
        "parameters": Parameter,
        "train": Train,
        "options": Option,
    }
    return sorted((inner[keys[0]] if keys else section).model_fields)
