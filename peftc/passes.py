"""Passes over graphs, and the pipeline that orders, verifies, times and records them.

A pass is a frozen dataclass. Its name is that of its class in small letters (`FoldMasks` is `fold_masks`), and
each of its fields that was made by `setting` is an option that a person can set, in Python and on the command line.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import fx

from peftc.errors import OptionValueError, PassFailedError, PeftcError, SpecError, UnknownOptionError, instead
from peftc.graphs.verifying import verify
from peftc.lang import Constant, Option, read_spec

OFF = "-"  # in front of a pass's name: it does not run


class Pass(Protocol):
    """One change to a graph."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def run(self, graph: fx.Graph) -> int | PassResult:
        """Edit `graph` in place and say how many places changed."""


@dataclass(frozen=True)
class PassResult:
    """What a pass says of its run: how many places changed, and what it nearly changed and why not."""

    changed: int
    misses: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to one graph."""

    name: str
    changed: int
    seconds: float
    nodes: int
    misses: tuple[str, ...] = ()


Watch: TypeAlias = Callable[[PassRecord, fx.Graph], None]
"""Is told of every pass that has run, and shown the graph it left."""


def name_of(kind: type[Pass]) -> str:
    """`fold_masks` for FoldMasks."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def setting(default: Constant, help: str, *, min: float | None = None, max: float | None = None) -> Any:  # noqa: A002
    """A field of a pass that people can set; `help` is one sentence."""
    option = Option(default=default, help=help, min=min, max=max)
    return field(default=default, metadata={"option": option})


def options_of(kind: type[Pass]) -> dict[str, Option]:
    """What people can set of a pass, by name."""
    return {each.name: each.metadata["option"] for each in fields(kind) if "option" in each.metadata}


def is_optional(kind: type[Pass]) -> bool:
    """Whether graphs are right without the pass too, only slower or spelled otherwise."""
    return bool(getattr(kind, "optional", False))


@dataclass(frozen=True)
class PassSettings:
    """What a person says of the passes.

    Attributes:
        off: names of those that do not run.
        options: name of a pass → option → value.
        watch: told of every pass that has run.
    """

    off: frozenset[str] = frozenset()
    options: Mapping[str, Mapping[str, Constant]] = field(default_factory=dict, hash=False)
    watch: Watch | None = field(default=None, compare=False)

    def set(self, step: Pass) -> Pass | None:
        """The pass with its options set; None where it is off."""
        name = name_of(type(step))
        if name in self.off:
            return None
        given = self.options.get(name)
        return dataclasses.replace(step, **given) if given else step

    def pipeline(self, passes: Iterable[Pass]) -> Pipeline:
        """These passes in their order, as the settings say."""
        kept = (self.set(step) for step in passes)
        return Pipeline(tuple(step for step in kept if step is not None), self.watch)


AS_MADE = PassSettings()


def read_settings(
    specs: Iterable[str], catalogue: Sequence[type[Pass]], watch: Watch | None = None
) -> PassSettings:
    """Settings from specs: `fold_masks(longest=64)` sets an option, `-group_heads` turns a pass off.

    Args:
        catalogue: the passes there are.

    Raises:
        SpecError: a spec cannot be read, or turns off a pass that graphs cannot be without.
        UnknownOptionError: there is no such pass, or it has no such option.
        OptionValueError: a value is of another type, or out of range.
    """
    known = {name_of(kind): kind for kind in catalogue}
    off: set[str] = set()
    options: dict[str, dict[str, Constant]] = {}
    for text in specs:
        turned_off = text.startswith(OFF)
        spec = read_spec(text.removeprefix(OFF))
        name = spec.name.text
        if name not in known:
            raise UnknownOptionError(f"there is no pass {name!r}", where=text, hint=instead(name, known))
        if spec.shorthand or spec.layers or (turned_off and spec.settings):
            raise SpecError("a pass is written name(option=value), or -name to turn it off", where=text)
        if turned_off:
            if not is_optional(known[name]):
                optional = ", ".join(each for each in known if is_optional(known[each]))
                raise SpecError(
                    f"{name} cannot be turned off: graphs would be wrong without it",
                    where=text,
                    hint=f"these can: {optional}",
                )
            off.add(name)
        for given in spec.settings:
            value = option_value(known[name], given.name.text, given.value.text, text)
            options.setdefault(name, {})[given.name.text] = value
    return PassSettings(frozenset(off), options, watch)


def option_value(kind: type[Pass], name: str, word: str, where: str) -> Constant:
    """The value of a pass's option that a word stands for."""
    options = options_of(kind)
    if name not in options:
        raise UnknownOptionError(
            f"{name_of(kind)} has no option {name!r}", where=where, hint=instead(name, options)
        )
    value = options[name].read(word)
    if problem := options[name].problem(value):
        raise OptionValueError(f"{name} of {name_of(kind)} {problem}", where=where)
    return options[name].typed(value)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Verifies the graph after each one that changed it."""

    passes: Sequence[Pass]
    watch: Watch | None = field(default=None, compare=False)

    def run(self, graph: fx.Graph) -> tuple[PassRecord, ...]:
        """Run every pass on `graph`, in place.

        Raises:
            PassFailedError: a pass raised, or left a graph that does not verify.
        """
        records: list[PassRecord] = []
        for step in self.passes:
            name = name_of(type(step))
            start = time.perf_counter()
            try:
                told = step.run(graph)
                result = told if isinstance(told, PassResult) else PassResult(told)
                if result.changed:
                    verify(graph)
            except PeftcError:
                raise
            except Exception as error:
                before = ", ".join(record.name for record in records) or "none"
                raise PassFailedError(
                    f"pass {name} failed: {error}", detail=(f"passes that ran before it: {before}",)
                ) from error
            seconds = time.perf_counter() - start
            record = PassRecord(name, result.changed, seconds, len(graph.nodes), result.misses)
            records.append(record)
            if self.watch is not None:
                self.watch(record, graph)
        return tuple(records)
