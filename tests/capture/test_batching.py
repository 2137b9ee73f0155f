"""What `torch.vmap` did while a model was traced is written out, and right at other sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.graphs import calls, captured, operators, run


class MaskByPairs(nn.Module):
    """Attention under a mask that is written for one pair of positions, as libraries write masks today."""

    def forward(self, x: Tensor) -> Tensor:
        def near(query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (query - key < 4)

        places = torch.arange(x.shape[2])
        mask = torch.vmap(torch.vmap(near, in_dims=(None, 0)), in_dims=(0, None))(places, places)
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


class ProductByExample(nn.Module):
    """A product with a parameter, and one with a constant, for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        half = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5])

        def one(row: Tensor) -> Tensor:
            return (self.weight @ row.tanh()) * half

        return torch.vmap(one)(x) * 2


def test_a_mask_of_pairs_is_plain_operators() -> None:
    torch.manual_seed(0)
    module = MaskByPairs()
    program = captured(module, x=torch.randn(2, 3, 7, 4))
    assert not [name for name in operators(program) if "batch_dim" in name or "nesting" in name]
    assert calls(program, "scaled_dot_product_attention")[0].kwargs["attn_mask"] is not None
    for length in (2, 7, 12):
        x = torch.randn(3, 3, length, 4)
        assert torch.allclose(run(program, module, x), module(x), atol=1e-6), length


def test_products_in_a_batch_have_their_gradients() -> None:
    torch.manual_seed(0)
    module = ProductByExample()
    program = captured(module, x=torch.randn(4, 6))
    for batch in (4, 9):
        x = torch.randn(batch, 6)
        for output in (run(program, module, x), module(x)):
            output.pow(2).sum().backward()
        assert module.weight.grad is not None
        twice = module.weight.grad.clone()
        module.zero_grad()
        module(x).pow(2).sum().backward()
        assert torch.allclose(twice, 2 * module.weight.grad, rtol=1e-5)
        module.zero_grad()
