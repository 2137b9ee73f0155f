"""(IA)³ against its equations, written out by hand and independent of the rule file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import peftc

RULE = Path(__file__).parent / "ia3.toml"
WIDTH, INNER, HEADS = 8, 20, 2


class Layer(nn.Module):
    """An attention and a feed-forward network, with nothing else around them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(linear(x)) for linear in (self.query, self.key, self.value))
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        h = x + self.out(seen.transpose(1, 2).flatten(2))
        result: Tensor = h + self.down(torch.relu(self.up(h)))
        return result


def heads(x: Tensor) -> Tensor:
    """[batch seq width] -> [batch heads seq width/heads]."""
    return torch.unflatten(x, 2, (HEADS, -1)).transpose(1, 2)


def reference(layer: Layer, x: Tensor, l_k: Tensor, l_v: Tensor, l_ff: Tensor) -> Tensor:
    """The paper's equations: softmax(q (l_k ⊙ k)ᵀ / √d) (l_v ⊙ v), and W₂ (l_ff ⊙ relu(W₁ h))."""
    q, k, v = heads(layer.query(x)), heads(l_k * layer.key(x)), heads(l_v * layer.value(x))
    weights = torch.softmax(q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5, dim=-1)
    h = x + layer.out((weights @ v).transpose(1, 2).flatten(2))
    result: Tensor = h + layer.down(l_ff * torch.relu(layer.up(h)))
    return result


def compiled() -> tuple[Layer, Any, Tensor]:
    """The plain layer, the one with the rule in it, and an input [batch seq width]."""
    torch.manual_seed(0)
    layer, x = Layer().double(), torch.randn(3, 5, WIDTH, dtype=torch.float64)
    return layer, peftc.compile(layer, [RULE], {"x": x}), x


def test_starts_as_the_identity() -> None:
    layer, tuned, x = compiled()
    assert torch.equal(tuned(x), layer(x))


def test_is_its_equations() -> None:
    layer, tuned, x = compiled()
    made = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert [p.shape[0] for p in made.values()] == [WIDTH, WIDTH, INNER]
    with torch.no_grad():
        for parameter in made.values():
            parameter.normal_()
    l_k, l_v, l_ff = made.values()
    torch.testing.assert_close(tuned(x), reference(layer, x, l_k, l_v, l_ff), atol=1e-12, rtol=1e-12)
    tuned(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.values())
