"""Modules that look like something they are not: what they are shown as instead, and what is not said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.analyse import analyse
from peftc.lang.roles import ROLES
from peftc.runtime import capture_example
from tests.models import randomise

WIDTH, HEADS = 12, 3
GIVEN = {"x": torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))}
Sites = dict[str, dict[str, tuple[tuple[int, int], ...] | None]]


def linears(model: nn.Module, given: dict[str, Any] | None = None) -> Sites:
    """Path of each linear site → its parts → the rows of each."""
    found: Sites = {}
    for site in peftc.sites(model, GIVEN if given is None else given):
        if site.role == "linear":
            found.setdefault(site.path, {})[site.part or "other"] = site.rows
    return found


def heads(x: Tensor) -> Tensor:
    split: Tensor = x.unflatten(-1, (HEADS, -1))
    return split.transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gathered = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
    return gathered.transpose(1, 2).flatten(2)


class Mixed(nn.Module):
    """One projection, whose channels are mixed before an attention."""

    def __init__(self, mix: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], parts: int) -> None:
        super().__init__()
        self.mix, self.up, self.down = mix, nn.Linear(WIDTH, parts * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(attend(*self.mix(self.up(x))))  # type: ignore[no-any-return]


def summed(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one, other, k, v = y.chunk(4, -1)
    return one + other, k, v


def turned_in_part(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries are the first half of what a rotation makes of all: each is made of channels of both halves."""
    both, k, v = y.split([2 * WIDTH, WIDTH, WIDTH], -1)
    left, right = both.chunk(2, -1)
    return (both * 0.8 + torch.cat([-right, left], -1) * 0.6)[..., :WIDTH], k, v


@pytest.mark.parametrize("mix", [summed, turned_in_part])
def test_a_sum_of_slices_is_made_of_all_of_them(mix: Any) -> None:
    rows = {"q": ((0, 24),), "k": ((24, 36),), "v": ((36, 48),)}
    assert linears(Mixed(mix, 4)) == {"up": rows, "down": {"o": None}}


class Scan(nn.Module):
    """What has the form of a gated feed-forward network: a projection times an activated one, and a way back."""

    def __init__(self, scan: Callable[[Tensor], Tensor], gated: bool = True) -> None:
        super().__init__()
        self.scan, self.gated = scan, gated
        self.up, self.gate, self.down = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return x + self.down(self.scan(self.up(x)) * functional.silu(self.gate(x)))  # type: ignore[no-any-return]
        return x + self.down(functional.silu(self.scan(self.up(x))))  # type: ignore[no-any-return]


def decayed(y: Tensor) -> Tensor:
    held, found = torch.zeros_like(y[:, 0]), []
    for step in range(y.shape[1]):
        held = held * 0.9 + y[:, step]
        found.append(held)
    return torch.stack(found, 1)


def blended(y: Tensor) -> Tensor:
    """As above, where each step is a sum with what it is computed from."""
    held = y[:, 0]
    found = [held]
    for step in range(1, y.shape[1]):
        held = held + 0.1 * (y[:, step] - held)
        found.append(held)
    return torch.stack(found, 1)


def shifted(y: Tensor) -> Tensor:
    return y.roll(1, 1)


def smoothed(y: Tensor) -> Tensor:
    return 0.5 * y + 0.5 * functional.pad(y, (0, 0, 1, 0))[:, :-1]


def largest_tokens(y: Tensor) -> Tensor:
    return y * (y >= y.topk(2, 1).values[:, -1:])


def largest_channels(y: Tensor) -> Tensor:
    return y * (y >= y.topk(2, -1).values[..., -1:])


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("scan", [decayed, blended, shifted, smoothed, largest_tokens])
def test_what_mixes_tokens_is_no_feed_forward_network(scan: Any, gated: bool) -> None:
    model = Scan(scan, gated)
    plain = {"up": {"other": None}, "down": {"other": None}}
    assert linears(model) == plain | ({"gate": {"other": None}} if gated else {})
    assert not [site for site in peftc.sites(model, GIVEN) if site.role in ("ffn", "residual")]


@pytest.mark.parametrize(
    "same",
    [
        lambda y: y,
        lambda y: y.transpose(0, 1).contiguous().transpose(0, 1),
        lambda y: y.flip(1).flip(1),
        largest_channels,
    ],
)
def test_what_leaves_tokens_in_their_places_is_one(same: Any) -> None:
    assert linears(Scan(same)) == {"up": {"up": None}, "gate": {"gate": None}, "down": {"down": None}}


class Weighed(nn.Module):
    """A softmax between two products, which weighs what it is told to."""

    def __init__(self, weigh: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weigh = weigh
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(self.weigh(self.q(x), self.k(x), self.v(x)))  # type: ignore[no-any-return]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return heads(q) @ heads(k).mT * 0.5


def together(gathered: Tensor) -> Tensor:
    return gathered.transpose(1, 2).flatten(2)


def over_heads_of_each_token(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.unflatten(-1, (HEADS, -1)) for each in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).flatten(2)


def fused_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.unflatten(-1, (HEADS, -1)) for each in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).flatten(2)


def over_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (heads(each).mT for each in (q, k, v))
    return together(((q @ k.mT).softmax(-1) @ v).mT)


def over_the_axis_of_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return together(scores(q, k).softmax(1) @ heads(v))


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return together(scores(q, k).softmax(-2) @ heads(v))


def with_more_below(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).exp()
    return together(weights / (1 + weights.sum(-1, keepdim=True)) @ heads(v))


def over_queries_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).exp()
    return together(weights / weights.sum(-2, keepdim=True) @ heads(v))


@pytest.mark.parametrize(
    "weigh",
    [
        over_heads_of_each_token,
        fused_over_heads,
        over_channels,
        over_the_axis_of_heads,
        over_queries,
        with_more_below,
        over_queries_by_hand,
    ],
)
def test_what_weighs_no_keys_is_no_attention(weigh: Any) -> None:
    model = Weighed(weigh)
    assert linears(model) == {name: {"other": None} for name in "qkvo"}
    assert not [site for site in peftc.sites(model, GIVEN) if site.role == "attention"]


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).exp()
    return together(weights / weights.sum(-1, keepdim=True) @ heads(v))


def by_hand_from_the_largest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    held = scores(q, k)
    weights = (held - held.max(-1, keepdim=True).values).exp()
    return together((weights / weights.sum(-1, keepdim=True)) @ heads(v))


@pytest.mark.parametrize("weigh", [by_hand, by_hand_from_the_largest])
def test_a_softmax_by_hand_is_one(weigh: Any) -> None:
    assert linears(Weighed(weigh)) == {name: {name: None} for name in "qkvo"}


def turned_by_complex_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Places as angles: pairs of channels are complex numbers that are turned."""
    angles = torch.outer(torch.arange(q.shape[1]).float(), torch.tensor([1.0, 0.1]))
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(heads(x).float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)

    weights = (turned(q) @ turned(k).mT * 0.5).softmax(-1)
    return together(weights @ heads(v))


def test_roles_reach_through_complex_numbers() -> None:
    model: Any = Weighed(turned_by_complex_numbers)
    assert linears(model) == {name: {name: None} for name in "qkvo"}
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=2)"], GIVEN, defaults=False)
    torch.testing.assert_close(compiled(**GIVEN), model(**GIVEN), atol=1e-5, rtol=1e-5)


def test_a_block_promises_no_port_that_it_has_not() -> None:
    model: Any = nn.Sequential(Weighed(by_hand), Weighed(by_hand))
    _, _, (program, _, _) = capture_example(model, {"input": GIVEN["x"]})
    (first, last) = [each for each in analyse(program.graph, model).located if each.site.role == "block"]
    promised = {name for name, port in ROLES["block"].ports.items() if not port.optional}
    assert all(promised <= set(use.ports) for each in (first, last) for use in each.uses)


class Attending(nn.Module):
    """torch's own attention: with weights asked for it lays heads beside the batch, behind the tokens."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.m = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)

    def forward(self, x: Tensor, need: bool = True) -> Tensor:
        out: Tensor = self.m(x, x, x, need_weights=need)[0]
        return x + out


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need", [True, False])
def test_heads_beside_the_batch_are_heads(batch_first: bool, need: bool) -> None:
    model = Attending(batch_first).eval()
    given = {**GIVEN, "need": need}
    (core,) = [site for site in peftc.sites(model, given) if site.role == "attention"]
    assert (core.sizes["heads"], core.sizes["head_dim"]) == (HEADS, WIDTH // HEADS)
    compiled: Any = peftc.compile(model, ["prefix:3", "lora:q,v(rank=2)"], given, defaults=False).eval()
    randomise(compiled)
    with torch.no_grad():
        one, other = (compiled(GIVEN["x"], need=each) for each in (True, False))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert (one - model(**given)).abs().max() > 1e-2
    assert peftc.check(compiled, given).passed


class OneSequence(nn.Module):
    """Keys and values of widths of their own, projected from the tokens that a call gives: still one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=10, batch_first=True)
        self.k, self.v = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.m(x, self.k(x), self.v(x), need_weights=False)[0]
        return x + out


def test_tokens_that_a_call_gives_are_one_sequence() -> None:
    assert {site.scope for site in peftc.sites(OneSequence(), GIVEN)} == {""}
