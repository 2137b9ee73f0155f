"""Generated code calls operators by torch's bindings: each runs the very operator that stands in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.profiler import ProfilerActivity, profile

from peftc.emit.bindings import BINDINGS, bound, overload

X = torch.randn(2, 3, 4)
POSITIVE, WHOLE = X.abs() + 0.1, torch.arange(24).reshape(2, 3, 4)
TABLE, IDS = torch.randn(7, 4), torch.tensor([[1, 3], [0, 6]])
WEIGHT, SCALE, SHIFT = torch.randn(5, 4), torch.randn(4), torch.randn(4)
WAVE, IMAGE = torch.randn(2, 3, 9), torch.randn(2, 3, 8, 8)

EXAMPLES: dict[str, tuple[Any, ...]] = {
    "abs.default": (X,),
    "add.Scalar": (X, 2),
    "add.Tensor": (X, WHOLE, {"alpha": 2}),
    "arange.default": (5, {"dtype": torch.int32, "device": torch.device("cpu"), "pin_memory": False}),
    "arange.start": (1, 5, {"device": torch.device("cpu"), "pin_memory": False}),
    "arange.start_step": (1, 9, 2),
    "bmm.default": (X, X.mT.contiguous()),
    "cat.default": ([X, X], -1),
    "chunk.default": (X, 2, -1),
    "clamp.default": (X, -0.5, 0.5),
    "contiguous.default": (X.mT,),
    "conv1d.default": (WAVE, torch.randn(6, 1, 3), torch.randn(6), [1], [1], [1], 3),
    "conv2d.default": (IMAGE, torch.randn(4, 3, 2, 2), torch.randn(4), [2, 2]),
    "cos.default": (X,),
    "cumsum.default": (X, 1, {"dtype": torch.float64}),
    "div.Scalar": (X, 3),
    "div.Tensor": (X, POSITIVE),
    "dropout.default": (X, 0.5, True),
    "embedding.default": (TABLE, IDS, 0),
    "eq.Scalar": (WHOLE, 3),
    "eq.Tensor": (WHOLE, X),
    "exp.default": (X,),
    "expand.default": (X[:, :1], [2, 3, -1]),
    "flatten.using_ints": (X, -2),
    "gather.default": (X, 1, torch.zeros(2, 1, 4, dtype=torch.int64)),
    "ge.Scalar": (X, 0),
    "ge.Tensor": (X, POSITIVE),
    "gelu.default": (X, {"approximate": "tanh"}),
    "group_norm.default": (torch.randn(2, 4, 5), 2, SCALE, SHIFT, 1e-5, False),
    "gt.Scalar": (X, 0),
    "gt.Tensor": (X, POSITIVE),
    "layer_norm.default": (X, [4], SCALE, SHIFT, 1e-5, False),
    "le.Scalar": (X, 0),
    "le.Tensor": (X, POSITIVE),
    "linear.default": (X, WEIGHT, None),
    "log.default": (POSITIVE,),
    "lt.Scalar": (X, 0),
    "lt.Tensor": (X, POSITIVE),
    "masked_fill.Scalar": (X, X > 0, float("-inf")),
    "matmul.default": (X, X.mT),
    "mean.dim": (X, [-1], True),
    "mul.Scalar": (X, 2.0),
    "mul.Tensor": (X, 2.0),
    "ne.Scalar": (WHOLE, 3),
    "ne.Tensor": (WHOLE, X),
    "neg.default": (X,),
    "permute.default": (X, [2, 0, 1]),
    "pow.Tensor_Scalar": (X, 2),
    "relu.default": (X,),
    "repeat.default": (X, [1, 2, 1]),
    "reshape.default": (X, [-1, 4]),
    "rsqrt.default": (POSITIVE,),
    "rsub.Scalar": (X, 1.0),
    "scaled_dot_product_attention.default": (
        *3 * (X.unsqueeze(0),),
        {"attn_mask": None, "dropout_p": 0.0, "is_causal": True, "scale": 0.3, "enable_gqa": False},
    ),
    "select.int": (X, 1, 2),
    "sigmoid.default": (X,),
    "silu.default": (X,),
    "sin.default": (X,),
    "softmax.int": (X, -1, torch.float64),
    "softplus.default": (X, 2.0, 10.0),
    "split.Tensor": (X, 2, 2),
    "split_with_sizes.default": (X, [1, 3], -1),
    "sqrt.default": (POSITIVE,),
    "squeeze.dim": (X[:, :1], 1),
    "stack.default": ([X, X], -1),
    "sub.Scalar": (X, 2),
    "sub.Tensor": (X, 2, {"alpha": 3}),
    "sum.dim_IntList": (X, [-1], True, {"dtype": torch.float64}),
    "sym_size.int": (X, 2),
    "tanh.default": (X,),
    "to.dtype": (X, torch.float64, False, True),
    "topk.default": (X, 2, -1, True, True),
    "transpose.int": (X, 1, 2),
    "type_as.default": (X, WHOLE),
    "unflatten.int": (X, 2, [2, 2]),
    "unsqueeze.default": (X, -1),
    "view.default": (X, [2, -1]),
    "where.ScalarOther": (X > 0, X, -1.0),
    "where.self": (X > 0, X, WHOLE),
}


SLICES: tuple[tuple[Any, ...], ...] = (
    (X, 2, 0, 3),
    (X, 1, 1, 2**63 - 1),
    (X, -2, -2),
    (X, 0, None, 1, 1),
    (X, -1, 0, 99, 2),
    (X,),
    (X, 2, 0, 2**63 - 1),
)


def ran(graph: fx.Graph, tensors: list[Tensor]) -> tuple[list[str], Any]:
    """The operators that a graph runs, outermost and by name, and what it gives."""
    module = fx.GraphModule({}, graph)
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        result = module(*tensors)
    names = [event.name for event in seen.events() if event.cpu_parent is None]
    return [name for name in names if name.startswith("aten::")], result


def both_ways(operator: Any, args: tuple[Any, ...]) -> tuple[tuple[list[str], Any], tuple[list[str], Any]]:
    """What an operator runs and gives as it stands in a graph, and as generated code calls it."""
    kwargs = args[-1] if isinstance(args[-1], dict) else {}
    graph, tensors = fx.Graph(), []

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensors.append(value)
        return graph.placeholder(f"input_{len(tensors)}")

    given = [
        [place(item) for item in value] if isinstance(value, list) else place(value)
        for value in args[: len(args) - bool(kwargs)]
    ]
    graph.output(graph.call_function(operator, tuple(given), kwargs))
    copied = bound(graph)
    assert all(node.target is not operator for node in copied.nodes)
    return ran(graph, tensors), ran(copied, tensors)


def test_every_binding_has_an_example() -> None:
    assert {overload(text) for text in EXAMPLES} == set(BINDINGS)


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_binding_runs_its_operator(text: str) -> None:
    (names, want), (again, got) = both_ways(overload(text), EXAMPLES[text])
    assert again == ([] if text == "sym_size.int" else names)  # a size is read, not computed
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("args", SLICES, ids=lambda args: str(args[1:]))
def test_a_slice_stays_a_view(args: tuple[Any, ...]) -> None:
    (_, want), (_, got) = both_ways(torch.ops.aten.slice.Tensor, args)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert got.data_ptr() == want.data_ptr()
    assert got.stride() == want.stride()


def test_more_arguments_than_a_binding_takes_stay_with_the_operator() -> None:
    graph = fx.Graph()
    cast = graph.call_function(
        torch.ops.aten.to.dtype, (graph.placeholder("x"), torch.float64, False, False, None)
    )
    graph.output(cast)
    assert any(node.target is torch.ops.aten.to.dtype for node in bound(graph).nodes)
