"""The generated subclasses: a module of the model's own class whose forward runs captured programs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from peftc.match.plan import Plan

generated: dict[tuple[type[nn.Module], type[nn.Module] | None], type[nn.Module]] = {}


def generated_class(kind: type[nn.Module], root: type[CompiledModule] | None = None) -> type[nn.Module]:
    """`CompiledX(X)` for a module class X; the root module's also has the methods of `root`."""
    key = (kind, root)
    if key not in generated:
        bases = (kind,) if root is None else (root, kind)
        body = {
            "forward": forward_like(kind),
            "__module__": kind.__module__,
            "__doc__": f"{kind.__name__}, compiled by peftc: runs captured programs.",
        }
        generated[key] = type(f"Compiled{kind.__name__}", bases, body)
    return generated[key]


def forward_like(kind: type[nn.Module]) -> Any:
    """A forward with the signature of `kind`'s own, which callers such as `generate` and `Trainer` read."""

    def forward(self: Any, *args: Any, peftc_template: int | None = None, **kwargs: Any) -> Any:
        engine = self._peftc
        if peftc_template is not None:
            return engine.templates.functions[peftc_template](self, *args)
        return engine.run(self._peftc_path, self, args, kwargs)

    functools.update_wrapper(forward, kind.forward)
    return forward


class CompiledModule(nn.Module):
    """What a compiled module can do besides what its model's own class can."""

    _peftc: Any  # an Engine; model classes evaluate their subclasses' annotations, so it is not named here

    @property
    def peftc_plan(self) -> Plan:
        """The plan that this module carries out."""
        plan: Plan = self._peftc.plan
        return plan

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the module computes what the original model does, bit for bit."""
        engine = self._peftc
        before = engine.enabled
        engine.enabled = False
        try:
            yield
        finally:
            engine.enabled = before

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) numbers of parameters."""
        plan = self.peftc_plan
        return plan.trainable_count, plan.total_count

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train."""
        trainable, total = self.get_nb_trainable_parameters()
        percent = 100 * trainable / total
        # Printing is what this method is for, in the words of the library that made it known.
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent:.4f}")  # noqa: T201
