"""What a compiled module runs on: looks up a call's program by its signature, captures it on first sight."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from peftc.analyse import Analysis, analyse
from peftc.capture import capture
from peftc.capture.graph_reader import CONSTANTS
from peftc.capture.normalise import for_ones
from peftc.capture.signature import Call, Key, Parameters, example_call, mode_key, read_call
from peftc.emit import Emitted, Templates, emit
from peftc.errors import ProgramError
from peftc.graph.program import Program
from peftc.graph.verifying import verify
from peftc.match.plan import Plan
from peftc.passes import PassRecord
from peftc.rewrite import rewrite, without_adapters


@dataclass(frozen=True)
class Entry:
    """One program, ready to run.

    Attributes:
        program: the normalised capture; rewritten: its graph with the plan put in.
        emitted: the functions that run it.
        ones: positions of the tensors that must be all ones for `fast` to be run in its stead.
        fast: the same program for such calls, or None.
        enabled: whether the plan is in it, or it is the model as it came.
    """

    program: Program
    analysis: Analysis
    rewritten: fx.Graph
    emitted: Emitted
    records: tuple[PassRecord, ...] = ()
    ones: tuple[int, ...] = ()
    fast: Entry | None = None
    enabled: bool = True

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call has the sizes that the capture could not keep general."""
        return all(tensors[position].shape[axis] == size for position, axis, size in self.program.fixed)


class Engine:
    """The programs of one compiled module, shared by all its submodules.

    Args:
        root: the compiled module.
        plan: what to put into every captured graph.
        blocks: path of every repeated block.
    """

    def __init__(self, root: nn.Module, plan: Plan, blocks: Mapping[str, int]) -> None:
        self.root, self.plan, self.blocks = root, plan, blocks
        self.enabled = True
        self.templates = Templates()
        self.programs: dict[Key, list[Entry]] = {}
        self.entries: list[Entry] = []
        self.parameters: dict[str, Parameters] = {}
        self.plain: dict[str, type[nn.Module]] = {}
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
        copied.lock = threading.RLock()
        return copied

    def enrol(self, path: str, module: nn.Module) -> None:
        """Remember a module's own class and the arguments of its forward."""
        self.plain[path] = type(module)
        self.parameters[path] = Parameters.of(module.forward)

    def run(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call of the module at `path`."""
        call = read_call(self.parameters[path], args, kwargs)
        key = (path, self.enabled, mode_key(module), call.key)
        if torch.compiler.is_compiling():
            number = self.number_for_trace(key)
            return self.entries[number].emitted.function(module, *call.tensors)
        for entry in self.programs.get(key, ()):
            if entry.fits(call.tensors):
                break
        else:
            entry = self.shared(key, call.tensors) or self.capture(key, call.arguments)
        if entry.fast is not None and all(
            bool((call.tensors[position] == 1).all()) for position in entry.ones
        ):
            entry = entry.fast
        return entry.emitted.function(module, *call.tensors)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def number_for_trace(self, key: Key) -> int:
        """Number of the program of a call that is being traced; captured here and now if it has none yet."""
        for entry in self.programs.get(key, ()):
            if not entry.program.fixed:
                return self.entries.index(entry)
        return self.entries.index(self.capture(key, arguments_of(key[3])))

    def capture(self, key: Key, arguments: Mapping[str, Any]) -> Entry:
        """Capture the program of a call, put the plan into it, and keep it."""
        path, enabled = key[0], key[1]
        with self.lock:
            module = self.root.get_submodule(path)
            with self.plain_classes():
                program, constants, records = capture(module, example_call(arguments), path)
            after = (path, enabled, mode_key(module), key[3])
            # A first call may write to the config: then both states have this program.
            return self.keep({key, after}, program, analyse(program.graph, self.root), constants, records)

    def shared(self, key: Key, tensors: Sequence[Tensor]) -> Entry | None:
        """The entry of a call whose program was captured already, with the adapters in the other state."""
        path, enabled, mode, call = key
        with self.lock:
            for other in self.programs.get((path, not enabled, mode, call), ()):
                if other.fits(tensors):
                    return self.keep({key}, other.program, other.analysis, {}, other.records)
        return None

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
        keys = {("", True, each, call.key) for each in (mode, mode_key(self.root))}
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
        enabled = next(iter(keys))[1]
        self.keep_constants(constants)
        entry = self.entry(program, enabled, records, analysis)
        fast = for_ones(program)
        if fast is not None:
            positions = tuple(program.inputs.index(name) for name in fast.ones)
            entry = replace(entry, ones=positions, fast=self.entry(fast, enabled, ()))
        for key in keys:
            self.programs.setdefault(key, []).append(entry)
        self.entries.append(entry)
        return entry

    def latest(self, enabled: bool = True) -> Entry:
        """The program captured last, with the plan in it or without."""
        for entry in reversed(self.entries):
            if entry.enabled == enabled:
                return entry
        return self.entry(self.entries[-1].program, enabled, ())

    def entry(
        self,
        program: Program,
        enabled: bool,
        records: tuple[PassRecord, ...],
        analysis: Analysis | None = None,
    ) -> Entry:
        """A program with the plan in it, as functions."""
        analysis = analysis or analyse(program.graph, self.root)
        graph = (
            rewrite(program.graph, analysis, self.plan, program.root)
            if enabled
            else without_adapters(program.graph, self.plan)
        )
        verify(graph)
        emitted = emit(graph, self.blocks, self.templates, program.root)
        return Entry(program, analysis, graph, emitted, records, enabled=enabled)

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

    def template(self, number: int) -> Callable[..., Any]:
        """A generated forward by its number."""
        return self.templates.functions[number]


def arguments_of(parts: tuple[Any, ...]) -> dict[str, Any]:
    """Example arguments for a call of which only the signature is known.

    Raises:
        ProgramError: the call has structures or tensors whose sizes a signature does not tell.
    """
    arguments: dict[str, Any] = {}
    for name, *rest in parts:
        if len(rest) == 4 and isinstance(name, str) and rest[0] <= 2:
            dim, dtype, kind, index = rest
            device = torch.device(kind) if index is None else torch.device(kind, index)
            arguments[name] = torch.zeros([2, 23][:dim], dtype=dtype, device=device)
        elif len(rest) == 1 and isinstance(name, str) and not isinstance(rest[0], tuple):
            arguments[name] = rest[0]
        else:
            raise ProgramError(
                f"this call, with {name!r}, has no program yet and cannot be captured while it is traced",
                hint="call the module once with these arguments before it is traced",
            )
    return arguments
