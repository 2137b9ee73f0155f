"""Spellings: files that are proved, products with parameters in every form, activations, and what nearly matches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from peftc.capture import capture
from peftc.capture.normalise import SPELLINGS
from peftc.capture.respelling import FOLDER, recognise, respell
from peftc.capture.signature import call_with
from peftc.capture.spelling import read_spelling, spelling_of
from peftc.errors import RuleError
from peftc.passes import PassRecord, PassSettings
from tests.capture import test_attention as attentions
from tests.capture import test_norms as norms
from tests.graphs import calls, captured, operators, run

RMS = (FOLDER / "rms_norm.toml").read_text()
ATTENTION = (FOLDER / "attention.toml").read_text()
LINEAR = (FOLDER / "linear.toml").read_text()


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


class Weighted(nn.Module):
    """A module around a function of (x, weight [4 6] or [6 4], bias)."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(*shape))
        self.bias = nn.Parameter(values(6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(self: Weighted, x: Tensor) -> Tensor:
    return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], 6)


def plain(self: Weighted, x: Tensor) -> Tensor:
    return x @ self.weight


def plain_with_bias(self: Weighted, x: Tensor) -> Tensor:
    return self.bias + x @ self.weight


def turned(self: Weighted, x: Tensor) -> Tensor:
    return x @ self.weight.T


def transposed(self: Weighted, x: Tensor) -> Tensor:
    return torch.matmul(x, self.weight.transpose(-1, -2)) + self.bias


def permuted(self: Weighted, x: Tensor) -> Tensor:
    return torch.matmul(x, self.weight.permute(1, 0))


@pytest.mark.parametrize(
    ("function", "shape", "biased"),
    [
        (conv, (4, 6), True),
        (plain, (4, 6), False),
        (plain_with_bias, (4, 6), True),
        (turned, (6, 4), False),
        (transposed, (6, 4), True),
        (permuted, (6, 4), False),
    ],
)
def test_a_product_with_a_parameter_is_linear(
    function: Callable[..., Tensor], shape: tuple[int, int], biased: bool
) -> None:
    module, x = Weighted(function, *shape), values(3, 5, 4)
    program = captured(module, x=x)
    (product,) = calls(program, "linear")
    assert set(operators(program)) - {"t"} == {"linear"}
    assert operators(program)["t"] == (shape == (4, 6))
    assert (len(product.args) > 2 and product.args[2] is not None) == biased
    torch.testing.assert_close(run(program, module, x), module(x), atol=1e-6, rtol=1e-6)
    other = values(2, 9, 4)
    torch.testing.assert_close(run(program, module, other), module(other), atol=1e-6, rtol=1e-6)


def by_a_value(self: Weighted, x: Tensor) -> Tensor:
    return x @ (self.weight * 2)


def from_the_left(self: Weighted, x: Tensor) -> Tensor:
    return self.weight @ x.transpose(-1, -2)


def doubled_product(self: Weighted, x: Tensor) -> Tensor:
    flat = torch.addmm(self.bias, x.view(-1, 4), self.weight, alpha=2)
    return flat.view(*x.shape[:-1], 6)


def otherwise_reshaped(self: Weighted, x: Tensor) -> Tensor:
    return torch.addmm(self.bias, x.view(-1, 4), self.weight).view(x.shape[1], x.shape[0], 6)


def with_one_number(self: Any, x: Tensor) -> Any:
    return self.one + x @ self.weight


def test_a_bias_of_one_number_stays_a_sum() -> None:
    x = values(3, 5, 4)
    module: Any = Weighted(with_one_number, 4, 6)
    module.one = nn.Parameter(values(1))
    program = captured(module, x=x)
    assert operators(program) == {"t": 1, "linear": 1, "add": 1}
    torch.testing.assert_close(run(program, module, x), module(x), atol=1e-6, rtol=1e-6)


def mean_in_another_format(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt((x * x).mean(-1, keepdim=True, dtype=torch.float32) + 1e-5)).to(x.dtype)


def seen_as_numbers(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.softmax(q @ k.transpose(-1, -2) + (mask > 0), -1) @ v


def test_number_formats_are_part_of_a_pattern() -> None:
    x = norms.values(torch.bfloat16)
    norm = norms.Norm(mean_in_another_format, torch.bfloat16)
    program = captured(norm, x=x)
    assert not calls(program, "rms_norm")
    assert torch.equal(run(program, norm, x), norm(x))
    attention = attentions.Attention(seen_as_numbers)
    given: dict[str, Any] = {**QKV, "mask": attentions.mask_for("whole")}
    program = captured(attention, **given)
    torch.testing.assert_close(  # a mask of truths that is added is one of numbers, and hides nothing
        run(program, attention, *given.values()), attention(*given.values()), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("function", "shape"),
    [(by_a_value, (4, 6)), (from_the_left, (6, 4)), (doubled_product, (4, 6)), (otherwise_reshaped, (4, 6))],
)
def test_other_products_compute_what_they_did(
    function: Callable[..., Tensor], shape: tuple[int, int]
) -> None:
    module, x = Weighted(function, *shape), values(3, 5, 4)
    program = captured(module, x=x)
    biased = [node for node in calls(program, "linear") if len(node.args) > 2 and node.args[2] is not None]
    assert len(biased) == (function is otherwise_reshaped), "else only the product may be found, if anything"
    torch.testing.assert_close(run(program, module, x), module(x), atol=1e-6, rtol=1e-6)


class Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_from_the_right(x: Tensor) -> Tensor:
    return (torch.tanh((x + x.pow(3) * 0.044715) * 0.7978845608028654) + 1.0) * (x * 0.5)


def slower(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.7 * x)


def of_another(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * (x + 1))


def squares(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 2.0))))


def shifted(x: Tensor) -> Tensor:
    return 0.5 * x * (2.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


@pytest.mark.parametrize(
    ("function", "name", "bound"),
    [(quick, "quick_gelu", 0), (new_gelu, "gelu", 1e-6), (gelu_from_the_right, "gelu", 1e-6)],
)
def test_activations_that_are_written_out(
    function: Callable[[Tensor], Tensor], name: str, bound: float
) -> None:
    module, x = Activation(function), values(3, 5, 4)
    program = captured(module, x=x)
    assert operators(program) == {name: 1}
    torch.testing.assert_close(run(program, module, x), module(x), atol=bound, rtol=bound)


def shares(x: Tensor) -> Tensor:
    powers = torch.exp(x)
    return powers / powers.sum(-1, keepdim=True)


def shares_below_the_largest(x: Tensor) -> Tensor:
    return torch.exp(x - x.amax(-1, keepdim=True)) / torch.exp(x - x.amax(-1, keepdim=True)).sum(-1, True)


def shares_by_max(x: Tensor) -> Tensor:
    lower = x - x.max(-1, keepdim=True).values
    return lower.exp() / lower.exp().sum(-1, keepdim=True)


def with_one_more(x: Tensor) -> Tensor:
    return x.exp() / (x.exp().sum(-1, keepdim=True) + 1)


def from_the_front(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(0, keepdim=True)


def of_others(x: Tensor) -> Tensor:
    return x.exp() / (2 * x).exp().sum(-1, keepdim=True)


@pytest.mark.parametrize("function", [shares, shares_below_the_largest, shares_by_max])
def test_a_softmax_that_is_written_out(function: Callable[[Tensor], Tensor]) -> None:
    module, x = Activation(function), values(3, 5, 4)
    program = captured(module, x=x)
    assert operators(program) == {"softmax": 1}
    torch.testing.assert_close(run(program, module, x), module(x), atol=1e-6, rtol=1e-6)


QKV = dict(zip("qkv", attentions.operands(), strict=True))
TWINS: list[tuple[str, Callable[[], nn.Module], dict[str, Tensor]]] = [
    *(
        ("rms_norm", lambda function=function: norms.Norm(function), {"x": norms.values(torch.float32)})
        for function in (norms.variance, norms.another_axis, norms.no_eps, norms.cubes, norms.another_value, norms.a_scaled_sum)
    ),
    *(
        ("layer_norm", lambda function=function: norms.Norm(function), {"x": norms.values(torch.float32)})
        for function in (norms.not_centred, norms.centred_elsewhere)
    ),
    *(
        ("attention", lambda function=function: attentions.Attention(function), QKV)
        for function in (attentions.other_axis, attentions.scores_returned, attentions.weights_returned,
                         attentions.soft_capped, attentions.rounded)
    ),
    *(
        ("attention", lambda function=function: attentions.Attention(function),
         {**QKV, "mask": attentions.mask_for("whole")})
        for function in (attentions.scaled_with_its_mask, attentions.weighted_mask)
    ),
    *(
        ("linear", lambda function=function, shape=shape: Weighted(function, *shape), {"x": values(3, 5, 4)})
        for function, shape in ((by_a_value, (4, 6)), (from_the_left, (6, 4)), (doubled_product, (4, 6)))
    ),
    *(("quick_gelu", lambda function=function: Activation(function), {"x": values(3, 4)}) for function in (slower, of_another)),
    *(
        ("softmax", lambda function=function: Activation(function), {"x": values(3, 4)})
        for function in (with_one_more, from_the_front, of_others)
    ),
    *(("gelu_tanh", lambda function=function: Activation(function), {"x": values(3, 4)}) for function in (squares, shifted)),
]  # fmt: skip


def records_of(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, PassRecord]:
    """What each pass of a capture did."""
    records: dict[str, PassRecord] = {}

    def watch(record: PassRecord, _: fx.Graph) -> None:
        records.setdefault(record.name, record)

    capture(module.eval(), call_with(inputs), settings=PassSettings(watch=watch))
    return records


def test_twins_are_left_and_the_nearest_miss_is_told(golden: Callable[[str, str], None]) -> None:
    told = []
    for name, make, inputs in TWINS:
        module: Any = make()
        record = records_of(module, inputs)[f"recognise_{name}"]
        function = module.function.__name__
        assert record.changed == 0, function
        misses = record.misses or ("nothing near",)
        told.append("\n".join([f"{name}, {function}:", *(f"  {miss}" for miss in misses)]))
    golden("capture/misses.txt", "\n\n".join(told) + "\n")


def test_what_is_replaced_is_no_miss() -> None:
    record = records_of(attentions.Attention(attentions.scaled), QKV)["recognise_attention"]
    assert (record.changed, record.misses) == (1, ())


def test_every_file_has_a_pass_and_a_law() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(SPELLINGS)
    for name in SPELLINGS:
        spelling = read_spelling(FOLDER / f"{name}.toml")
        assert spelling.data.name == name
        assert spelling.data.law in str(recognise(name).__doc__)


WRONG = [
    (RMS, "replace =", "relpace ="),
    (RMS, 'law     = "bit for bit"', 'law = "nearly"'),
    (RMS, "rsqrt(", "rsqr("),
    (RMS, "axis='d') + eps)\"\nup", "axis='e') + eps)\"\nup"),
    (RMS, '"rms_norm(x, w, eps, wide)"', '"rms_norm(x, w, eps, narrow)"'),
    (RMS, '"rms_norm(x, w, eps, none)"', '"rms_norm(x, w, eps, wide)"'),
    (RMS, '"rms_norm(x, none, eps, none)"', '"rms_nrom(x, none, eps, none)"'),
    (RMS, '"rms_norm(x, none, eps, none)"', '"x"'),
    (RMS, '"rms_norm(x, none, eps, none)"', '"rms_norm(x, none, eps)"'),
    (RMS, "[wild]", 'z = "* d"\n\n[wild]'),
    (RMS, "[wild]", '[wild]\nz = { kind = "value" }'),
    (RMS, "wide = {", 'x = { kind = "number" }\nwide = {'),
    (RMS, 'x = "* d"', 'x = "d *"'),
    (RMS, 'up     = "cast(x, wide)"', 'up = ["cast(x, wide)", "w"]'),
    (RMS, 'up     = "cast(x, wide)"', 'up = "cast(above, wide)"'),
    (RMS, 'normed = "x', 'none = "x'),
    (ATTENTION, '"attention(q, k, v, mask, scale, p)"', '"attention(q, k, k, mask, scale, p)"'),
    (ATTENTION, "(q @ k) * scale", "(q @ v) * scale"),
    (LINEAR, 'replace = "linear(x, V, none)"', 'replace = "linear(x, b, none)"'),
    (LINEAR, 'find    = "x @ V"', 'find = "x @ V if b else x"'),
]


def refusal(text: str) -> RuleError:
    with pytest.raises(RuleError) as caught:
        spelling_of(text, "spelling.toml")
    return caught.value


def test_wrong_files_are_refused(golden: Callable[[str, str], None]) -> None:
    told = []
    for base, old, new in WRONG:
        assert old in base
        told.append(f"- {old}\n+ {new}\n{refusal(base.replace(old, new))}")
    golden("capture/spelling_errors.txt", "\n\n".join(told) + "\n")


def test_a_spelling_is_only_data() -> None:
    """A pattern of a person's own, matched without a line of Python."""
    text = """
format = 1
name = "silu"
summary = "Two ways to write it."
law = "within rounding"
[values]
x = "*"
[let]
way = ["x * sigmoid(x)", "sigmoid(x) * x"]
[[spelling]]
find = "way"
replace = "quick_gelu(x)"
"""
    spelling = spelling_of(text, "silu.toml")
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3)
    sigmoid = graph.call_function(torch.ops.aten.sigmoid.default, (x,))
    product = graph.call_function(torch.ops.aten.mul.Tensor, (sigmoid, x))
    for node in (sigmoid, product):
        node.meta["val"] = torch.empty(3)
    graph.output(product)
    result = respell(graph, spelling)
    assert (result.changed, result.misses) == (1, ())
    assert any(getattr(node.target, "__name__", "") == "quick_gelu" for node in graph.nodes)
