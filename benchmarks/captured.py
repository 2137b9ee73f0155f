"""One capture of a tiny model, and any rules of the library on it: what the sweeps over rules have in common.

Compilations of one model differ in rules and weights only, so that a capture serves all of them.
"""

from __future__ import annotations

import atexit
import shutil
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from peftc.analyse import analyse
from peftc.api import bound_rules
from peftc.lang import bind_all, counted_by, default_library
from peftc.match import Plan, make_plan
from peftc.runtime import carry_out, pack, start_from, twin
from peftc.runtime.compilation import Look, capture_example
from peftc.store import StoredModule

FITTING = {"rank": 4, "target": 2, "block": 4, "reduction": 2, "size": 6, "length": 3, "hidden": 5}
"""Options by name, where the library's defaults are larger than a tiny model."""


def spec(name: str) -> str:
    """A rule with options that fit, unless it is written out with some."""
    if name not in default_library().names():
        return name
    options = bind_all([name])[0].options
    fitting = ", ".join(f"{option}={value}" for option, value in FITTING.items() if option in options)
    return f"{name}({fitting})" if fitting else name


class Captured:
    """A model, a call, and the capture of it, made once."""

    def __init__(self, model: nn.Module, given: Mapping[str, Any]) -> None:
        self.model, self.given = model, dict(given)
        self._adapters: dict[str, Mapping[str, Path]] = {}

    @cached_property
    def example(self) -> Any:
        """What `peftc.runtime.compilation` captures of the call."""
        return capture_example(self.model, self.given)

    @cached_property
    def _looked(self) -> tuple[Any, ...]:
        call, mode, (program, constants, records) = self.example
        return analyse(program.graph, self.model), program, call, mode, constants, records

    def compiled(self, names: Iterable[str], model: nn.Module | None = None) -> Any:
        """Rules in a model of this form, by default this one, in evaluation mode and as they start.

        Raises:
            PeftcError: the rules do not fit the model, or one another.
        """
        names = list(names)
        analysis, program, call, mode, constants, records = self._looked
        copied = twin(self.model if model is None else model)
        bounds, tensors = bound_rules([spec(name) for name in names], self._saved_for(names))
        plan = make_plan(bounds, analysis, copied, (), None)
        looked = Look(analysis, plan, program, call, mode, constants, records)
        pack(copied, plan)
        torch.manual_seed(0)
        return carry_out(looked, copied, StoredModule, start_from(looked, copied, None, tensors)).eval()

    def of(self, model: nn.Module) -> Captured:
        """The capture of another model, made anew where it has parameters that this one has not."""
        same = {path for path, _ in model.named_parameters()} == {
            path for path, _ in self.model.named_parameters()
        }
        return self if same else Captured(model, self.given)

    def _saved_for(self, names: Iterable[str]) -> Mapping[str, Path]:
        """Two adapters in folders, where a rule reads trained ones."""
        library = default_library()
        own = [name for name in names if name in library.names()]
        reading = next((name for name in own if counted_by(library.rule(name)) is not None), None)
        if reading is None:
            return {}
        return self._two_of(next(use.rule for use in library.rule(reading).written.use if use.saved))

    def _two_of(self, name: str) -> Mapping[str, Path]:
        """Two adapters of a rule, with random values, in folders that go when Python does."""
        if name not in self._adapters:
            folder = Path(mkdtemp(prefix="peftc-captured-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            for number in range(2):
                fill(self.compiled([name])).save_pretrained(folder / str(number))
            self._adapters[name] = {f"adapter{number}": folder / str(number) for number in range(2)}
        return self._adapters[name]


def planned(plan: Plan) -> set[str]:
    """Paths of all that a plan trains."""
    return {each.path for each in plan.new_tensors if each.trainable} | set(plan.trained)


def fill(compiled: Any, like: Any = None) -> Any:
    """Random values in what rules add, and on top of what they train of the model; or in that of another module alone.

    A value depends on nothing but the parameter's path.
    """
    plan: Plan = (compiled if like is None else like).peftc_plan
    added = {parameter.path for parameter in plan.new_parameters}
    done: set[int] = set()
    with torch.no_grad():
        for path in sorted(added | set(plan.trained)):
            parameter = compiled.get_parameter(path)
            if id(parameter) in done:
                continue
            done.add(id(parameter))
            source = torch.Generator().manual_seed(zlib.crc32(path.encode()))
            noise = torch.randn(parameter.shape, generator=source)
            parameter.copy_(0.2 * noise if path in added else parameter + 0.05 * noise)
    return compiled


def without_gradient(compiled: Any) -> list[str]:
    """Paths of what should train and gets no gradient, or one that is 0, behind a backward pass; gradients go."""
    reached = {
        path
        for path, each in compiled.named_parameters(remove_duplicate=False)
        if each.grad is not None and bool(each.grad.abs().max() > 0)
    }
    compiled.zero_grad()
    return sorted(planned(compiled.peftc_plan) - reached)
