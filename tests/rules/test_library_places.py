"""Every rule for linear maps, on experts and on convolutions: none of their files says anything of either."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import NoMatchError
from peftc.lang import default_library
from peftc.runtime.merging import unmergeable
from tests.models import randomise, tokens
from tests.zoo import entry

RULES = [
    rule.name
    for rule in default_library().rules()
    if "linear" in rule.match.role and rule.shorthand == "part" and rule.rewrite
]
SMALL = {"rank": 2, "target": 2, "block": 2, "factor": 4, "size": 2, "length": 2}
"""What options of these names are set to, so that every rule fits narrow matrices."""
REFUSED = {("adalora", "experts"): "what adds to the loss is for single matrices"}


class Pictures(nn.Module):
    """Two convolutions, one of them in groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (
            nn.Conv2d(4, 8, 3, stride=2),
            nn.Conv2d(8, 12, 3, groups=2, padding=1, bias=False),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.two(torch.tanh(self.one(pixels))))


@cache
def place(kind: str) -> tuple[Any, dict[str, Tensor], str]:
    """A model, a call of it, and the parts that are adapted."""
    if kind == "convolutions":
        return Pictures().eval(), {"pixels": torch.randn(2, 4, 11, 9)}, "conv"
    return entry("mixtral").model(num_hidden_layers=1), {"input_ids": tokens(97)}, "gate,down"


def said(model: Any, given: dict[str, Tensor]) -> Tensor:
    out = model(**given)
    held: Tensor = out if isinstance(out, Tensor) else out.logits
    return held


@pytest.mark.parametrize("kind", ["experts", "convolutions"])
@pytest.mark.parametrize("name", RULES)
def test_it_acts_there_as_on_any_matrix(name: str, kind: str, tmp_path: Path) -> None:
    model, given, parts = place(kind)
    rule = default_library().rule(name)
    options = ", ".join(f"{option}={size}" for option, size in SMALL.items() if option in rule.options)
    spec = f"{name}:{parts}" + (f"({options})" if options else "")
    if (name, kind) in REFUSED:
        with pytest.raises(NoMatchError, match=REFUSED[name, kind]):
            peftc.plan(model, [spec], given, defaults=False)
        return
    compiled: Any = peftc.compile(model, [spec], given, defaults=False, data=given).eval()
    plan = compiled.peftc_plan
    stacks = {"experts"} if kind == "experts" else {"", "groups"} if name != "adalora" else {""}
    assert {each.site.stack for each in plan.applications} == stacks
    with torch.no_grad():
        assert (said(compiled, given) - said(model, given)).abs().max() <= 2e-6
    randomise(compiled, scale=0.2)
    out = said(compiled, given)
    assert (out - said(model, given)).abs().max() > 1e-5
    out.square().sum().backward()
    trained = [each for each in compiled.parameters() if each.requires_grad]
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in trained)
    compiled.save_pretrained(tmp_path / "adapter")
    # Trainable, as what was saved: by that, torch chooses how it multiplies.
    again: Any = peftc.load(model, tmp_path / "adapter", given, trainable=True).eval()
    with torch.no_grad():
        assert torch.equal(said(again, given), said(compiled, given))
        assert not unmergeable(plan)
        merged = said(compiled.merge_and_unload(), given)
        assert (merged - out).abs().max() <= 1e-5 * max(1.0, float(out.abs().max()))
