"""Ways to break a compiled module on purpose, and to ask for one property of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, fx

import peftc
from peftc.certificate.subject import Subject, examined
from peftc.graphs.reading import is_attention, is_call
from peftc.rewrite import rewrite
from peftc.runtime import engine as engines
from tests.models import llama, tokens


def broken(
    monkeypatch: pytest.MonkeyPatch,
    mend: Callable[[fx.Graph], None],
    rules: list[str],
    model: Any = None,
    given: Any = None,
) -> Any:
    """A compiled model, a decoder unless told, every graph of which `mend` has spoilt after its rules were put in."""

    def spoilt(*args: Any, **kwargs: Any) -> fx.Graph:
        graph = rewrite(*args, **kwargs)
        mend(graph)
        return graph

    monkeypatch.setattr(engines, "rewrite", spoilt)
    return peftc.compile(llama() if model is None else model, rules, given)


def masked_by(mask: Callable[[Tensor, Tensor], Tensor], *, last: bool = True) -> Callable[[fx.Graph], None]:
    """Gives the last attention of a graph another mask, or all of them: one that is made of queries and keys."""

    def mend(graph: fx.Graph) -> None:
        for node in [each for each in graph.nodes if is_attention(each)][-1 if last else None :]:
            with graph.inserting_before(node):
                seen = graph.call_function(mask, node.args[:2])
            seen.meta = dict(node.meta)
            node.kwargs = {**node.kwargs, "attn_mask": seen, "is_causal": False}

    return mend


def is_not(node: fx.Node) -> Callable[[fx.Node], bool]:
    """Tells of a user whether it is another node."""
    return lambda user: user is not node


def named(compiled: Any, examine: Callable[[Subject], Any], **inputs: Any) -> Any:
    """The finding of one property."""
    with examined(compiled, inputs or {"input_ids": tokens()}) as subject:
        return examine(subject)


def added(graph: fx.Graph, *names: str) -> list[fx.Node]:
    """Calls of these operators that a rule put in."""
    return [node for node in graph.nodes if "lora" in node.name and is_call(node, *names)]
