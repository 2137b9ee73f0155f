"""The output projection of attentions whose results stand side by side with others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.analyse import analyse
from tests.graphs import captured
from tests.zoo import entry, inputs

D, HEADS = 12, 3
GIVEN = {"x": torch.randn(2, 5, D)}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(D, D // HEADS) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = (self.first(x) @ self.second(x).mT / 2).softmax(-1) @ self.third(x)
        return made


class OneModuleEach(nn.Module):
    def __init__(self, stacked: bool = False) -> None:
        super().__init__()
        self.heads, self.last = nn.ModuleList(Head() for _ in range(HEADS)), nn.Linear(D, D)
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        made = [head(x) for head in self.heads]
        gathered = torch.stack(made, -2).flatten(-2) if self.stacked else torch.cat(made, -1)
        result: Tensor = x + self.last(gathered)
        return result


class SideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = Head(), nn.Linear(D, 20), nn.Linear(D // HEADS + 20, D)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.last(torch.cat([self.first(x), functional.gelu(self.wide(x))], -1))
        return made


class InARow(nn.Module):
    """Tokens of two attentions one behind the other, which a pooler reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = Head(), Head(), nn.Linear(D // HEADS, D)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(torch.cat([self.one(x), self.two(x)], 1))
        return made


def part(module: nn.Module, path: str = "last") -> list[str]:
    found = analyse(captured(module, x=GIVEN["x"]).graph, module).sites
    return [site.part for site in found if site.role == "linear" and site.path == path]


@pytest.mark.parametrize("stacked", [False, True])
def test_attentions_in_modules_of_their_own_have_one_output(stacked: bool) -> None:
    module = OneModuleEach(stacked)
    assert part(module) == ["o"]
    assert "attention" in {site.part for site in peftc.sites(module, GIVEN) if site.role == "residual"}
    compiled = peftc.compile(module, ["lora:attention(rank=2)"], GIVEN)
    assert any(name.startswith("last.") for name, each in compiled.named_parameters() if each.requires_grad)
    assert peftc.check(compiled, GIVEN).passed


def test_an_output_that_attention_shares_with_a_network_is_the_attention_s() -> None:
    module = SideBySide()
    assert part(module) == ["o"]
    assert part(module, "wide") == [""]


def test_tokens_in_a_row_are_not_side_by_side() -> None:
    assert part(InARow()) == ["head"]


def test_attentions_that_are_taken_from_each_other_have_one_output() -> None:
    model = entry("diffllama").model()
    found = [site for site in peftc.sites(model, inputs(model)) if site.part == "o"]
    assert len(found) == model.config.num_hidden_layers
