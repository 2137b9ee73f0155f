"""A compiled module's graph in one piece, to read and to run. It shares the module's parameters."""

from __future__ import annotations

from torch import fx, nn

from peftc.graphs.program import copy_graph
from peftc.runtime.engine import Engine


def engine_of(compiled: nn.Module) -> Engine:
    """What a compiled module runs on.

    Raises:
        TypeError: peftc has not compiled the module.
    """
    engine = getattr(compiled, "_peftc", None)
    if not isinstance(engine, Engine):
        raise TypeError(f"{type(compiled).__name__} is not a compiled module")
    return engine


def graph(compiled: nn.Module, *, enabled: bool = True) -> fx.GraphModule:
    """The latest program as a module that takes the call's tensors, in order or by its placeholders' names.

    Args:
        compiled: what `compile` returned.
        enabled: whether the adapters are in it.
    """
    engine = engine_of(compiled)
    copied, _ = copy_graph(engine.latest(enabled).rewritten)
    plain = type(engine.root).__name__.removeprefix("Compiled")
    return fx.GraphModule(engine.root, copied, class_name=plain)
