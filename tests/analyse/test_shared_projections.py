"""One product for an attention and a feed-forward network at once, and what a network's input means there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import NoMatchError
from tests.models import randomise

WIDTH, HEADS, INNER = 12, 3, 20
GIVEN = {"x": torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))}

SCALED_INPUT = """
format  = 1
name    = "scaled_input"
summary = "Rescale what a feed-forward network reads."

[match]
role   = "ffn"
values = { x = "* d_model" }

[parameters]
l = { axes = "d_model", init = "ones" }

[rewrite]
x = "x * l"
"""


class Parallel(nn.Module):
    """Queries, keys, values and both inner halves of a network are slices of one projection."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        self.order, self.widths = order, [WIDTH] * 3 + [INNER] * 2
        self.dense = nn.Linear(WIDTH, sum(self.widths))
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        slices: Any = self.dense(x).split([self.widths[each] for each in self.order], -1)
        q, k, v, gate, up = (slices[self.order.index(part)] for part in range(5))
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (q, k, v))
        gathered = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.one(gathered) + self.other(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Gate and up are two products of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.c = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(functional.silu(self.a(x)) * self.b(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 3, 0, 1)])
def test_each_slice_has_its_part(order: tuple[int, ...]) -> None:
    sites = {site.id: site for site in peftc.sites(Parallel(order), GIVEN)}
    widths = [WIDTH] * 3 + [INNER] * 2
    start = 0
    for part in order:
        name = ("q", "k", "v", "gate", "up")[part]
        assert sites[f"dense:{name}"].rows == ((start, start + widths[part]),)
        start += widths[part]
    assert {"one:o", "other:down"} <= set(sites)
    assert [site.sizes for site in sites.values() if site.role == "ffn"] == [
        {"d_model": WIDTH, "d_ff": INNER}
    ]


@pytest.mark.parametrize(
    "rule", ["lora:q,up(rank=2)", "bottleneck:ffn(size=3)", "parallel:ffn(size=3)", "ia3"]
)
def test_rules_pass_on_slices(rule: str) -> None:
    certificate = peftc.check(peftc.compile(Parallel(), [rule], GIVEN), GIVEN)
    assert certificate.passed, str(certificate)


class Third(nn.Module):
    """A slice of the product goes past the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(WIDTH, 2 * INNER + WIDTH), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, up, past = self.a(x).split([INNER, INNER, WIDTH], -1)
        return x + self.c(functional.silu(gate) * up) + past  # type: ignore[no-any-return]


class Second(nn.Module):
    """The whole product goes to another projection too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.d = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return x + self.c(functional.gelu(y)) + 2 * self.d(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Parallel(), Third(), Second()], ids=lambda each: type(each).__name__)
def test_an_input_that_others_read_is_not_changed_for_the_network_alone(
    model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "scaled_input.toml"
    path.write_text(SCALED_INPUT, encoding="utf-8")
    with pytest.raises(NoMatchError) as caught:
        peftc.compile(model, [str(path)], GIVEN)
    assert "its x is read for other parts too, and cannot be changed for it alone" in str(caught.value)


def test_a_network_s_input_is_changed_for_both_its_products(tmp_path: Path) -> None:
    path = tmp_path / "scaled_input.toml"
    path.write_text(SCALED_INPUT, encoding="utf-8")
    model = Gated()
    compiled: Any = peftc.compile(model, [str(path)], GIVEN).eval()
    randomise(compiled)
    (scale,) = (parameter for parameter in compiled.parameters() if parameter.requires_grad)
    x = GIVEN["x"]
    want = x + model(x * scale) - x * scale
    torch.testing.assert_close(compiled(x=x), want)
