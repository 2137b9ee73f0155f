"""The last linear maps before the outputs are heads, whatever is done to what they make; nothing else is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForQuestionAnswering, BertModel

from peftc.analyse import analyse
from tests.graphs import captured

WIDTH, CLASSES = 8, 2
BEHIND: dict[str, Callable[[Any], Any]] = {
    "split": lambda y: tuple(part.squeeze(-1) for part in y.split(1, -1)),
    "unbind": lambda y: y.unbind(-1),
    "log_softmax": lambda y: functional.log_softmax(y, -1),
    "sigmoid": lambda y: y.sigmoid(),
    "mean": lambda y: y.mean(1),
    "max": lambda y: y.max(1).values,
    "a wide tanh": lambda y: 10 * torch.tanh(y),
    "normalize": lambda y: functional.normalize(y, dim=-1),
    "chunk and exp": lambda y: (y.chunk(2, -1)[0], y.chunk(2, -1)[1].exp()),
    "a norm without a weight": lambda y: functional.layer_norm(y, (CLASSES,)),
    "a mask": lambda y: y.masked_fill(torch.zeros(y.shape[1], dtype=torch.bool)[:, None], -1e9),
    "boxes": lambda y: torch.cat([y[..., :1].sigmoid(), y[..., 1:].exp()], -1),
    "a loss": lambda y: functional.cross_entropy(y.mean(1), torch.zeros(y.shape[0], dtype=torch.long)),
}


class Stream(nn.Module):
    """A network beside a stream, and what is made of the sum."""

    def __init__(self, then: Callable[[Any, Tensor], Any], wide: int = CLASSES) -> None:
        super().__init__()
        self.u, self.d, self.h = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(WIDTH, wide)
        self.g, self.scale, self.norm = (
            nn.Linear(WIDTH, wide),
            nn.Parameter(torch.ones(1)),
            nn.LayerNorm(WIDTH),
        )
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, x + self.d(functional.gelu(self.u(x))))


def heads(model: nn.Module, **inputs: Any) -> set[str]:
    """The names of the heads, as the model calls their modules."""
    found = analyse(captured(model, **inputs).graph, model).sites
    return {site.path for site in found if site.role == "head"}


def heads_of(then: Callable[[Any, Any], Any], wide: int = CLASSES) -> set[str]:
    return heads(Stream(then, wide), x=torch.randn(2, 5, WIDTH))


@pytest.mark.parametrize("how", BEHIND)
def test_a_head_is_found_behind(how: str) -> None:
    assert heads_of(lambda model, x: BEHIND[how](model.h(x))) == {"h"}


@pytest.mark.parametrize(
    ("then", "found"),
    [
        (lambda model, x: model.h(x) * model.scale, {"h"}),
        (lambda model, x: (model.h(x[:, 0]) + model.g(x[:, 1])) / 2, {"h", "g"}),
        (lambda model, x: torch.stack([model.h(x), model.g(x)]), {"h", "g"}),
    ],
    ids=["a learned scale", "two averaged", "two stacked"],
)
def test_heads_are_found_behind_what_the_model_has(then: Callable[[Any, Any], Any], found: set[str]) -> None:
    assert heads_of(then) == found


@pytest.mark.parametrize(
    "then",
    [
        lambda _, x: x,
        lambda model, x: model.norm(x),
        lambda _, x: functional.layer_norm(x, (WIDTH,)).mean(1),
        lambda model, x: x + model.h(x),
        lambda model, x: torch.tanh(model.h(x[:, 0])),
        lambda model, x: model.norm(model.h(x)),
        lambda model, x: model.h(x).softmax(-1) * model.g(x),
    ],
    ids=["stream", "norm", "pooled", "a sum", "pooler", "normed", "router"],
)
def test_a_model_without_a_head_has_none(then: Callable[[Any, Any], Any]) -> None:
    assert heads_of(then, WIDTH) == set()


def test_what_goes_on_to_another_map_is_no_head() -> None:
    def then(model: Any, x: Tensor) -> Any:
        pooled = model.g(x)
        return model.h(pooled), pooled.tanh()

    assert heads_of(then, WIDTH) == {"h"}


def test_heads_of_bert() -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    ids = torch.arange(2, 12).reshape(2, 5)
    assert heads(BertForQuestionAnswering(config), input_ids=ids) == {"qa_outputs"}
    assert heads(BertModel(config), input_ids=ids) == set()
