"""A compiled module's graph in one piece, to read and to run. It shares the module's parameters and changes none."""

from __future__ import annotations

from torch import fx, nn

from peftc.graph.program import copy_graph
from peftc.runtime.engine import Engine, Entry


def latest(compiled: nn.Module, enabled: bool = True) -> Entry:
    """The latest program of a compiled module.

    Raises:
        TypeError: peftc has not compiled the module.
    """
    engine = getattr(compiled, "_peftc", None)
    if not isinstance(engine, Engine):
        raise TypeError(f"{type(compiled).__name__} is not a compiled module")
    return engine.latest(enabled)


def graph(compiled: nn.Module, *, enabled: bool = True) -> fx.GraphModule:
    """The latest program as a module that takes the call's tensors, in order or by the names of its placeholders.

    Args:
        compiled: what `compile` returned.
        enabled: whether the adapters are in it.
    """
    entry = latest(compiled, enabled)
    copied, _ = copy_graph(entry.rewritten)
    root: nn.Module = compiled._peftc.root  # type: ignore[assignment,union-attr]
    plain = type(root).__name__.removeprefix("Compiled")
    return fx.GraphModule(root, copied, class_name=plain)
