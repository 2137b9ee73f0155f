"""Reparameterisations beside each other at one site, in narrow formats, and where they do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import MergeError, NoMatchError
from peftc.lang import default_library
from tests.models import bert, llama
from tests.rules.test_stored import conv
from tests.rules.test_updates import close, shake
from tests.rules.updates import rotation

D, INNER, HEADS = 24, 40, 2
UPDATES = ("lora", "rslora", "dora", "pissa", "olora", "vera", "loha", "lokr", "oft", "ia3")
SMALL = {"oft": ":q,v(block=4)", "ia3": "", "vera": ":q,v(rank=6)"}
X = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1))


class Layer(nn.Module):
    """An attention and a feed-forward network; queries, keys and values are one matrix if `fused`, else without biases."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        names = ("fused",) if fused else ("query", "key", "value")
        for name in names:
            self.add_module(name, nn.Linear(D, 3 * D if fused else D, bias=fused))
        self.out, self.up, self.down = nn.Linear(D, D), nn.Linear(D, INNER), nn.Linear(INNER, D)
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        made = [self.get_submodule(name)(x) for name in self.names]
        if len(made) == 1:
            made = list(made[0].split(D, -1))
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in made)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        h = x + self.out(seen.transpose(1, 2).flatten(2))
        out: Tensor = h + self.down(torch.tanh(self.up(h)))
        return out


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Layer(fused=kind == "fused")


def compiled_with(model: nn.Module, rules: list[str]) -> Any:
    x = X.to(next(model.parameters()).dtype)
    compiled: Any = peftc.compile(model, rules, {"x": x}, defaults=False)
    return compiled.eval()


@pytest.mark.parametrize("kind", ["apart", "fused"])
@pytest.mark.parametrize(
    "rules",
    [
        ["lora:down", "ia3"],
        ["ia3", "lora:k,v,down"],
        ["lora:q,v", "oft:q,v(block=4)"],
        ["oft:q,v(block=4)", "lora:q,v"],
        ["oft:q(block=4)", "oft:q(block=8)", "rslora:q", "lokr:q"],
        ["oft:q(block=4)", "dora:q"],
        ["dora:q", "lora:q", "ia3"],
        ["bitfit:k,v,down(insert='always')", "ia3"],
        ["ia3", "bitfit:k,v,down(insert='always')"],
    ],
    ids=lambda rules: "+".join(rule.partition("(")[0] for rule in rules),
)
def test_rules_at_one_site_merge(kind: str, rules: list[str]) -> None:
    model = layer(kind)
    compiled = compiled_with(model, rules)
    shake(compiled)
    with torch.no_grad():
        beside, inside = compiled(X), compiled.merge_and_unload()(X)
        assert (beside - model(X)).abs().max() > 1e-3
    close(inside, beside)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            ["lora:q", "dora:q"],
            "lora and dora cannot be merged together at .*: dora reads the weight as it came",
        ),
        (["lora:q", "oft:q(block=4)", "rslora:q"], "lora and oft and rslora cannot be merged together"),
        (["dora:q", "oft:q(block=4)"], "oft and dora cannot be merged together"),
    ],
)
def test_what_no_change_of_the_weight_stands_for_is_refused(rules: list[str], said: str) -> None:
    compiled = compiled_with(layer("apart"), rules)
    with pytest.raises(MergeError, match=said):
        compiled.merge_and_unload()


@pytest.mark.parametrize("rule", UPDATES)
def test_half_precision(rule: str) -> None:
    """The start is the model's own bits, and other values come out as in single precision, up to what bits there are."""
    outs = []
    for dtype in (torch.float32, torch.bfloat16):
        model, x = layer("fused").to(dtype), X.to(dtype)
        compiled = compiled_with(model, [f"{rule}{SMALL.get(rule, ':q,v(rank=4)')}"])
        with torch.no_grad():
            assert torch.equal(compiled(x), model(x))
            shake(compiled)
            outs.append(compiled(x).float())
    compiled.train()(x).float().square().mean().backward()
    trained = [p for p in compiled.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    assert (outs[0] - outs[1]).abs().max() <= 0.05 * outs[0].abs().max()


def test_every_width_takes_its_part_of_two_shared_matrices() -> None:
    """Grouped heads: queries are 24 wide, keys and values 12; the inner network 40."""
    plan = peftc.plan(llama(), ["vera:q,v,down(rank=6)"], defaults=False)
    shared = [(each.name, each.shape) for each in plan.new_tensors if not each.trainable]
    assert sorted(shared) == [("A", (6, 40)), ("B", (24, 6))]
    assert {each.shape for each in plan.new_parameters if each.name == "lambda_b"} == {(24,), (12,)}


def test_shared_matrices_are_drawn_alike_and_by_their_seed() -> None:
    def drawn(spec: str) -> Tensor:
        torch.rand(5)
        compiled = compiled_with(layer("apart"), [spec])
        parameter = next(each for each in compiled.peftc_plan.new_parameters if each.name == "A")
        held: Tensor = compiled.get_parameter(parameter.path)
        return held

    first = drawn("vera:q,v(rank=6)")
    assert torch.equal(first, drawn("vera:q,v(rank=6)"))
    assert not torch.equal(first, drawn("vera:q,v(rank=6, seed=1)"))
    assert 0.9 * (6 / D) ** 0.5 < first.abs().max() <= (6 / D) ** 0.5


def test_a_block_that_does_not_divide_a_width_leaves_the_site_out() -> None:
    plan = peftc.plan(llama(), ["oft:q,down(block=10)"], defaults=False)
    assert [each.site.part for each in plan.applications] == ["down", "down"]
    reasons = {skip.reason for skip in plan.skips if skip.site.part == "q"}
    assert reasons == {"the size d_in/block of S is no whole number above 0 here (d_in = 24, block = 10)"}
    with pytest.raises(NoMatchError, match="no whole number above 0 here"):
        peftc.plan(llama(), ["oft:q"], defaults=False)


def test_numbers_of_parameters() -> None:
    """Those of the papers: block · (block − 1) / 2 a block, near-square factors, a vector for each width."""

    def count(spec: str) -> int:
        return peftc.plan(layer("fused"), [spec], {"x": X}, defaults=False).trainable_count

    assert count("oft:q(block=8)") == 3 * (8 * 7 // 2)
    assert count("lokr:q(rank=2)") == 4 * 4 + 2 * (6 + 6)
    assert count("lokr:q(rank=2, factor=3)") == 3 * 3 + 2 * (8 + 8)
    assert count("vera:q,down(rank=6)") == (24 + 6) + (24 + 6)
    assert count("dora:q(rank=2)") == 2 * (24 + 24) + 24
    assert count("pissa:q(rank=2)") == count("olora:q(rank=2)") == count("rslora:q(rank=2)") == 2 * (24 + 24)
    assert count("loha:q(rank=2)") == 2 * 2 * (24 + 24)
    assert count("ia3") == 24 + 24 + 40


@pytest.mark.parametrize(
    ("spec", "kept"),
    [("oft:q,v(block=4)", "k"), ("dora:q,v", "k"), ("loha:q,v(rank=4)", "k"), ("ia3", "q")],
)
def test_other_parts_of_a_fused_projection_stay_bit_for_bit(spec: str, kept: str) -> None:
    model: Any = layer("fused")
    compiled = compiled_with(model, [spec])
    shake(compiled)
    start = "qkv".index(kept) * D
    merged = compiled.merge_and_unload().fused.weight
    assert torch.equal(merged[start : start + D], model.fused.weight[start : start + D])
    assert not torch.equal(merged, model.fused.weight)


def test_rules_behind_a_turned_input_of_a_part_read_the_turned_one() -> None:
    model: Any = layer("fused")
    compiled = compiled_with(model, ["oft:q(block=4)", "lora:q(rank=3)"])
    shake(compiled)
    held = {p.name: compiled.get_parameter(p.path) for p in compiled.peftc_plan.new_parameters}
    turn = torch.block_diag(*(rotation(row, 4) for row in held["S"]))
    weight = (model.fused.weight[:D] + 16 / 3 * held["B"] @ held["A"]) @ turn.T
    close(compiled.merge_and_unload().fused.weight[:D], weight)
    by_hand: Any = layer("fused")
    with torch.no_grad():
        by_hand.fused.weight[:D] = weight
        close(compiled(X), by_hand(X))


def test_the_length_gets_no_gradient() -> None:
    """As in section 4.3 of the paper: with it, the gradients would be others."""
    model = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    compiled: Any = peftc.compile(model, ["dora:path=*(rank=2, alpha=3)"], {"input": x}, defaults=False)
    shake(compiled)
    (application,) = compiled.peftc_plan.applications
    held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
    compiled(x).square().sum().backward()
    found = {}
    for constant in (True, False):
        copies = {name: p.detach().clone().requires_grad_() for name, p in held.items()}
        weight: Any = model[0].weight
        v = weight.detach() + 1.5 * copies["B"] @ copies["A"]
        lengths = (v.detach() if constant else v).norm(dim=1, keepdim=True)
        y = x @ (copies["m"][:, None] * v / lengths).T + model[0].bias
        y.square().sum().backward()
        found[constant] = copies["A"].grad
    assert held["A"].grad is not None
    torch.testing.assert_close(held["A"].grad, found[True], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(held["A"].grad, found[False], atol=1e-3)


def test_rows_of_zeros_have_no_direction_and_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(linear := nn.Linear(6, 5))
    with torch.no_grad():
        linear.weight[2] = 0.0
    x = torch.randn(4, 6)
    compiled: Any = peftc.compile(model, ["dora:path=*(rank=2)"], {"input": x}, defaults=False)
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).square().sum().backward()
    for name, parameter in compiled.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    torch.testing.assert_close(compiled.merge_and_unload()(x), model(x))


def test_scales_act_on_keys_values_and_inner_activations_alone() -> None:
    for model in (llama(), conv(), bert()):
        plan = peftc.plan(model, ["ia3"], defaults=False)
        parts = sorted(each.site.part for each in plan.applications)
        assert parts == ["down", "down", "k", "k", "v", "v"]


def test_all_of_them_are_in_the_library() -> None:
    assert set(UPDATES) <= set(default_library().names())
