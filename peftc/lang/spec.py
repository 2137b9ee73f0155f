"""Rule specs, the short form that users write: `name[:shorthand][@layers][(option=value, …; glob: option=value, …)]`.

Read by hand, character by character; what the words mean for a rule is `bind`'s part. Raises
SpecError, with carets.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from peftc.errors import SpecError, carets
from peftc.lang.limits import SPEC

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}(?=\s*(?:[:@(]|\Z))")
_PATH = re.compile(r".*?\.toml(?=\s*(?:[:@(]|\Z))")
_RANGE = re.compile(r"(\d{1,6})?(-)?(\d{1,6})?\Z")
_OPTION = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*=\s*")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^,;()\"'\s][^,;()\"']*?(?=\s*[,;)]|\s*\Z)")
_GLOB = re.compile(r"\s*([^\s,;()=\"']+?)\s*:\s*(?=[A-Za-z][A-Za-z0-9_]*\s*=)")
GRAMMAR = "name[:shorthand][@layers][(option=value, …; glob: option=value, …)]"
PIECES = (
    ("name", "A rule of the library, or the path of a rule file (it ends in `.toml`)."),
    (
        ":shorthand",
        "The value of the option that the rule calls its shorthand; or, where that is `part`, the parts it "
        "goes to, with commas between them: parts, groups, either with a scope in front (`decoder.q`), a "
        "scope alone (`decoder`: the rule's own parts in it), or `path=GLOB` over module paths. Parts can stand there "
        "too where the shorthand is a number: `prefix:encoder(length=20)`. They narrow every section of the rule.",
    ),
    (
        "@layers",
        "Layers by number, from 0, both ends included: `4-11`, `0,3,5-7`, `6-`, `-3`. A number that the model does not "
        "have is an error; `6-` is whatever there is from 6 on.",
    ),
    ("(option=value, …)", "Options of the rule by name; a text may stand in quotes."),
    (
        "; glob: option=value, …",
        "Other values at some of the sites, by a glob over module paths (`*.layers.0.*`) or, with a colon in it, "
        "over the ids of sites (`*.attn:q`). Where several match, the later ones win, option by option.",
    ),
)
"""What each piece of a spec means; layers and options may stand in either order."""


@dataclass(frozen=True)
class Span:
    """A piece of a spec, and where in it it stands."""

    text: str
    start: int

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Layers:
    """Layers by number, from 0: ranges, both ends included, an end left open where it is None."""

    text: str
    ranges: tuple[tuple[int, int | None], ...]

    def __contains__(self, layer: object) -> bool:
        if not isinstance(layer, int):
            return False
        return any(first <= layer and (last is None or layer <= last) for first, last in self.ranges)

    def beyond(self, there: Collection[int]) -> tuple[int, ...]:
        """The layers that it names and that are not there; of a range, those behind the last."""
        last = max(there, default=-1)
        named = [
            number
            for low, high in self.ranges
            if high is not None
            for number in ([low] if low == high else range(max(low, last + 1), high + 1))
        ]
        return tuple(dict.fromkeys(number for number in named if number not in there))


@dataclass(frozen=True)
class Setting:
    """One `option=value` of a spec; a quoted value is a text whatever it looks like."""

    name: Span
    value: Span
    quoted: bool = False


@dataclass(frozen=True)
class SiteSettings:
    """The settings of a spec that hold at the sites of a glob."""

    glob: Span
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Spec:
    """A spec, read. `is_path` says that the name is the path of a rule file."""

    text: str
    name: Span
    is_path: bool = False
    shorthand: Span | None = None
    layers: Layers | None = None
    settings: tuple[Setting, ...] = ()
    sites: tuple[SiteSettings, ...] = ()


def spec_error(text: str, start: int, stop: int, message: str, hint: str | None = None) -> SpecError:
    """An error that points into a spec."""
    return SpecError(message, where="rule spec", detail=carets(text, start, stop), hint=hint)


def read_spec(text: str) -> Spec:
    """Read a spec. Raises SpecError."""
    if len(text) > SPEC:
        raise SpecError(f"a rule spec has at most {SPEC} characters, this has {len(text)}")
    if not text.strip():
        raise SpecError("a rule spec is empty", hint=f"it is {GRAMMAR}")
    return _Scanner(text).run()


def read_layers(text: str, spec: str | None = None, start: int = 0) -> Layers:
    """Read `4-11`, `0,3,5-7`, `6-` or `-3`; `spec` and `start` say where it stands. Raises SpecError."""
    whole = text if spec is None else spec
    ranges: list[tuple[int, int | None]] = []
    position = start
    for piece in text.split(","):
        word = piece.strip()
        at = position + len(piece) - len(piece.lstrip())
        position += len(piece) + 1
        found = _RANGE.match(word)
        if not found or not (found[1] or found[3]):
            hint = "layers are written 4-11, 0,3,5-7, 6- or -3"
            raise spec_error(whole, at, at + len(word), f"{word!r} names no layers", hint)
        first = int(found[1] or 0)
        last = int(found[3]) if found[3] else (None if found[2] else first)
        if last is not None and last < first:
            raise spec_error(whole, at, at + len(word), f"{word} ends before it begins")
        ranges.append((first, last))
    return Layers(text.strip(), tuple(ranges))


class _Scanner:
    """Goes through a spec once, from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = len(text) - len(text.lstrip())
        self.sites: list[SiteSettings] = []

    def run(self) -> Spec:
        name, is_path = self._name()
        shorthand = self._shorthand() if self._next() == ":" else None
        layers: Layers | None = None
        settings: tuple[Setting, ...] | None = None
        while mark := self._next():
            if mark == "@" and layers is None:
                layers = self._layers()
            elif mark == "(" and settings is None:
                settings = self._settings()
            elif mark in "@(":
                what = "layers are" if mark == "@" else "options are"
                raise self._error(self.at, self.at + 1, f"{what} given twice")
            else:
                raise self._error(
                    self.at,
                    len(self.text),
                    "this is left over",
                    "after the name: :shorthand @layers (option=value)",
                )
        return Spec(self.text, name, is_path, shorthand, layers, settings or (), tuple(self.sites))

    def _next(self) -> str:
        """The next character that is not a space, or nothing."""
        self.at += len(self.text[self.at :]) - len(self.text[self.at :].lstrip())
        return self.text[self.at : self.at + 1]

    def _name(self) -> tuple[Span, bool]:
        for pattern, is_path in ((_NAME, False), (_PATH, True)):
            if found := pattern.match(self.text, self.at):
                span = Span(found[0], self.at)
                self.at = found.end()
                return span, is_path
        stop = next((i for i in range(self.at, len(self.text)) if self.text[i] in ":@("), len(self.text))
        hint = "a rule is named by small letters, digits and _, or by the path of a .toml file"
        raise self._error(self.at, stop, f"{self.text[self.at : stop]!r} names no rule", hint)

    def _shorthand(self) -> Span:
        found = self._until("@(")
        if not found.text:
            raise self._error(found.start, found.start + 1, "nothing follows the colon")
        return found

    def _layers(self) -> Layers:
        found = self._until("(@")
        return read_layers(found.text, self.text, found.start)

    def _until(self, marks: str) -> Span:
        """What stands between the mark that is next and the first of `marks`, without spaces around it."""
        start = self.at + 1
        stop = next((i for i in range(start, len(self.text)) if self.text[i] in marks), len(self.text))
        raw = self.text[start:stop]
        self.at = stop
        return Span(raw.strip(), start + len(raw) - len(raw.lstrip()))

    def _settings(self) -> tuple[Setting, ...]:
        """What stands in brackets: settings for all sites, then those of globs, which go to `sites`."""
        opened, settings = self.at, tuple[Setting, ...]()
        self.at += 1
        if self._next() == ")":
            self.at += 1
            return ()
        mark = ";"
        while mark == ";":
            glob = _GLOB.match(self.text, self.at)
            if glob:
                self._refuse_known(Span(glob[1], glob.start(1)))
                self.at = glob.end()
            elif settings or self.sites:
                self._next()
                raise self._error(self.at, self.at + 1, "here glob: option=value is due")
            group, mark = self._group(opened)
            if glob:
                self.sites.append(SiteSettings(Span(glob[1], glob.start(1)), group))
            else:
                settings = group
        return settings

    def _group(self, opened: int) -> tuple[tuple[Setting, ...], str]:
        """Settings with commas between them, and the mark behind the last: `;` or `)`."""
        settings = list[Setting]()
        while True:
            settings.append(self._setting({setting.name.text for setting in settings}))
            mark = self._next()
            if mark not in (",", ";", ")") or not mark:
                at = opened if not mark else self.at
                raise self._error(
                    at, at + 1, "this bracket is not closed" if not mark else "here a comma or ) is due"
                )
            self.at += 1
            if mark != ",":
                return tuple(settings), mark

    def _refuse_known(self, glob: Span) -> None:
        if glob.text in {each.glob.text for each in self.sites}:
            raise self._error(glob.start, glob.stop, f"{glob.text} is given twice")

    def _setting(self, seen: set[str]) -> Setting:
        found = _OPTION.match(self.text, self.at)
        if not found:
            self._next()
            raise self._error(self.at, self.at + 1, "here option=value is due")
        name = Span(found[1], found.start(1))
        if name.text in seen:
            raise self._error(name.start, name.stop, f"{name.text} is given twice")
        self.at = found.end()
        value = _VALUE.match(self.text, self.at)
        if not value:
            raise self._error(name.start, self.at, f"{name.text} has no value")
        self.at = value.end()
        quoted = value[0][0] in "\"'"
        return Setting(
            name, Span(value[0].strip("\"'") if quoted else value[0], value.start() + quoted), quoted
        )

    def _error(self, start: int, stop: int, message: str, hint: str | None = None) -> SpecError:
        return spec_error(self.text, start, stop, message, hint)
