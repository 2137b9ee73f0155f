"""Sliding windows are told by computing masks: those of models, and twins that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from peftc.api import sites
from tests.models import llama, mistral
from tests.zoo import entry


def windows(model: Any, **example: Tensor) -> list[int]:
    return [site.window for site in sites(model, example or None) if site.role == "attention"]


@pytest.mark.parametrize("window", [3, 8, 200, 4096])
def test_a_window_of_any_width(window: int) -> None:
    assert windows(mistral(sliding_window=window, num_hidden_layers=1)) == [window]


def test_other_attentions_have_none() -> None:
    assert windows(llama()) == [0, 0]


def test_both_kinds_in_one_model() -> None:
    assert windows(entry("gemma2").model()) == [8, 0]
    assert windows(entry("modernbert").model()) == [0, 5]


class Attention(nn.Module):
    """Attention to the keys that a function of two places says."""

    def __init__(self, sees: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.sees = sees

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        mask = self.sees(places[:, None], places[None, :])
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("sees", "window"),
    [
        pytest.param(lambda i, j: (j <= i) & (j > i - 6), 6, id="window"),
        pytest.param(lambda i, j: (j <= i) & (i - j <= 600), 601, id="large"),
        pytest.param(lambda i, j: (i - j).abs() <= 3, 4, id="both-sides"),
        pytest.param(lambda i, j: (j <= i) & (i // 6 == j // 6), 0, id="chunks"),
        pytest.param(lambda i, j: (j <= i) & ((j > i - 6) | (j == 0)), 0, id="and-a-sink"),
        pytest.param(lambda i, j: (j <= i) & ((j > i - 600) | (j == 0)), 0, id="large-and-a-sink"),
        pytest.param(lambda i, j: (j <= i) & (j > i - 6 - i // 50), 0, id="grows"),
        pytest.param(lambda i, j: (j <= i) & (i % 5 != 2), 0, id="rows-of-nothing"),
    ],
)
def test_a_twin_that_is_none(sees: Any, window: int) -> None:
    torch.manual_seed(0)
    assert windows(Attention(sees), x=torch.randn(2, 7, 8)) == [window]
