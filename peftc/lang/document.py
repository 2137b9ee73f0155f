"""A rule as data: the sections of the file format, read from TOML. `check` proves that they add up.

Names, axes and expressions stay texts here, so that a rule can be compared, hashed, stored and diffed
as it was written. Longer than most files here: the whole format in one place.
"""

from __future__ import annotations

import hashlib
import json
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
from peftc.lang.source import Key, Place, Source

LARGEST_FILE = 64 * 1024
MOST_DOTS = 100
"""In one line: the standard library's reader takes seconds over a key of thousands of parts."""
RULE_NAME = r"^[a-z][a-z0-9_]{0,40}$"
NAME = r"^[A-Za-z][A-Za-z0-9_]{0,40}$"


def _listed(value: object) -> object:
    """TOML and JSON have lists; a frozen record holds tuples. One text stands for a list of it."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


RuleName = Annotated[str, Field(pattern=RULE_NAME)]
Name = Annotated[str, Field(pattern=NAME)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
RuleNames = Annotated[tuple[RuleName, ...], BeforeValidator(_listed)]


class Data(BaseModel):
    """What all sections share: no unknown keys, no conversion between types, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Option(Data):
    """A value that the user can set; its type is that of its default."""

    default: bool | int | float | str
    min: int | float | None = None
    max: int | float | None = None
    choices: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    help: str = ""

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be this option's value, or None. A whole number will do for a fraction."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            return f"must be {KINDS[kind]}, not {value!r}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}, not {value!r}"
        if isinstance(value, (int, float)):
            return self._range_problem(value)
        return None

    def _range_problem(self, value: float) -> str | None:
        if not abs(value) < 2**63:
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

    role: Texts
    part: Texts = ()
    values: dict[Name, str] = Field(default_factory=dict)
    where: Texts = ()


class Parameter(Data):
    """A tensor that the rule makes at each site.

    `share` makes one tensor for all sites of a layer, or of the model, that the section goes to. A `seed` (a
    number, or an option that is one) draws it alike on every machine, whatever was drawn before; unshared
    ones differ from site to site. A frozen one is saved with the adapter all the same, so that no adapter
    depends on a generator of random numbers.
    """

    axes: str
    init: str
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = None
    trainable: bool = True
    share: Literal["site", "layer", "model"] = "site"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | Name | None = None

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
    """A parameter of the model that the rule trains.

    `insert` names an option of never, auto and always: whether a zero parameter is put in where a site has
    none (auto: only if no matched site of the model has one), which the result `y` is then added to.
    """

    insert: Name | None = None


class Section(Data):
    """A match, and what is done at its sites. A rule is one section, and may have more under `also`.

    `required` makes it an error that a model has no site for this section, even if others match.
    """

    match: Match
    required: bool = False
    parameters: dict[Name, Parameter] = Field(default_factory=dict)
    let: dict[Name, str] = Field(default_factory=dict)
    rewrite: dict[Name, str] = Field(default_factory=dict)
    merge: dict[Name, str] = Field(default_factory=dict)
    train: dict[Name, Train] = Field(default_factory=dict)

    def values(self) -> dict[str, Axes]:
        """The axes that the match gives to ports."""
        return {port: read_axes(text) for port, text in self.match.values.items()}


class MatchChange(Data):
    """What a `use` says differently of the match of the rule it uses; what it leaves out stays.

    `values` are replaced port by port; `role`, `part` and `where` as a whole.
    """

    role: Texts | None = None
    part: Texts | None = None
    values: dict[Name, str] = Field(default_factory=dict)
    where: Texts | None = None


class Use(Data):
    """A rule of the library as a part of this one, with what is different about it here.

    The used rule's options become options of this rule, called `<label>_<option>`, with the default that
    `options` gives; a text that is the name of an option of this rule puts that one in its place. A `let`
    replaces the binding of its name and may read the old one by that name; other names are new bindings.
    `parameters` and `rewrite` replace or add, key by key; `merge = false` leaves the used rule's merge out.
    """

    rule: RuleName
    label: RuleName | None = None
    options: dict[Name, bool | int | float | str] = Field(default_factory=dict)
    match: MatchChange = Field(default_factory=MatchChange)
    parameters: dict[Name, Parameter] = Field(default_factory=dict)
    let: dict[Name, str] = Field(default_factory=dict)
    rewrite: dict[Name, str] = Field(default_factory=dict)
    merge: bool = True


class Define(Data):
    """A fragment that expressions call by its name, such as a gate; every call has parameters of its own.

    `takes` gives the axes of each argument. They are lined up with those of a call's arguments by position,
    so that one fragment serves values of any width. `gives` is what a call stands for.
    """

    takes: Annotated[dict[Name, str], Field(min_length=1)]
    parameters: dict[Name, Parameter] = Field(default_factory=dict)
    let: dict[Name, str] = Field(default_factory=dict)
    gives: str


class Rule(Section):
    """One method, whole. Two rules are equal if they say the same, wherever they were read.

    A composite `use`s other rules, and need have no match of its own. What acts on a model is a flattened
    rule (`peftc.lang.composite`): it has neither `use` nor `define`.
    """

    match: Match = Field(default_factory=lambda: Match(role=()))
    format: Literal[1]
    name: RuleName
    summary: str
    paper: str = ""
    shorthand: Name | None = None
    default: bool = False
    options: dict[Name, Option] = Field(default_factory=dict)
    also: Annotated[tuple[Section, ...], BeforeValidator(_listed)] = ()
    use: Annotated[tuple[Use, ...], BeforeValidator(_listed)] = ()
    define: dict[Name, Define] = Field(default_factory=dict)
    before: RuleNames = ()
    after: RuleNames = ()
    conflicts: RuleNames = ()

    _source: Source | None = PrivateAttr(default=None)
    _made_of: int = PrivateAttr(default=1)

    @property
    def source(self) -> Source:
        """The file it was read from, to point into; a rule from elsewhere has its name only."""
        return self._source or Source(self.name)

    @property
    def made_of(self) -> int:
        """How many rules were put together to make this one."""
        return self._made_of

    def read_from(self, source: Source, made_of: int = 1) -> Rule:
        """This rule, knowing the file it stands in, and how many rules it was made of."""
        self._source, self._made_of = source, made_of
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
        raw = file.read(LARGEST_FILE + 1)
    place = Place(path.name)
    if len(raw) > LARGEST_FILE:
        raise fault("R001", place, "a rule file has at most 64 KiB")
    try:
        return read_text(raw.decode(), path.name)
    except UnicodeDecodeError as error:
        raise fault("R002", place, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_text(text: str, file: str) -> Rule:
    """The rule in a TOML text, not proved yet. Raises RuleSyntaxError."""
    if len(text.encode()) > LARGEST_FILE:
        raise fault("R001", Place(file), "a rule file has at most 64 KiB")
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise fault("R002", Place(file), f"a line of a rule file has at most {MOST_DOTS} dots")
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise fault("R002", Place(file), f"is not TOML: {error}") from None
    return read_mapping(data, Source(file, text))


def read_mapping(data: Mapping[str, object], source: Source) -> Rule:
    """The rule in a mapping, as TOML or JSON gives it, not proved yet. Raises RuleSyntaxError."""
    try:
        rule = Rule.model_validate(dict(data))
    except ValidationError as error:
        raise _fault(error.errors(include_url=False)[0], source) from None
    return rule.read_from(source)


def _fault(error: ErrorDetails, source: Source) -> Exception:
    """The first thing pydantic found, in the words of the format."""
    keys = tuple(key for key in error["loc"] if key not in KINDS_OF_UNION)
    place = source.place(*keys)
    last = str(keys[-1]) if keys else ""
    if error["type"] == "extra_forbidden":
        return fault(
            "R003", place, f"there is no key {last!r} here", hint=instead(last, _known_keys(keys[:-1]))
        )
    if error["type"] == "too_short":
        return fault("R005", place, f"{last} names nothing")
    if error["type"] == "missing":
        return fault("R004", source.place(*keys[:-1]), f"the key {last!r} is missing")
    if error["type"] == "string_pattern_mismatch":
        named = str(error["input"])
        return fault(
            "R005", place, f"{named!r} is no name", hint="a name is letters, digits and _, after a letter"
        )
    shown = json.dumps(error["input"], default=str)
    said = error["msg"][0].lower() + error["msg"][1:]
    return fault("R005", place, said.replace("input should", f"{last} should"), text=f"{last} = {shown[:80]}")


KINDS_OF_UNION = frozenset({"bool", "int", "float", "str", "constrained-int", "constrained-str", "[key]"})
"""What pydantic puts into an error's location besides keys of the file."""


def _known_keys(keys: tuple[Key, ...]) -> list[str]:
    """The keys of the section at `keys`."""
    inner: Mapping[tuple[type[Data], Key], type[Data]] = {
        (Rule, "also"): Section,
        (Rule, "use"): Use,
        (Rule, "define"): Define,
        (Rule, "options"): Option,
        (Use, "match"): MatchChange,
    }
    both: Mapping[Key, type[Data]] = {"match": Match, "parameters": Parameter, "train": Train}
    kind: type[Data] = Rule
    for key in keys:  # the keys of tables of tables, such as a parameter's name, change no kind
        kind = inner.get((kind, key), both.get(key, kind) if key in kind.model_fields else kind)
    return sorted(kind.model_fields)
