"""Which uses are one site: those of the same weights. Others of the same module are told apart by the weights' names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import randomise

WIDTH, HEADS = 12, 3
GIVEN = {"x": torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))}


def ids(model: nn.Module, role: str, given: dict[str, Any] | None = None) -> list[str]:
    """The ids of the sites of a role."""
    return [site.id for site in peftc.sites(model, GIVEN if given is None else given) if site.role == role]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int = HEADS) -> Tensor:
    each = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    return functional.scaled_dot_product_attention(*each).transpose(1, 2).flatten(2)


class Flat(nn.Module):
    """A module whose linear maps are all its own."""

    def __init__(self, names: str) -> None:
        super().__init__()
        for name in names.split():
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def part(self, name: str, x: Tensor) -> Tensor:
        made: Tensor = getattr(self, name)(x)
        return made

    def attention(self, of: str, x: Tensor, y: Tensor, heads: int = HEADS) -> Tensor:
        """x and what it gathers of y."""
        q, k, v, o = (getattr(self, f"{of}{part}") for part in "qkvo")
        return x + o(attend(q(x), k(y), v(y), heads))  # type: ignore[no-any-return]


class TwoAttentions(Flat):
    """Two attentions in one module, with other numbers of heads."""

    def __init__(self) -> None:
        super().__init__("aq ak av ao bq bk bv bo")

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention("a", x, x)
        return self.attention("b", x, x, heads=2)


class TwoSides(Flat):
    """An encoder and a decoder in one module."""

    def __init__(self) -> None:
        super().__init__("eq ek ev eo sq sk sv so cq ck cv co")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.attention("e", y, y)
        x = self.attention("s", x, x)
        return self.attention("c", x, y)


class TwoNetworks(nn.Module):
    """Two feed-forward networks in one module, of which a call may leave out the first."""

    def __init__(self, inner: tuple[int, int] = (20, 20)) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, inner[0]), nn.Linear(inner[0], WIDTH)
        self.c, self.d = nn.Linear(WIDTH, inner[1]), nn.Linear(inner[1], WIDTH)

    def forward(self, x: Tensor, both: bool = True) -> Tensor:
        if both:
            x = x + self.b(functional.gelu(self.a(x)))
        return x + self.d(functional.gelu(self.c(x)))  # type: ignore[no-any-return]


class Twice(nn.Module):
    """One module, called for what it has made."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))  # type: ignore[no-any-return]


def test_two_attentions_of_one_module_are_two_sites() -> None:
    model = TwoAttentions()
    assert ids(model, "attention") == ["aq:attention", "bq:attention"]
    assert ids(model, "residual") == ["ao:residual.attention", "bo:residual.attention"]
    compiled: Any = peftc.compile(model, ["prefix:3"], GIVEN)
    sizes = {
        name.split(".")[-2]: tuple(tensor.shape)
        for name, tensor in compiled.named_parameters()
        if "P_k" in name
    }
    assert sizes == {"attention_aq": (3, 3, 4), "attention_bq": (2, 3, 6)}
    assert compiled(**GIVEN).shape == GIVEN["x"].shape


def test_the_sides_of_a_flat_module_have_scopes_of_their_own() -> None:
    given = {**GIVEN, "y": torch.randn(2, 7, WIDTH)}
    scopes = {site.id: site.scope for site in peftc.sites(TwoSides(), given) if site.role == "attention"}
    assert scopes == {"eq:attention": "encoder", "sq:attention": "decoder", "cq:attention": "cross"}


@pytest.mark.parametrize("inner", [(20, 20), (20, 16)])
def test_two_networks_of_one_module_are_two_sites(inner: tuple[int, int]) -> None:
    model = TwoNetworks(inner)
    assert ids(model, "ffn") == ["b:ffn", "d:ffn"]
    assert ids(model, "residual") == ["b:residual.ffn", "d:residual.ffn"]
    compiled: Any = peftc.compile(model, ["bottleneck:ffn(size=3)"], GIVEN)
    assert {name.split(".")[-2] for name, _ in compiled.named_parameters() if "peftc" in name} == {
        "ffn_b",
        "ffn_d",
    }


@pytest.mark.parametrize("both", [False, True])
def test_a_network_is_the_same_one_in_a_call_that_leaves_out_the_other(both: bool) -> None:
    """Alone it needs no name: yet what a plan of one call says of it is meant in the other."""
    given = {**GIVEN, "both": both}
    model = TwoNetworks()
    assert ids(model, "ffn", given) == (["b:ffn", "d:ffn"] if both else [".:ffn"])
    compiled: Any = peftc.compile(model, ["bottleneck:ffn(size=3)"], given)
    randomise(compiled)
    alone: Any = peftc.compile(model, ["bottleneck:ffn(size=3)"], {**GIVEN, "both": False})
    home, own = "ffn_d" if both else "ffn", dict(compiled.named_parameters())
    with torch.no_grad():
        for name, tensor in alone.named_parameters():
            tensor.copy_(own[name.replace(".ffn.", f".{home}.")])
    assert torch.allclose(compiled(GIVEN["x"], both=False), alone(GIVEN["x"], both=False), atol=1e-6)
    if not both:  # nothing is at the network that the example call left out
        first = GIVEN["x"] + model.b(functional.gelu(model.a(GIVEN["x"])))
        assert torch.allclose(compiled(GIVEN["x"], both=True), alone(first, both=False), atol=1e-6)


def test_a_module_called_twice_is_one_site_with_two_uses() -> None:
    model = Twice(TwoNetworks())
    assert ids(model, "ffn") == ["layer.b:ffn", "layer.d:ffn"]
    assert ids(Twice(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))), "norm") == ["layer.0:norm"]


def test_two_norms_of_one_module_are_two_sites() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
            self.a = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(functional.layer_norm(x, (WIDTH,), self.first))
            return functional.layer_norm(x, (WIDTH,), self.second)

    assert ids(Norms(), "norm") == ["first:norm", "second:norm"]
    compiled = peftc.compile(Norms(), ["layernorm"], GIVEN)
    assert {name for name, each in compiled.named_parameters() if each.requires_grad} == {"first", "second"}


def test_attentions_with_one_query_are_told_apart_by_their_keys() -> None:
    class Decoupled(Flat):
        def __init__(self) -> None:
            super().__init__("q text_k text_v image_k image_v o")

        def forward(self, x: Tensor) -> Tensor:
            q = self.part("q", x)
            text = attend(q, self.part("text_k", x), self.part("text_v", x))
            return x + self.part("o", text + attend(q, self.part("image_k", x), self.part("image_v", x)))

    assert ids(Decoupled(), "attention") == ["text_k:attention", "image_k:attention"]
    assert ids(Decoupled(), "residual") == [".:residual.attention"]


def test_heads_that_are_computed_one_by_one_are_attentions_of_one_projection() -> None:
    class ByHead(Flat):
        def __init__(self) -> None:
            super().__init__("q k v o")

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.part(name, x).chunk(HEADS, -1) for name in "qkv"]
            gathered = [attend(q, k, v, heads=1) for q, k, v in zip(*parts, strict=True)]
            return x + self.part("o", torch.cat(gathered, -1))

    model = ByHead()
    assert ids(model, "attention") == ["q_0:attention", "q_4:attention", "q_8:attention"]
    rows = {site.id: site.rows for site in peftc.sites(model, GIVEN) if site.part in ("q", "k", "v")}
    assert rows == {"q:q": None, "k:k": None, "v:v": None}  # all of each, not the first head's alone
