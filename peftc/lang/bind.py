"""A rule with the user's wishes: options with their values, and which parts and layers. It knows no model
yet.

`bind` takes what users give (a spec, a mapping, a path, a Rule) and gives a Bound; `flatten` and `from_flat`
store one in an adapter, which is then read back with no library at hand. Raises SpecError and RuleError. Longer than
most files here: every way in which a user can ask for a rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from peftc.errors import OptionValueError, SpecError, UnknownOptionError, UnknownRuleError, carets, instead
from peftc.lang.axes import Constant
from peftc.lang.check import check
from peftc.lang.choosing import (
    PartSelector,
    accompanies,
    chosen_roles,
    goes_along,
    own_parts,
    selector,
    words,
)
from peftc.lang.document import Rule, Section
from peftc.lang.library import Library, default_library, load_rule
from peftc.lang.reading import read_mapping
from peftc.lang.roles import ROLES, SCOPES, known_words
from peftc.lang.shrunk import Shrunk, as_data, from_data
from peftc.lang.site_options import SiteOptions, one_for_all, options_at
from peftc.lang.source import Source
from peftc.lang.spec import Layers, Setting, SiteSettings, Span, Spec, read_layers, read_spec

RuleLike: TypeAlias = str | Path | Rule | Mapping[str, Any]
"""What a user can give for a rule. A text is a spec."""

CHOICES = ("part", "layers", "path", "sites")
"""What a mapping can say besides options: where the rule acts, and with which options where."""


@dataclass(frozen=True)
class Bound:
    """A rule, ready to be matched.

    `parts`, `layers` and `path_glob` are what the user chose; empty means that the rule's own parts hold.
    They choose among the sites of every section (`peftc.lang.choosing` says how parts do). `sites` are other values of
    options at some of the sites, of any section. `saved` are the adapters that parameters are read from, by what the user calls
    them (`peftc.lang.saved`). `shrunk` is what was taken out after training. A rule that is `kept` was trained before:
    other rules stand on what it learned, and nothing of it trains any more.
    """

    rule: Rule
    label: str
    options: Mapping[str, Constant]
    parts: tuple[PartSelector, ...] = ()
    layers: Layers | None = None
    path_glob: str | None = None
    text: str = field(default="", compare=False)
    sites: tuple[SiteOptions, ...] = ()
    saved: tuple[str, ...] = ()
    shrunk: tuple[Shrunk, ...] = ()
    kept: bool = False

    def shrunk_at(self, site: str, number: int) -> Shrunk | None:
        """What is left of a section at a site from which something was taken out."""
        return next((each for each in self.shrunk if (each.site, each.section) == (site, number)), None)

    def is_narrowed(self, number: int) -> bool:
        """Whether entries of axes were taken out of a section."""
        return any(each.section == number and each.sizes for each in self.shrunk)

    def options_at(self, path: str, site: str) -> dict[str, Constant]:
        """The options whose values differ at a site of this module path and id, with these values."""
        found = options_at(self.sites, path, site)
        return {name: value for name, value in found.items() if value != self.options[name]}

    def parts_of(self, section: Section) -> tuple[PartSelector, ...]:
        """The parts that a section of the rule is for; none means every part of its roles."""
        if goes_along(self.rule, section):
            return own_parts(section)
        if self.parts:
            chosen = (each for named in self.parts for each in named.within(self.rule, section))
            return tuple(dict.fromkeys(chosen))
        in_place = self.rule.shorthand == "part" and not accompanies(self.rule, section)
        return () if self.path_glob is not None and in_place else own_parts(section)

    def wants(self, section: Section) -> bool:
        """Whether the user's parts leave a section anything to act on."""
        if self.parts and not goes_along(self.rule, section):
            return bool(self.parts_of(section))
        return not section.asked or self.path_glob is not None

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles among whose sites the user's parts choose."""
        return chosen_roles(self.rule)

    @staticmethod
    def from_flat(flat: Mapping[str, Any]) -> Bound:
        """What `flatten` made, proved again. Raises RuleError and SpecError."""
        if not isinstance(flat.get("rule"), Mapping):
            raise SpecError("a stored rule must be a mapping with the rule in it")
        name = str(flat["rule"].get("name", "a stored rule"))
        rule = check(read_mapping(flat["rule"], Source(f"{name} (stored)")))
        request = _Request(str(flat.get("text", "")))
        fields = {key: flat[key] for key in ("part", "layers", "path", "sites") if flat.get(key)}
        given = flat.get("options", {})
        if not isinstance(given, Mapping):
            raise SpecError("the options of a stored rule must be a mapping", where=name)
        saved = flat.get("saved", ())
        if not isinstance(saved, Sequence) or not all(isinstance(each, str) for each in saved):
            raise SpecError("the saved adapters of a stored rule must be names", where=name)
        bound = request.bound(rule, given, fields)
        label, shrunk = _label(flat.get("label", rule.name)), from_data(flat.get("shrunk", ()))
        return replace(bound, label=label, saved=tuple(saved), shrunk=shrunk, kept=flat.get("kept") is True)


def flatten(bound: Bound) -> dict[str, Any]:
    """Everything of a Bound, the rule included, as JSON can hold it."""
    return {
        "label": bound.label,
        "text": bound.text,
        "options": dict(bound.options),
        "part": [selector.text for selector in bound.parts],
        "layers": bound.layers.text if bound.layers else None,
        "path": bound.path_glob,
        "rule": bound.rule.content,
        **({"sites": {each.glob: dict(each.options) for each in bound.sites}} if bound.sites else {}),
        **({"saved": list(bound.saved)} if bound.saved else {}),
        **({"shrunk": as_data(bound.shrunk)} if bound.shrunk else {}),
        **({"kept": True} if bound.kept else {}),
    }


def bind(rule: RuleLike, library: Library | None = None) -> Bound:
    """A rule as the user asks for it. Raises SpecError and RuleError."""
    library = library or default_library()
    if isinstance(rule, Rule):
        return _Request(rule.name).bound(check(rule, library.rule), {}, {})
    if isinstance(rule, Path):
        return _Request(str(rule)).bound(load_rule(rule, library), {}, {})
    if isinstance(rule, str):
        return _bind_spec(read_spec(rule), library)
    if isinstance(rule, Mapping):
        return _bind_mapping(rule, library)
    raise SpecError(f"a rule is a spec, a path, a Rule or a mapping, not {type(rule).__name__}")


def bind_all(rules: RuleLike | Iterable[RuleLike], library: Library | None = None) -> tuple[Bound, ...]:
    """Several rules in the order given, each with a label of its own: `lora`, `lora_2`. Raises as `bind`."""
    if isinstance(rules, (str, Path, Rule, Mapping)):
        rules = [rules]
    return numbered(bind(rule, library) for rule in rules)


def numbered(bounds: Iterable[Bound]) -> tuple[Bound, ...]:
    """Rules with a label of its own for each, by a number behind those that are there already."""
    labelled: list[Bound] = []
    for bound in bounds:
        taken = {other.label for other in labelled}
        others = (f"{bound.label}_{number}" for number in range(2, len(taken) + 3))
        label = (
            bound.label if bound.label not in taken else next(name for name in others if name not in taken)
        )
        labelled.append(replace(bound, label=label))
    return tuple(labelled)


def _bind_spec(spec: Spec, library: Library) -> Bound:
    request = _Request(spec.text)
    try:
        rule = load_rule(spec.name.text, library) if spec.is_path else library.rule(spec.name.text)
    except UnknownRuleError as error:
        raise UnknownRuleError(
            error.message,
            where="rule spec",
            detail=carets(spec.text, spec.name.start, spec.name.stop),
            hint=error.hint,
        ) from None
    fields: dict[str, object] = {"layers": spec.layers} if spec.layers else {}
    options: dict[str, object] = {}
    if spec.shorthand:
        request.spans["part"] = spec.shorthand
        if rule.shorthand is None:
            raise request.fail(
                SpecError, "part", f"{rule.name} takes nothing after a colon", _options_hint(rule)
            )
        if rule.shorthand == "part" or _names_parts(rule, spec.shorthand.text):
            fields["part"] = spec.shorthand.text
        else:
            request.spans[rule.shorthand] = spec.shorthand
            options[rule.shorthand] = rule.options[rule.shorthand].read(spec.shorthand.text)
    for setting in spec.settings:
        name = setting.name.text
        if name in options:
            request.spans[name] = setting.name
            raise request.fail(SpecError, name, f"{name} is given twice: after the colon, and here")
        request.spans[name] = setting.name if name not in rule.options else setting.value
        options[name] = _spec_value(setting, rule)
    if spec.sites:
        fields["sites"] = {each.glob.text: _site_settings(each, rule, request) for each in spec.sites}
    return request.bound(rule, options, fields)


def _site_settings(given: SiteSettings, rule: Rule, request: _Request) -> dict[str, object]:
    """The options of one glob of a spec."""
    for setting in given.settings:
        span = setting.name if setting.name.text not in rule.options else setting.value
        request.spans[f"{given.glob.text}: {setting.name.text}"] = span
    return {setting.name.text: _spec_value(setting, rule) for setting in given.settings}


def _names_parts(rule: Rule, text: str) -> bool:
    """Whether what follows the colon can only be meant as parts: words of roles, of no option's type."""
    if rule.shorthand is None or isinstance(rule.options[rule.shorthand].default, str):
        return False
    known = known_words(tuple(ROLES))
    named = (word.strip() for word in text.split(","))
    return all(word in SCOPES or word.rpartition(".")[2] in known for word in named)


def _bind_mapping(given: Mapping[str, Any], library: Library) -> Bound:
    if "rule" not in given:
        raise SpecError("a rule given as a mapping needs the key 'rule'", detail=(str(dict(given))[:100],))
    named = given["rule"]
    request = _Request(str(dict(given))[:200], is_spec=False)
    if isinstance(named, Rule):
        base = bind(named, library)
    elif isinstance(named, (str, Path)):
        is_file = isinstance(named, Path) or named.endswith(".toml")
        rule = load_rule(named, library) if is_file else library.rule(str(named))
        base = _Request(str(named)).bound(rule, {}, {})
    else:
        raise SpecError(f"the key 'rule' is a name, a path or a Rule, not {named!r}")
    fields = {key: given[key] for key in CHOICES if given.get(key) is not None}
    options = {str(key): value for key, value in given.items() if key not in ("rule", "label", *CHOICES)}
    bound = request.bound(base.rule, options, fields)
    return replace(bound, label=_label(given.get("label", bound.label)))


def _label(label: object) -> str:
    """A label names parameters and files, so it is a plain word."""
    if not isinstance(label, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,50}", label) or "__" in label:
        raise SpecError(f"{label!r} is no label", hint="a label is small letters, digits and single _")
    return label


class _Request:
    """What the user wrote, to point into: a spec with the pieces that matter, or a mapping."""

    def __init__(self, text: str, *, is_spec: bool = True) -> None:
        self.text = text
        self.is_spec = is_spec
        self.spans: dict[str, Span] = {}

    def fail(self, kind: type[SpecError], key: str, message: str, hint: str | None = None) -> SpecError:
        """An error about one piece."""
        where = "rule spec" if self.is_spec else "rule mapping"
        if span := self.spans.get(key):
            return kind(message, where=where, detail=carets(self.text, span.start, span.stop), hint=hint)
        return kind(message, where=where, detail=(self.text,) if self.text else (), hint=hint)

    def bound(self, rule: Rule, given: Mapping[str, object], fields: Mapping[str, object]) -> Bound:
        """The rule with these options, parts, layers and path."""
        options = {
            **{name: option.typed(option.default) for name, option in rule.options.items()},
            **self._options(rule, given),
        }
        parts, path = self._parts(rule, fields.get("part", ()))
        if "path" in fields:
            path = self._path(fields["path"])
        layers, sites = self._layers(fields.get("layers")), self._sites(rule, fields.get("sites", {}))
        return Bound(rule, rule.name, options, parts, layers, path, self.text, sites)

    def _options(self, rule: Rule, given: Mapping[str, object], where: str = "") -> dict[str, Constant]:
        """The options that are given, each a value it can have; `where` is the glob of some sites."""
        for name, value in given.items():
            key, said = (f"{where}: {name}", f"{where}: ") if where else (name, "")
            if name not in rule.options:
                message = f"{said}{rule.name} has no option {name!r}"
                raise self.fail(UnknownOptionError, key, message, instead(name, rule.options))
            option = rule.options[name]
            if problem := option.problem(value):
                message = f"{said}{name} of {rule.name} {problem}"
                raise self.fail(OptionValueError, key, message, option.help or None)
        return {name: rule.options[name].typed(cast("Constant", value)) for name, value in given.items()}

    def _sites(self, rule: Rule, given: object) -> tuple[SiteOptions, ...]:
        """The options of some sites, by globs."""
        if not isinstance(given, Mapping) or not all(isinstance(each, Mapping) for each in given.values()):
            message = f"sites is a mapping from globs to options, not {given!r}"
            raise self.fail(SpecError, "sites", message, "sites={'*.layers.0.*': {'rank': 16}}")
        fixed, found = one_for_all(rule) if given else {}, []
        for glob, options in given.items():
            if not isinstance(glob, str) or not glob.strip() or not options:
                message = f"sites is a mapping from globs to options, not {given!r}"
                raise self.fail(SpecError, "sites", message, "sites={'*.layers.0.*': {'rank': 16}}")
            found.append(SiteOptions(glob, self._options(rule, options, glob)))
            if common := [name for name in options if name in fixed]:
                message = f"{common[0]} of {rule.name} is one for all sites: {fixed[common[0]]} reads it"
                raise self.fail(OptionValueError, f"{glob}: {common[0]}", message)
        return tuple(found)

    def _parts(self, rule: Rule, part: object) -> tuple[tuple[PartSelector, ...], str | None]:
        """The selectors that a comma list or a sequence names, or the glob after `path=`."""
        if isinstance(part, str) and part.startswith("path="):
            return (), self._path(part.removeprefix("path="))
        named = part.split(",") if isinstance(part, str) else part
        if not isinstance(named, Sequence) or not all(isinstance(word, str) for word in named):
            raise self.fail(SpecError, "part", f"part is a text or a list of texts, not {part!r}")
        return tuple(self._part(rule, word.strip()) for word in cast("Sequence[str]", named)), None

    def _part(self, rule: Rule, word: str) -> PartSelector:
        named, known = selector(word), words(rule)
        if word in SCOPES:
            return named
        if named.scope is not None and named.scope not in SCOPES:
            hint = instead(named.scope, SCOPES)
            raise self.fail(SpecError, "part", f"{word!r}: there is no scope {named.scope!r}", hint)
        if named.part not in known:
            message = f"{rule.name} has no part {named.part!r} to go to"
            raise self.fail(SpecError, "part", message, f"{instead(named.part, known)}; or path=GLOB")
        return named

    def _path(self, path: object) -> str:
        if not isinstance(path, str) or not path.strip() or any(space in path for space in ", "):
            raise self.fail(
                SpecError, "part", "path= is followed by one glob over module paths, such as *.out_proj"
            )
        return path.strip()

    def _layers(self, layers: object) -> Layers | None:
        match layers:
            case None | Layers():
                return layers
            case str():
                return read_layers(layers)
            case bool():
                pass
            case int():
                return read_layers(str(layers))
            case [*numbers] if numbers and all(type(number) is int and number >= 0 for number in numbers):
                return read_layers(",".join(map(str, numbers)))
        raise self.fail(SpecError, "layers", f"layers are a text such as 4-11, or numbers, not {layers!r}")


def _spec_value(setting: Setting, rule: Rule) -> object:
    option = rule.options.get(setting.name.text)
    if option is None or setting.quoted:
        return setting.value.text
    return option.read(setting.value.text)


def _options_hint(rule: Rule) -> str:
    named = ", ".join(f"{name}=…" for name in rule.options)
    return f"write {rule.name}({named})" if named else f"write {rule.name}"
