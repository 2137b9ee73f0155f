"""One module at several places of a model: a layer called at every depth, a part of several blocks, an attention core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import randomise

WIDTH, HEADS = 12, 3


def heads(x: Tensor) -> Tensor:
    split: Tensor = x.unflatten(-1, (HEADS, -1))
    return split.transpose(1, 2)


class Core(nn.Module):
    """Attention without a weight."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gathered = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return gathered.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Projections around a core."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.o(self.core(self.q(x), self.k(x), self.v(x)))
        return out


class Network(nn.Module):
    """A feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.u, self.d = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.d(functional.gelu(self.u(self.norm(x))))
        return out


class Deep(nn.Module):
    """A universal transformer: layers, one after the other, whichever of them are the same."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.out(x)
        return out


class Block(nn.Module):
    """An attention and a network; the attention may be that of other blocks too."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.network = attention, Network()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(self.attention(x))
        return out


def called() -> Tensor:
    return torch.randn(2, 5, WIDTH)


def repeated() -> nn.Module:
    return Deep(*[Network()] * 3)


def blocks() -> list[Block]:
    attention = Layer(Core())
    return [Block(attention), Block(attention)]


def with_random_adapters(model: nn.Module, rule: str) -> tuple[Any, dict[str, Tensor]]:
    """A compiled model whose adapters do something, and its example inputs."""
    given = {"input" if isinstance(model, nn.Sequential) else "x": called()}
    compiled = peftc.compile(model.eval(), [rule], given).eval()
    randomise(compiled)
    return compiled, given


def test_each_layer_has_a_prefix_of_its_own() -> None:
    core = Core()
    compiled, given = with_random_adapters(nn.Sequential(Layer(core), Layer(core)), "prefix:2")
    assert len(compiled.peftc_plan.applications) == 2
    own = {name for name, _ in compiled.named_parameters() if name.endswith("P_k")}
    assert own == {f"0.core.peftc.default.prefix.attention_{number}.P_k" for number in range(2)}
    certificate = peftc.check(compiled, given)
    assert certificate.passed, str(certificate)


@pytest.mark.parametrize(
    ("rule", "sites"),
    [
        ("lora:ffn", ["layers.0.u:up", "layers.0.d:down"]),
        ("ia3", ["layers.0.d:down"]),
        ("bottleneck", ["layers.0:ffn"]),
    ],
)
def test_a_repeated_layer_is_one_site_with_one_adapter(rule: str, sites: list[str]) -> None:
    compiled, given = with_random_adapters(repeated(), rule)
    assert [each.site.id for each in compiled.peftc_plan.of(compiled.peftc_plan.rules[0].label)] == sites
    certificate = peftc.check(compiled, given)
    assert certificate.passed, str(certificate)


def test_a_repeated_layer_merges_and_loads(tmp_path: Path) -> None:
    model = repeated()
    compiled, given = with_random_adapters(model, "lora:ffn")
    merged: Any = compiled.merge_and_unload()
    assert [type(layer) for layer in merged.layers] == [Network] * 3
    torch.testing.assert_close(merged(given["x"]), compiled(given["x"]))
    compiled.save_pretrained(tmp_path)
    loaded = peftc.load(model, tmp_path, given).eval()
    assert torch.equal(loaded(given["x"]), compiled(given["x"]))


def test_a_repeated_layer_goes_through_torch_compile() -> None:
    compiled, given = with_random_adapters(repeated(), "lora:ffn")
    traced: Any = torch.compile(compiled, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(given["x"]), compiled(given["x"]))


@pytest.mark.parametrize("rule", ["lora:ffn", "bottleneck"])
def test_a_repeated_layer_acts_by_any_of_its_paths(rule: str) -> None:
    compiled, _ = with_random_adapters(repeated(), rule)
    x = called()
    first, second = compiled.layers[0](x), compiled.layers[1](x)
    assert torch.equal(first, second)
    with compiled.disable_adapter():
        assert not torch.allclose(compiled.layers[1](x), second)


def test_layers_between_repeated_ones_have_adapters_of_their_own() -> None:
    shared = Network()
    compiled, given = with_random_adapters(Deep(shared, shared, Network()), "lora:ffn")
    assert [each.site.id for each in compiled.peftc_plan.of("lora")] == [
        "layers.0.u:up",
        "layers.0.d:down",
        "layers.2.u:up",
        "layers.2.d:down",
    ]
    assert [each.site.layer for each in compiled.peftc_plan.of("lora")] == [0, 0, 2, 2]
    torch.testing.assert_close(compiled.merge_and_unload()(given["x"]), compiled(given["x"]))


@pytest.mark.parametrize("rule", ["lora:q,v", "prefix:2"])
def test_a_block_acts_with_the_adapters_of_what_another_block_shares_with_it(rule: str) -> None:
    compiled, _ = with_random_adapters(Deep(*blocks()), rule)
    x = called()
    second = compiled.layers[1](x)
    with compiled.disable_adapter():
        assert not torch.allclose(compiled.layers[1](x), second)


@pytest.mark.parametrize("rule", ["bottleneck", "houlsby"])
def test_children_of_a_sequential_root_may_share_a_module(rule: str) -> None:
    model = nn.Sequential(*blocks())
    compiled, given = with_random_adapters(model, rule)
    paths = {name for name, _ in model.named_modules()}
    assert {each.site.path for each in compiled.peftc_plan.applications} <= paths
    assert compiled(given["input"]).isfinite().all()


def test_modules_inside_a_shared_one_have_whole_paths() -> None:
    sites = peftc.sites(nn.Sequential(*blocks()), {"input": called()})
    assert [each.id for each in sites if each.role == "ffn"] == ["0.network:ffn", "1.network:ffn"]
    assert [each.id for each in sites if each.role == "attention"] == ["0.attention.core:attention"]
