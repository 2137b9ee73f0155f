"""Where in a rule file something stands: finds the line of a key by scanning the text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

Key = str | int
_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_ENTRY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+(?:\s*\.\s*[A-Za-z0-9_\"'-]+)*)\s*=")


@dataclass(frozen=True)
class Place:
    """A key of a rule file: `lora.toml, [let] delta, line 24`."""

    file: str
    section: str = ""
    key: str = ""
    line: int | None = None
    said: str = field(default="", compare=False)
    """The whole line, where the text is known."""

    def __str__(self) -> str:
        inside = f"[{self.section}] {self.key}".rstrip() if self.section else self.key
        line = f"line {self.line}" if self.line else ""
        return ", ".join(part for part in (self.file, inside, line) if part)


@dataclass(frozen=True)
class Source:
    """A rule's file name and its text; the text may be absent (a rule made from a mapping has none)."""

    file: str
    text: str = ""

    def place(self, *keys: Key) -> Place:
        """The place of the value at `keys`, such as `("let", "delta")` or `("also", 0, "rewrite", "p")`."""
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
