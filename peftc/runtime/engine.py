"""What a compiled module runs on: looks up a call's program by its signature, captures it on first sight.

Longer than most files here: one way through all that a call may meet.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from peftc.analyse import Analysis, analyse
from peftc.capture import capture
from peftc.capture.graph_reader import CONSTANTS
from peftc.capture.normalise import for_ones
from peftc.capture.signature import (
    Call,
    Key,
    Parameters,
    by_name,
    call_of,
    example_call,
    mode_key,
    read_call,
)
from peftc.emit import Emitted, Templates, emit
from peftc.errors import BranchError, ProgramError
from peftc.graphs.autocasting import enter_regions
from peftc.graphs.effects import Kept, written
from peftc.graphs.program import Program
from peftc.graphs.shared_modules import SharedModules
from peftc.graphs.verifying import verify
from peftc.match.later import unplanned
from peftc.match.plan import Plan
from peftc.passes import AS_MADE, PassRecord, PassSettings
from peftc.quantised import quantised_in
from peftc.rewrite import bind, rewrite, without_adapters
from peftc.runtime.folding import Folds
from peftc.runtime.growth import growth_of
from peftc.runtime.schedules import Schedules

State = Literal["on", "off", "folded"]
"""Whether the adapters act in a program; "folded" is on, with what rules fold read instead of computed."""
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Entry:
    """One program, ready to run.

    Attributes:
        program: the normalised capture; rewritten: its graph with the plan put in.
        emitted: the functions that run it.
        ones: positions of the tensors that must be all ones for `fast` to be run in its stead.
        fast: the same program for such calls, or None.
        state: whether the plan is in it, and as what; or it is the model as it came.
        continued: whether it goes on from a cache, and puts no rows in front of the input.
        undone: what it writes into before data may yet say that another program is to run.
    """

    program: Program
    analysis: Analysis
    rewritten: fx.Graph
    emitted: Emitted
    records: tuple[PassRecord, ...] = ()
    ones: tuple[int, ...] = ()
    fast: Entry | None = None
    state: State = "on"
    continued: bool = False
    undone: tuple[fx.Node, ...] = ()

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call has the sizes that the capture could not keep general."""
        return self.program.sizes.hold(tensors)

    def for_call(self, call: Call) -> Entry:
        """This program, or the one that calls with all ones in a mask run in its stead."""
        ones = all(bool((call.tensors[position] == 1).all()) for position in self.ones)
        return self if self.fast is None or not ones else self.fast

    def run(self, module: nn.Module, call: Call) -> Any:
        """Run a call that fits."""
        given = [call.arguments[name] for name in self.program.given]
        return self.emitted.function(module, *call.tensors, *given)


class Engine:
    """The programs of one compiled module, shared by all its submodules.

    Args:
        root: the compiled module.
        plan: what to put into every captured graph.
        blocks: path of every repeated block.
        passes: how captures are normalised.
    """

    def __init__(
        self, root: nn.Module, plan: Plan, blocks: Mapping[str, int], passes: PassSettings = AS_MADE
    ) -> None:
        self.root, self.plan, self.blocks, self.passes = root, plan, blocks, passes
        self.shared_modules = SharedModules(root)
        self.schedules = Schedules(plan)
        self.growth = growth_of(plan, root)
        self.folds = Folds(root, plan)
        self.enabled = True
        self.inputs_require_grads = False
        self.templates = Templates()
        self.programs: dict[Key, list[Entry]] = {}
        self.entries: list[Entry] = []
        self.parameters: dict[str, Parameters] = {}
        self.lengths: dict[type, frozenset[str]] = {}
        self.plain: dict[str, type[nn.Module]] = {}
        self.inside: dict[str, list[nn.Module]] = {}
        self.told: set[str] = set()
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """The engine of a copied module: functions take the module that they run, so both have the same ones."""
        copied = Engine.__new__(Engine)
        memo[id(self)] = copied
        copied.__dict__.update(self.__dict__)
        copied.root = copy.deepcopy(self.root, memo)
        copied.templates = Templates(list(self.templates.functions), dict(self.templates.numbers))
        copied.programs = {key: list(entries) for key, entries in self.programs.items()}
        copied.entries = list(self.entries)
        copied.parameters, copied.plain = dict(self.parameters), dict(self.plain)
        copied.lengths = dict(self.lengths)
        copied.schedules = copy.deepcopy(self.schedules)
        copied.folds = Folds(copied.root, self.plan)
        copied.inside, copied.told = {}, set(self.told)
        copied.lock = threading.RLock()
        return copied

    def enrol(self, path: str, module: nn.Module) -> None:
        """Remember a module's own class and the arguments of its forward."""
        self.plain[path] = type(module)
        self.parameters[path] = Parameters.of(module.forward)

    def mode(self, path: str, module: nn.Module) -> Key:
        """The part of a call's key that lies in the module at `path`."""
        if path not in self.inside:
            self.inside[path] = list(module.modules())
        return mode_key(module, self.inside[path])

    def state(self, mode: Key) -> State:
        """In which state of the adapters a call in this mode runs.

        What rules fold is computed in the call where a gradient may be wanted, and where the call is traced: what
        a trace keeps would not know that a parameter changed.
        """
        if not self.enabled:
            return "off"
        plain = mode[0] is False and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not (self.folds and plain):
            return "on"
        with self.lock:
            return "folded" if self.folds.ready() else "on"

    def read(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Key, Call]:
        """A call as programs take it, grown for what rules put in front, and the key of its programs."""
        parameters, mode, continued = self.parameters[path], self.mode(path, module), False
        if self.enabled and self.growth:
            arguments = by_name(parameters, args, kwargs)
            kwargs, continued = self.growth.grow(path, parameters.names, arguments)
            args = ()
        call = read_call(parameters, args, kwargs, self.lengths)
        return (path, self.state(mode), mode, call.key, continued), call

    def run(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call of the module at `path`."""
        key, call = self.read(path, module, args, kwargs)
        if torch.compiler.is_compiling():
            for number in self.numbers_for_trace(key):
                if self.entries[number].fits(call.tensors):
                    return self.entries[number].run(module, call)
            raise ProgramError(
                "a call of these sizes has no program yet, and they are not known while it is traced",
                hint="call the module once with tensors of these sizes before it is traced",
            )
        answers: tuple[bool, ...] = ()
        while True:
            entry = self.find(key, call.tensors, answers) or self.capture_for(key, call, answers)
            before = Kept(entry.undone, self.root, call.tensors) if entry.undone else None
            try:
                return entry.for_call(call).run(module, call)
            except BranchError as other:
                if before is not None:
                    before.put_back()
                given = entry.program.answers[: other.number + 1]
                answers = (*given[:-1], not given[-1])

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def numbers_for_trace(self, key: Key) -> tuple[int, ...]:
        """Numbers of the programs of a call that is being traced; captured here and now if it has none yet."""
        if key not in self.programs:
            for other in self.others(key):
                self.share(key, other)
        entries = self.programs.get(key) or [self.capture(key, example_call(call_of(key[3])))]
        return tuple(self.entries.index(entry) for entry in entries)

    def find(self, key: Key, tensors: Sequence[Tensor], answers: tuple[bool, ...]) -> Entry | None:
        """The program of a call whose branches on data begin like `answers`, if it was captured already."""
        for entry in self.programs.get(key, ()):
            if entry.fits(tensors) and entry.program.answers[: len(answers)] == answers:
                return entry
        return self.shared(key, tensors, answers)

    def capture_for(self, key: Key, call: Call, answers: tuple[bool, ...] = ()) -> Entry:
        """Capture a program that serves a call: general in its sizes if the model's code is.

        Code that branches on a size holds on one side of the branch; then the call's own sizes are traced, and
        if nothing else helps, the program is for these alone.
        """
        for own_sizes, exact in ((False, False), (True, False), (True, True)):
            example = example_call(call, own_sizes=own_sizes)
            entry = self.capture(key, example, exact=exact, answers=answers)
            if entry.fits(call.tensors):
                return entry
        raise ProgramError(f"captured for other sizes than those of the call: {entry.program.sizes}")

    def capture(
        self,
        key: Key,
        call: Call,
        *,
        exact: bool = False,
        answers: tuple[bool, ...] = (),
    ) -> Entry:
        """Capture the program of a call, put the plan into it, and keep it.

        Args:
            exact: for these sizes only.
            answers: what data says at its first branches.
        """
        path, state = key[0], key[1]
        with self.lock:
            module = self.root.get_submodule(path)
            with self.plain_classes():
                program, constants, records = capture(
                    module,
                    call,
                    path,
                    shared=self.shared_modules,
                    exact=exact,
                    answers=answers,
                    settings=self.passes,
                )
            after = (path, state, self.mode(path, module), *key[3:])
            # A first call may write to the config: then both keys have this program.
            analysis = analyse(program.graph, self.root)
            self.tell_of_unplanned(analysis)
            return self.keep({key, after}, program, analysis, constants, records)

    def tell_of_unplanned(self, analysis: Analysis) -> None:
        """Warn, once of each, of sites that rules ask for and that the plan does not have."""
        new = [site for site in unplanned(self.plan, analysis) if site.weights["W"] not in self.told]
        self.told.update(site.weights["W"] for site in new)
        if new:
            named = ", ".join(dict.fromkeys(site.id for site in new[:5])) + (", …" if len(new) > 5 else "")
            warnings.warn(
                f"this call reaches linear maps that the rules ask for and the plan does not have, as the example call did "
                f"not reach them: {named}. No rule acts there. Compile in the mode and with the arguments of this call",
                stacklevel=2,
            )

    def shared(self, key: Key, tensors: Sequence[Tensor], answers: tuple[bool, ...] = ()) -> Entry | None:
        """The entry of a call whose program was captured already, with the adapters in another state."""
        with self.lock:
            for other in self.others(key):
                if other.fits(tensors) and other.program.answers[: len(answers)] == answers:
                    return self.share(key, other)
        return None

    def others(self, key: Key) -> list[Entry]:
        """The entries of a call with the adapters in other states, those of each once."""
        path, own, mode, call, continued = key
        states = [(state, goes_on) for state in STATES for goes_on in (continued, not continued)]
        found = [
            self.programs.get((path, state, mode, call, goes_on), [])
            for state, goes_on in states
            if (state, goes_on) != (own, continued)
        ]
        return next((list(entries) for entries in found if entries), [])

    def share(self, key: Key, other: Entry) -> Entry:
        """Another entry's program for the state of the adapters that is in a key."""
        return self.keep({key}, other.program, other.analysis, {}, other.records)

    def install(
        self,
        program: Program,
        analysis: Analysis,
        constants: Mapping[str, Tensor],
        records: tuple[PassRecord, ...],
        call: Call,
        mode: Key,
    ) -> Entry:
        """Keep a program that was captured from the root, in mode `mode`, before there was an engine."""
        keys = {("", "on", each, call.key, False) for each in (mode, self.mode("", self.root))}
        with self.lock:
            return self.keep(keys, program, analysis, constants, records)

    def keep(
        self,
        keys: Set[Key],
        program: Program,
        analysis: Analysis,
        constants: Mapping[str, Tensor],
        records: tuple[PassRecord, ...],
    ) -> Entry:
        """Put the plan into a program, and keep it under its keys."""
        _, state, _, _, continued = next(iter(keys))
        self.keep_constants(constants)
        for kind, names in program.lengths.items():
            self.lengths[kind] = self.lengths.get(kind, frozenset()) | names
        entry = self.entry(program, state, records, analysis, continued=continued)
        fast = for_ones(program, self.passes)
        if fast is not None:
            positions = tuple(program.inputs.index(name) for name in fast.ones)
            entry = replace(entry, ones=positions, fast=self.entry(fast, state, (), continued=continued))
        for key in keys:
            self.programs.setdefault(key, []).append(entry)
        self.entries.append(entry)
        return entry

    def latest(self, enabled: bool = True) -> Entry:
        """The program captured last, with the plan in it or without."""
        state: State = "on" if enabled else "off"
        for entry in reversed(self.entries):
            if entry.state == state and not entry.continued:
                return entry
        return self.entry(self.entries[-1].program, state, ())

    def entry(
        self,
        program: Program,
        state: State,
        records: tuple[PassRecord, ...],
        analysis: Analysis | None = None,
        *,
        continued: bool = False,
    ) -> Entry:
        """A program with the plan in it, as functions."""
        analysis = analysis or analyse(program.graph, self.root)
        if state == "off":
            graph = without_adapters(program.graph, self.plan)
        else:
            folded = self.folds.terms if state == "folded" and self.folds.ready() else {}
            graph = rewrite(
                program.graph,
                analysis,
                self.plan,
                program.root,
                training=program.training,
                continued=continued,
                folded=folded,
            )
        bind(graph, quantised_in(self.root))
        enter_regions(graph)
        verify(graph)
        emitted = emit(graph, self.blocks, self.templates, self.shared_modules, program.root)
        undone = written(program.graph, before_a_branch=True) if program.answers else ()
        return Entry(
            program, analysis, graph, emitted, records, state=state, continued=continued, undone=undone
        )

    def keep_constants(self, constants: Mapping[str, Tensor]) -> None:
        """Hold tensors that a trace lifted out of the model's code, where they move with the model."""
        if not constants:
            return
        if not hasattr(self.root, CONSTANTS):
            self.root.add_module(CONSTANTS, nn.Module())
        holder = self.root.get_submodule(CONSTANTS)
        for name, tensor in constants.items():
            holder.register_buffer(name, tensor, persistent=False)

    @contextmanager
    def plain_classes(self) -> Iterator[None]:
        """The model's own classes for as long as its code is traced."""
        generated = {}
        for path, kind in self.plain.items():
            module = self.root.get_submodule(path)
            generated[path] = type(module)
            module.__class__ = kind
        try:
            yield
        finally:
            for path, made in generated.items():
                self.root.get_submodule(path).__class__ = made
