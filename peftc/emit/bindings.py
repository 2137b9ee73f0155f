"""How generated code calls an operator: by torch's own binding of it, where there is one with the same arguments.

Python finds the kernel of `torch.add(x, y)` in half the time that `torch.ops.aten.add.Tensor(x, y)` needs to match its
arguments with a schema. The operator that runs is the same; only graphs and their text keep the name of the overload.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.nn import functional

FUNCTIONS = """
abs.default add.Scalar add.Tensor arange.default arange.start arange.start_step bmm.default cat.default chunk.default
clamp.default conv1d.default conv2d.default cos.default cumsum.default div.Scalar div.Tensor dropout.default
embedding.default eq.Scalar eq.Tensor exp.default flatten.using_ints gather.default ge.Scalar ge.Tensor group_norm.default
gt.Scalar gt.Tensor layer_norm.default le.Scalar le.Tensor log.default lt.Scalar lt.Tensor masked_fill.Scalar
matmul.default mean.dim mul.Scalar mul.Tensor ne.Scalar ne.Tensor neg.default permute.default pow.Tensor_Scalar relu.default
reshape.default rsqrt.default rsub.Scalar select.int sigmoid.default sin.default softmax.int split.Tensor
split_with_sizes.default sqrt.default squeeze.dim stack.default sub.Scalar sub.Tensor sum.dim_IntList tanh.default
topk.default transpose.int unsqueeze.default where.ScalarOther where.self
"""
"""Overloads that torch has a function for, of the same name and with the same arguments in the same order."""

METHODS = (
    "contiguous.default expand.default repeat.default to.dtype type_as.default unflatten.int view.default"
)
"""The same of methods of tensors."""

NETWORKS = "gelu.default linear.default scaled_dot_product_attention.default silu.default softplus.default"
"""The same of functions in `torch.nn.functional`."""


def overload(text: str) -> Any:
    """The operator that a text such as `add.Tensor` names."""
    name, _, which = text.partition(".")
    return getattr(getattr(torch.ops.aten, name), which)


BINDINGS: Mapping[Any, Callable[..., Any] | str] = {
    **{overload(text): getattr(torch, text.partition(".")[0]) for text in FUNCTIONS.split()},
    **{overload(text): text.partition(".")[0] for text in METHODS.split()},
    **{overload(text): getattr(functional, text.partition(".")[0]) for text in NETWORKS.split()},
    torch.ops.aten.sym_size.int: "size",
}
"""Operator → function, or name of a method."""

MOST: Mapping[Any, int] = {
    torch.ops.aten.to.dtype: 4
}  # positional arguments that the binding takes, where these are fewer


def bound(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph that calls operators by their bindings."""
    copied = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        env[node] = copied.node_copy(node, lambda source: env[source])
        bind(env[node])
    return copied


def bind(node: fx.Node) -> None:
    """Let one node call its binding, if it has one."""
    if node.op != "call_function":
        return
    if node.target is torch.ops.aten.slice.Tensor and not node.kwargs:
        node.target, node.args = operator.getitem, (node.args[0], index(*node.args[1:]))
        return
    found = BINDINGS.get(node.target)
    if found is None or len(node.args) > MOST.get(node.target, len(node.args)):
        return
    node.op, node.target = ("call_method" if isinstance(found, str) else "call_function"), found


def index(axis: Any = 0, start: Any = None, stop: Any = None, step: Any = 1) -> tuple[Any, ...]:
    """What a slice of one axis is in brackets."""
    part = slice(start, None if stop == 2**63 - 1 else stop, None if step == 1 else step)
    everything = slice(None)
    return (*[everything] * axis, part) if axis >= 0 else (..., part, *[everything] * (-1 - axis))
