"""What an operation is: its axes, its settings and, as a text, what it becomes. `vocabulary` has peftc's own.

Nothing here computes: `lower` is the dotted name of a torch function or of a peftc lowering, so no torch is
imported. An installed plugin adds its own with `register`; a rule can only name what is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from peftc.lang.axes import Axes, Constant, Term, Unknown

Settings = Mapping[str, Constant]
AxesRule = Callable[[tuple[Term, ...], Settings], Axes]
Lengths = dict[str, str]
"""What the length of each axis is called: its own name, an option's, or a sum such as `length+keys`."""
LengthsRule = Callable[[tuple[Term, ...], Settings, Lengths], Lengths]
Takes = Literal["value", "number", "any"]
"""A value of a backend; a number; or either of them."""


def never(_: Settings) -> bool:
    """With no settings."""
    return False


def always(_: Settings) -> bool:
    """With any settings."""
    return True


@dataclass(frozen=True)
class Setting:
    """A named argument: the name of an axis, a number in a range or among some, one of some choices, or a yes or no."""

    kind: Literal["axis", "number", "choice", "flag"]
    doc: str = ""
    default: Constant | None = None
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    among: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operation:
    """One word of the vocabulary.

    `optional` are values that a call may give by name, after those it `takes`; a call that gives none has
    fewer terms. `longer` names the setting whose axis comes out longer than it went in. `lengths` works the
    lengths of the result's axes out from those of the operands where they differ; it may raise AxesError. `number`
    is what it gives where all that it takes are numbers; it may raise ArithmeticError or ValueError.
    `keeps_zeros` says whether 0 comes out where the first value is 0, `ignores_zeros` whether zeros along its axis
    could as well not be there. `meets` says whether an axis that several operands have must be of one length in all.
    """

    name: str
    doc: str
    takes: tuple[tuple[str, Takes], ...]
    axes: AxesRule
    lower: str
    settings: Mapping[str, Setting] = field(default_factory=lambda: MappingProxyType({}))
    longer: str | None = None
    optional: tuple[str, ...] = ()
    lengths: LengthsRule | None = None
    number: Callable[..., float] | None = None
    keeps_zeros: Callable[[Settings], bool] = never
    ignores_zeros: bool = False
    meets: bool = True

    @property
    def call(self) -> str:
        """How it is called: `concat(a, b, axis=…)`; settings that have a default are left out."""
        needed = (f"{name}=…" for name, setting in self.settings.items() if setting.default is None)
        return f"{self.name}({', '.join((*(name for name, _ in self.takes), *needed))})"


OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Add an operation to the vocabulary. Raises ValueError where the name is taken."""
    if OPERATIONS.get(operation.name, operation) != operation:
        raise ValueError(f"there is an operation {operation.name!r} already")
    OPERATIONS[operation.name] = operation
    return operation


def setting_problem(setting: Setting, value: object) -> str | None:
    """Why `value` cannot be this setting, or None."""
    if setting.kind == "number":
        return _number_problem(setting, value)
    if setting.kind == "flag":
        return None if isinstance(value, bool) else "must be true or false"
    if not isinstance(value, str):
        return "must be the name of an axis" if setting.kind == "axis" else "must be a text"
    if setting.kind == "choice" and value not in setting.choices:
        return f"must be one of {', '.join(setting.choices)}, not {value!r}"
    return None


def _number_problem(setting: Setting, value: object) -> str | None:
    if isinstance(value, Unknown):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "must be a number"
    if setting.min is not None and value < setting.min:
        return f"must be at least {setting.min:g}, not {value:g}"
    if setting.max is not None and value > setting.max:
        return f"must be at most {setting.max:g}, not {value:g}"
    if setting.among and value not in setting.among:
        return f"must be one of {', '.join(map(str, setting.among))}, not {value:g}"
    return None
