"""A rule as data: the sections of the file format. `reading` reads them, `check` proves that they add up.

Names, axes and expressions stay texts here, so that a rule can be compared, hashed, stored and diffed
as it was written. Longer than most files here: the whole format in one place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from peftc.lang.axes import Axes, Constant, Dimension, read_axes, read_dimensions
from peftc.lang.initial import Initial, known_initial
from peftc.lang.limits import LARGEST_NUMBER
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
Axis = Annotated[str, Field(pattern=RULE_NAME)]
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
    min: int | float | None = Field(default=None, description="The least number allowed.")
    max: int | float | None = Field(default=None, description="The largest number allowed.")
    choices: Texts = Field(default=(), description="The texts allowed, where the option is a text.")
    help: str = Field(default="", description="What the option does, in one sentence.")

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

    def read(self, text: str) -> Constant:
        """The value that a word stands for, of whatever type it looks; an option of texts takes any as it is."""
        if isinstance(self.default, str):
            return text
        if text in ("true", "false"):
            return text == "true"
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    def typed(self, value: Constant) -> Constant:
        """`value` as this option holds it; call `problem` first."""
        return float(value) if isinstance(self.default, float) else value


KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Match(Data):
    """Which sites a section is for, and what it calls their axes."""

    role: Texts = Field(description="The role, or the roles, whose sites it is for.")
    part: Texts = Field(
        default=(),
        description="The parts of the role that are chosen unless the user names others; without it, all. "
        "A scope may stand in front: `decoder.q`.",
    )
    values: dict[Name, str] = Field(
        default_factory=dict,
        description="What the axes of a port are called here, in its order; `*` stands for any leading axes. "
        "A port that is not named has the axes of its role.",
    )
    where: Texts = Field(
        default=(),
        description="Conditions on options and on the sizes of axes. One on options alone says whether the "
        "section is on; any other leaves out the sites where it is not so, which is the reason in the plan.",
    )


class Parameter(Data):
    """A tensor that the rule makes at each site; or one for a layer or the model, of those the section goes to.

    With a seed, unshared ones still differ from site to site. A frozen one is saved with the adapter all the
    same, so that no adapter depends on a generator of random numbers.
    """

    axes: str = Field(
        description="Its axes by name. The size of each is that of the option or the axis of this name, or "
        "what follows `=`: a number, an option or an axis."
    )
    init: str = Field(
        description="How it starts: a law, whose settings are numbers or names of options, as in "
        "`normal(std=0.02)`; or an expression over the site's weights, the options, the parameters above it and, "
        "where the user gives data, the values that these have on it: `length(W, axis='d_in')`."
    )
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = Field(
        default=None, description="Its number format; that of the model unless given."
    )
    trainable: bool = Field(
        default=True,
        description="Whether it is trained; one that is not stays as it started, but for a schedule.",
    )
    share: Literal["site", "layer", "scope", "model"] = Field(
        default="site",
        description="Whether each site has one, all sites of a layer, all of a scope (the encoder, the decoder, the "
        "attentions across; one in other models), or all of the model.",
    )
    gate: bool = Field(
        default=False,
        description="Whether nothing is left where it is 0, which is proved: of its one axis, or of the whole section "
        "at a site where it is a single number. `compiled.shrink()` then takes out what stands there.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | Name | None = Field(
        default=None,
        description="Draws it alike on every machine, whatever was drawn before: a number, or an option that is one.",
    )
    lr: Annotated[float, Field(ge=0)] | Name = Field(
        default=1.0,
        description="The factor on the optimiser's learning rate for it: a number, or an option that is one. "
        "`peftc finetune` heeds it, and so do the groups of `peftc.param_groups`.",
    )

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Its axes, each with where its size comes from."""
        return read_dimensions(self.axes)

    @property
    def named(self) -> Axes:
        """The names of its axes."""
        return tuple(dimension.axis for dimension in self.dimensions)

    def named_in(self, stack: str) -> Axes:
        """The names of its axes at a site that is a stack: a site's own is one for each of its matrices."""
        return (stack, *self.named) if stack and self.share == "site" else self.named

    @property
    def initial(self) -> Initial:
        """The law or the expression it starts by."""
        return known_initial(self.init, Place("", "parameters", "init"), len(self.dimensions))


class Train(Data):
    """A parameter of the model that the rule trains."""

    insert: Name | None = Field(
        default=None,
        description="An option with the choices `never`, `auto` and `always`: whether a zero parameter is put in, and "
        "added to `y`, where a site has none (auto: only if no matched site of the model has one), or shares its own "
        "with parts that are left out.",
    )


class Loss(Data):
    """A term that is added to the model's own loss while it trains, such as a penalty on what the rule made.

    It reads parameters, weights and options, no values of a call: so it is the same for every batch.
    """

    value: str = Field(description="The term at one site: an expression that is a single number.")
    weight: int | float | Name = Field(
        default=1.0, description="The factor on the term: a number, or an option that is one."
    )
    reduce: Literal["mean", "sum"] = Field(
        default="mean", description="What is taken of the terms of all the sites the section goes to."
    )


class Schedule(Data):
    """A policy that changes parameters of the rule after each step of the optimiser."""

    policy: Name = Field(description="The name of the policy.")
    parameters: Annotated[dict[Name, Name], Field(min_length=1)] = Field(
        description="Which parameter of this section stands for which of the policy's."
    )
    settings: dict[Name, int | float | str] = Field(
        default_factory=dict, description="The policy's settings: numbers, texts or names of options."
    )


class Quantise(Data):
    """A weight of the model that is kept in fewer bits, and read from them wherever it is used. It cannot be trained."""

    format: Name = Field(
        description="How the numbers are kept: the name of a format, or an option with names of formats to choose from."
    )
    settings: dict[Name, bool | int | float | str] = Field(
        default_factory=dict, description="The format's settings: values, or names of options."
    )
    compute: Name | None = Field(
        default=None,
        description="In which number format products with the weight are computed: `input` (that of what is "
        "multiplied, which holds unless given), `float32`, `float16` or `bfloat16`; or an option that is one of them.",
    )


class Section(Data):
    """A match, and what is done at its sites. A rule is one section, and may have more under `also`."""

    match: Match = Field(description="Which sites this is for.")
    required: bool = Field(
        default=False,
        description="Whether a model without a site for this section is an error, even if others match.",
    )
    asked: bool = Field(
        default=False,
        description="Whether this section acts only where the user names a part of its roles, or a path; a composite "
        "that uses the rule does without it.",
    )
    follows: bool = Field(
        default=False,
        description="Whether this section is for what the first one is for, at the same roles, though its parts be "
        "others: parts that the user names then stand in place of both.",
    )
    parameters: dict[Name, Parameter] = Field(
        default_factory=dict, description="Tensors that are made at each site, by name."
    )
    let: dict[Name, str] = Field(
        default_factory=dict, description="Named expressions; the seams by which other rules reach in."
    )
    fold: Texts = Field(
        default=(),
        description="Bindings that depend on no call, such as what a network makes of parameters alone: computed once "
        "for evaluation without gradients, and again when a parameter has changed. In training, and wherever a "
        "gradient is wanted, they are computed anew in each call. The parameters stay, and are saved.",
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
    quantise: dict[Name, Quantise] = Field(
        default_factory=dict, description="Weights of the model that are kept in fewer bits, by port."
    )
    loss: dict[Name, Loss] = Field(
        default_factory=dict, description="Terms that are added to the loss while the model trains, by name."
    )
    schedule: dict[Name, Schedule] = Field(
        default_factory=dict,
        description="Policies that change parameters of this section in the course of training, by name.",
    )

    def values(self) -> dict[str, Axes]:
        """The axes that the match gives to ports."""
        return {port: read_axes(text) for port, text in self.match.values.items()}


class MatchChange(Data):
    """What a `use` says differently of the match of the rule it uses; what it leaves out stays.

    `values` are replaced port by port; `role`, `part` and `where` as a whole.
    """

    role: Texts | None = Field(default=None, description="Other roles.")
    part: Texts | None = Field(default=None, description="Other parts.")
    values: dict[Name, str] = Field(default_factory=dict, description="Other names for the axes of ports.")
    where: Texts | None = Field(default=None, description="Other conditions.")


class Use(Data):
    """A rule of the library as a part of this one, with what is different about it here.

    The used rule's options become options of this rule, called `<label>_<option>`, with the default that
    `options` gives; a text that is the name of an option of this rule puts that one in its place. A `let`
    replaces the binding of its name and may read the old one by that name; other names are new bindings.
    `parameters`, `rewrite`, `loss` and `schedule` replace or add, key by key; `merge = false` leaves the used
    rule's merge out.
    """

    rule: RuleName = Field(description="The name of the used rule.")
    label: RuleName | None = Field(
        default=None,
        description="What its options, parameters and bindings get in front; its name unless given.",
    )
    options: dict[Name, bool | int | float | str] = Field(
        default_factory=dict, description="Other defaults, or names of this rule's options in their place."
    )
    saved: Axis | None = Field(
        default=None,
        description="An axis, and an option of this rule of the same name: the used rule's parameters are read from "
        "so many saved adapters that the user names, stacked along this axis, and stay as they are. The rule and its "
        "options are then those of the adapters, whose rule may be another one than that named here; its loss, "
        "schedules and merge do not hold.",
    )
    added: Name | None = Field(
        default=None,
        description="A name for what the used rule adds to the port that it rewrites as `port + …`; `rewrite` then "
        "says what becomes of it.",
    )
    where: Texts = Field(
        default=(),
        description="Conditions on this rule's options, for every section of the used rule besides its own: so an "
        "option can choose among uses.",
    )
    match: MatchChange = Field(default_factory=MatchChange, description="What is different about its sites.")
    parameters: dict[Name, Parameter] = Field(
        default_factory=dict, description="Parameters to replace or to add."
    )
    let: dict[Name, str] = Field(
        default_factory=dict,
        description="Bindings to replace, which may read the old ones by name, or to add.",
    )
    fold: Texts = Field(
        default=(), description="Bindings, of the used rule or new, that are folded here besides its own."
    )
    rewrite: dict[Name, str] = Field(default_factory=dict, description="Rewrites to replace or to add.")
    loss: dict[Name, Loss] = Field(default_factory=dict, description="Loss terms to replace or to add.")
    schedule: dict[Name, Schedule] = Field(
        default_factory=dict, description="Schedules to replace or to add."
    )
    merge: bool = Field(default=True, description="Whether the used rule's merge holds here.")


class Define(Data):
    """A fragment that expressions call by its name, such as a gate; every call has parameters of its own.

    `takes` gives the axes of each argument. They are lined up with those of a call's arguments by position,
    so that one fragment serves values of any width. `gives` is what a call stands for.
    """

    takes: Annotated[dict[Name, str], Field(min_length=1)] = Field(
        description="Its arguments in order, with their axes."
    )
    parameters: dict[Name, Parameter] = Field(
        default_factory=dict, description="Tensors that are made for each call."
    )
    let: dict[Name, str] = Field(default_factory=dict, description="Named expressions inside it.")
    gives: str = Field(description="The expression that a call stands for.")


class Rule(Section):
    """One method, whole. Two rules are equal if they say the same, wherever they were read.

    A composite `use`s other rules, and need have no match of its own. What acts on a model is a flattened
    rule (`peftc.lang.composite`): it has neither `use` nor `define`.
    """

    match: Match = Field(default_factory=lambda: Match(role=()))
    format: Literal[1] = Field(description="The version of the file format.")
    name: RuleName = Field(description="The name that specs use; in a library, also the file's.")
    summary: str = Field(description="What the method does, in one sentence.")
    paper: str = Field(default="", description="Where the method is described.")
    shorthand: Name | None = Field(
        default=None, description="The option that the text after a spec's colon sets, or `part`."
    )
    default: bool = Field(
        default=False, description="Whether the rule acts, where it matches, without being asked."
    )
    options: dict[Name, Option] = Field(default_factory=dict, description="What the user can set, by name.")
    also: Annotated[tuple[Section, ...], BeforeValidator(_listed)] = Field(
        default=(),
        description="More sections, each with a match and edits of its own; they share the options.",
    )
    use: Annotated[tuple[Use, ...], BeforeValidator(_listed)] = Field(
        default=(), description="Rules of the library that this one is composed of, in order."
    )
    define: dict[Name, Define] = Field(
        default_factory=dict, description="Fragments that expressions call like operations, by name."
    )
    before: RuleNames = Field(default=(), description="Rules that act after this one at the same place.")
    after: RuleNames = Field(default=(), description="Rules that act before this one at the same place.")
    conflicts: RuleNames = Field(default=(), description="Rules that cannot be used together with this one.")

    _source: Source | None = PrivateAttr(default=None)
    _made_of: int = PrivateAttr(default=1)
    _written: Rule | None = PrivateAttr(default=None)

    @property
    def source(self) -> Source:
        """The file it was read from, to point into; a rule from elsewhere has its name only."""
        return self._source or Source(self.name)

    @property
    def made_of(self) -> int:
        """How many rules were put together to make this one."""
        return self._made_of

    @property
    def written(self) -> Rule:
        """The rule as its author wrote it, before it was flattened."""
        return self._written or self

    def read_from(self, source: Source, made_of: int = 1, written: Rule | None = None) -> Rule:
        """This rule, knowing the file it stands in, how many rules it was made of, and what it was before."""
        self._source, self._made_of, self._written = source, made_of, written
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
