"""Where in a rule file something stands: finds the line of a key by scanning the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

Key = str | int
Spans = tuple[int, int]
_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_ENTRY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+(?:\s*\.\s*[A-Za-z0-9_\"'-]+)*)\s*=")


@dataclass(frozen=True)
class Edit:
    """A text as it stands in a file (`before`), what was made of it (`after`), and the pieces that were
    replaced: where each begins and ends in `before` and in `after`. Elsewhere the two differ by a shift.
    """

    before: str
    after: str
    pieces: tuple[tuple[Spans, Spans], ...] = ()
    shift: int = 0

    def back(self, span: Spans) -> Spans:
        """The characters of `before` that characters of `after` were made of."""
        return self._back(span[0], 0), self._back(span[1], 1)

    def _back(self, at: int, end: int) -> int:
        grown = -self.shift
        for old, new in self.pieces:
            if at <= new[0]:
                break
            if at < new[1]:
                return old[end]
            grown = new[1] - old[1]
        return at - grown


@dataclass(frozen=True)
class Place:
    """A key of a rule file: `lora.toml, [let] delta, line 24`.

    What a composite takes over stands in two files: `used_by` is the place that took it. `edits` say what
    was made of the texts that are written here, so that carets point into them.
    """

    file: str
    section: str = ""
    key: str = ""
    line: int | None = None
    said: str = field(default="", compare=False)
    """The whole line, where the text is known."""
    used_by: Place | None = None
    edits: tuple[Edit, ...] = ()

    def __str__(self) -> str:
        inside = f"[{self.section}] {self.key}".rstrip() if self.section else self.key
        line = f"line {self.line}" if self.line else ""
        own = ", ".join(part for part in (self.file, inside, line) if part)
        return f"{own}, used by {self.used_by}" if self.used_by else own

    def taken_by(self, user: Place) -> Place:
        """This place, as what stands in it was taken over at `user`."""
        return replace(self, used_by=self.used_by.taken_by(user) if self.used_by else user)

    def edited(self, *edits: Edit) -> Place:
        """This place, its texts changed."""
        return replace(self, edits=(*(edit for edit in edits if edit.before != edit.after), *self.edits))

    def written(self, text: str, span: Spans | None) -> tuple[str, Spans | None]:
        """The text of the file that `text` was made of, and the same characters of it."""
        for edit in self.edits:
            if edit.after == text:
                text, span = edit.before, edit.back(span) if span else None
        return text, span


@dataclass(frozen=True)
class Source:
    """A rule's file name and its text; the text may be absent (a rule made from a mapping has none).

    `origins` are the places of keys that stand elsewhere: a flattened rule is made of several files.
    """

    file: str
    text: str = ""
    origins: Mapping[tuple[Key, ...], Place] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )

    def place(self, *keys: Key) -> Place:
        """The place of the value at `keys`, such as `("let", "delta")` or `("also", 0, "rewrite", "p")`."""
        if keys not in self._places:  # asked for again by every proof and every use
            self._places[keys] = self._found(keys)
        return self._places[keys]

    @cached_property
    def _places(self) -> dict[tuple[Key, ...], Place]:
        return {}

    def _found(self, keys: tuple[Key, ...]) -> Place:
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        named = [str(key) for key in keys if not (isinstance(key, str) and key.startswith("["))]
        if not named:
            return Place(self.file)
        if len(named) == 1:
            return self._place("", named[0], named)
        # `match.where[1]` reads better than a section called `match.where`.
        if named[-1].isdigit():
            *head, last = named[:-1]
            return self._place(_spoken(head), f"{last}[{named[-1]}]", named)
        return self._place(_spoken(named[:-1]), named[-1], named)

    def line(self, number: int) -> Place:
        """The place of a whole line."""
        return Place(self.file, line=number, said=self._texts[number - 1])

    def _place(self, section: str, key: str, keys: list[str]) -> Place:
        number = self._line(keys)
        return Place(self.file, section, key, number, self._texts[number - 1] if number else "")

    @cached_property
    def _texts(self) -> list[str]:
        return [line.rstrip("\r") for line in self.text.split("\n")]

    def _line(self, keys: list[str]) -> int | None:
        """The line of the longest beginning of `keys` that the text spells."""
        beginnings = (tuple(keys[:length]) for length in range(len(keys), 0, -1))
        return next((self._lines[path] for path in beginnings if path in self._lines), None)

    @cached_property
    def _lines(self) -> dict[tuple[str, ...], int]:
        """The first line that spells each path of keys."""
        return {tuple(path): number for number, path in reversed(self._entries())}

    def _entries(self) -> list[tuple[int, list[str]]]:
        entries: list[tuple[int, list[str]]] = []
        section: list[str] = []
        counts: dict[str, int] = {}
        for number, line in enumerate(self._texts, start=1):
            if header := _HEADER.match(line):
                section = _split(header[2])
                if header[1] == "[[":
                    name = ".".join(section)
                    counts[name] = counts.get(name, -1) + 1
                    section = [*section, str(counts[name])]
                elif section[0] in counts:  # [also.match] belongs to the latest [[also]]
                    section = [section[0], str(counts[section[0]]), *section[1:]]
                entries.append((number, section))
            elif entry := _ENTRY.match(line):
                entries.append((number, [*section, *_split(entry[1])]))
                inline = line[entry.end() :]
                inner = re.findall(r"[{,]\s*([A-Za-z0-9_]+)\s*=", inline)
                entries += [(number, [*section, *_split(entry[1]), key]) for key in inner]
        return entries


def _spoken(keys: list[str]) -> str:
    """`let`, or `also[0].match`."""
    return "".join(f"[{key}]" if key.isdigit() else f".{key}" for key in keys).lstrip(".")


def _split(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
