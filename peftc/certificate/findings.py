"""What a check found: one finding for each property, with its figure and bound. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table

from peftc.errors import first_line

Verdict = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """One property of a compiled module.

    Attributes:
        name: the property.
        verdict: what was found.
        figure: what was measured; None where nothing is.
        bound: the largest figure that passes.
        detail: what the figure is, or why the property does not apply, or what failed where.
    """

    name: str
    verdict: Verdict
    figure: float | None = None
    bound: float | None = None
    detail: str = ""


def within(name: str, figure: float, bound: float, detail: str) -> Finding:
    """A finding that passes up to its bound."""
    return Finding(name, "pass" if figure <= bound else "fail", figure, bound, detail)


def none(name: str, why: str) -> Finding:
    """A property that does not apply."""
    return Finding(name, "not applicable", detail=why)


def counted(number: int, noun: str) -> str:
    """A number of things, in words that fit it."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def said_by(why: BaseException, room: int = 120) -> str:
    """What an error says, as far as a detail has room."""
    return first_line(why)[:room]


@dataclass(frozen=True)
class Certificate:
    """Every finding about one compiled module."""

    model: str
    rules: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no property failed."""
        return all(finding.verdict != "fail" for finding in self.findings)

    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def finding(self, name: str) -> Finding:
        """The finding about one property."""
        return next(each for each in self.findings if each.name == name)

    def as_dict(self) -> dict[str, Any]:
        """The certificate as JSON can hold it."""
        return {
            "model": self.model,
            "rules": list(self.rules),
            "passed": self.passed,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self) -> Table:
        """The certificate for a terminal."""
        table = Table("property", "verdict", "figure", "bound", "what was measured", title=title(self))
        colours = {"pass": "green", "fail": "bold red", "not applicable": "dim"}
        for each in self.findings:
            colour = colours[each.verdict]
            table.add_row(
                each.name, f"[{colour}]{each.verdict}[/]", shown(each.figure), shown(each.bound), each.detail
            )
        return table

    def __str__(self) -> str:
        rows = [(f.name, f.verdict, shown(f.figure), shown(f.bound), f.detail) for f in self.findings]
        return title(self) + "\n" + "\n".join(columns(rows)) + "\n"


def title(certificate: Certificate) -> str:
    """The first line."""
    state = "passes" if certificate.passed else "FAILS"
    return f"{certificate.model} with {' '.join(certificate.rules) or 'no rules'} {state}"


def shown(number: float | None) -> str:
    """A figure as people read it."""
    return "" if number is None else f"{number:.2g}"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their columns lined up."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
