"""Every exception that peftc lets out on purpose; no module of peftc makes one elsewhere.

(`lang` has two more, `AxesError` and `MissingNameError`, that never leave it: they become a RuleError.)

PeftcError
├── RuleError                  a rule file is wrong; `code` is stable, such as R028
│   ├── RuleSyntaxError        the TOML or an expression cannot be read
│   └── RuleCheckError         names, axes, ports or parameters do not add up
├── SpecError                  a rule spec is wrong; carets point into it
│   ├── UnknownRuleError       no such rule in the library
│   ├── UnknownOptionError     the rule has no such option
│   └── OptionValueError       the value is of another type, or out of range
├── MatchError                 rules and model do not go together
│   ├── UnknownPartError       a part that no site of this model has
│   ├── NoMatchError           a rule that matches nothing
│   ├── ConflictError          two rules on one port, or a circle in their order
│   └── BudgetError            more new parameters than allowed
├── CaptureError               the model cannot be captured as a graph
├── QuantiseError              weights cannot be packed into fewer bits, or read from them
├── ScheduleError              a schedule cannot be carried out in this training run
├── MergeError                 a rule is no change of weights, or a weight has no place for it
├── ShrinkError                no rule of a module has gates, or nothing of it would be left
├── ProgramError               a call that the compiled module cannot serve
│   └── BranchError            data takes another way through the model's code than the one captured
├── PassFailedError            a pass over a graph broke: a fault of peftc, never of the user's
├── StoreError                 an adapter folder cannot be written or read
│   ├── CorruptAdapterError    the files are damaged or incomplete
│   ├── ForeignAdapterError    the adapter belongs to another model
│   ├── SavedAdapterError      adapters cannot be read together, or not by the rule that would read them
│   └── OutputExistsError      the folder is already there
├── DataError                  a data file is missing or malformed
└── ModelError                 a model's path is missing, or it cannot be loaded

InvalidGraphError              an AssertionError: a graph that cannot be right; pipelines turn it into
                               PassFailedError
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PeftcError(Exception):
    """What went wrong, in four parts: where, what, the text it is about, and what there is instead.

    `detail` holds whole lines (a text and the carets below it, a line of the model's source), kept as they
    are.
    """

    def __init__(
        self, message: str, *, where: str | None = None, detail: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = _shown(message)
        self.where = None if where is None else _shown(where)
        self.detail = tuple(_shown(line) for line in detail)
        self.hint = None if hint is None else _shown(hint)

    def __str__(self) -> str:
        """The four-line form; parts that were not given are left out."""
        inset = "  " if self.where else ""
        lines = [self.where] if self.where else []
        lines.append(f"{inset}{self.message}")
        lines += [f"{inset}  {line}" for line in self.detail]
        if self.hint:
            lines.append(f"{inset}{self.hint}")
        return "\n".join(lines)


class RuleError(PeftcError):
    """A rule file is wrong. `code` is stable across releases; `peftc.lang.codes` documents each."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        where: str | None = None,
        detail: Sequence[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, where=where, detail=detail, hint=hint)
        self.code = code

    def __str__(self) -> str:
        """The four-line form, opened by the code."""
        return f"{self.code} {super().__str__()}" if self.code else super().__str__()


class RuleSyntaxError(RuleError):
    """The TOML, a key or an expression of a rule cannot be read."""


class RuleCheckError(RuleError):
    """A rule reads well, but its names, axes, ports or parameters do not add up."""


class SpecError(PeftcError):
    """A rule spec (`lora:q,v@4-11`, or a mapping) is wrong."""


class UnknownRuleError(SpecError):
    """No rule of this name is in the library."""


class UnknownOptionError(SpecError):
    """The rule has no option of this name."""


class OptionValueError(SpecError):
    """An option's value is of another type, out of its range, or none of its choices."""


class MatchError(PeftcError):
    """Rules and model do not go together."""


class UnknownPartError(MatchError):
    """A part that no site of this model has."""


class NoMatchError(MatchError):
    """A rule that matches nothing."""


class ConflictError(MatchError):
    """Two rules that cannot both write one port, or rules whose order goes round in a circle."""


class BudgetError(MatchError):
    """More new parameters than the budget allows."""


class CaptureError(PeftcError):
    """The model cannot be captured as a graph; `detail` holds the model's own line."""


class QuantiseError(PeftcError):
    """Weights cannot be packed into fewer bits, or read from them."""


class ScheduleError(PeftcError):
    """A schedule cannot be carried out in this training run."""


class MergeError(PeftcError):
    """A rule is no change of weights, or a weight has no place for what it adds."""


class ShrinkError(PeftcError):
    """No rule of a module has gates, or nothing of a module's rules would be left."""


class ProgramError(PeftcError):
    """A call that the compiled module cannot serve."""


class BranchError(ProgramError):
    """Data takes another way through the model's code than the one captured, at its branch `number`.

    A compiled module captures that way too and goes on; only a call that is being traced lets this out.
    """

    def __init__(self, number: int) -> None:
        super().__init__(
            "what this program was captured for depends on data, which says otherwise in this call",
            hint="call the module once with such data before it is traced",
        )
        self.number = number


class PassFailedError(PeftcError):
    """A pass broke; names it and those that ran before."""


class InvalidGraphError(AssertionError):
    """A pass left a graph that cannot be right: a fault of peftc, never of the user's."""


class StoreError(PeftcError):
    """An adapter folder cannot be written or read."""


class CorruptAdapterError(StoreError):
    """The files of an adapter are damaged or incomplete."""


class ForeignAdapterError(StoreError):
    """The adapter belongs to another model."""


class SavedAdapterError(StoreError):
    """Adapters cannot be read together, or not by the rule that would read them."""


class OutputExistsError(StoreError):
    """The folder to write is already there."""


class DataError(PeftcError):
    """A data file is missing or malformed."""


class ModelError(PeftcError):
    """A model's path is missing, or what is there cannot be loaded."""


def _shown(text: str) -> str:
    """`text` as a terminal may show it: a message can quote a stranger's file, escape sequences and all."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def carets(text: str, start: int, stop: int) -> tuple[str, str]:
    """`text`, and below it a line that points at its characters `start` to `stop`."""
    return text, " " * start + "^" * max(1, stop - start)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, such as one of a third party; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def instead(name: str, known: Iterable[str], noun: str = "there is") -> str:
    """The hint for an unknown name: the nearest of the names that are known, then all of them."""
    names = sorted(set(known))
    if not names:
        return f"{noun} none"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}{noun}: {', '.join(names)}"
