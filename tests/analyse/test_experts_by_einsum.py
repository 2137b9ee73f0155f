"""Mixtures of experts that are written by einsum: each expert is a matrix of a stack, and the router is told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import randomise

WIDTH, INNER, EXPERTS = 8, 12, 3


class Mixture(nn.Module):
    """Every token goes to every expert, weighed by a router; or to one, picked by it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.norm, self.router = form, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(0.2 * torch.randn(EXPERTS, WIDTH, INNER))
        self.down = nn.Parameter(0.2 * torch.randn(EXPERTS, INNER, WIDTH))
        if "gated" in form:
            self.gate = nn.Parameter(0.2 * torch.randn(EXPERTS, WIDTH, INNER))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x)
        told = self.router(tokens).softmax(-1)
        flat, flatly = tokens.flatten(0, 1), told.flatten(0, 1)
        match self.form:
            case "tokens in two axes":
                inner = functional.silu(torch.einsum("btd,edf->btef", tokens, self.up))
                y = (torch.einsum("btef,efd->bted", inner, self.down) * told[..., None]).sum(-2)
            case "gated":
                gate = functional.silu(torch.einsum("btd,edf->ebtf", tokens, self.gate))
                inner = gate * torch.einsum("btd,edf->ebtf", tokens, self.up)
                y = torch.einsum("ebtd,bte->btd", torch.einsum("ebtf,efd->ebtd", inner, self.down), told)
            case "gated, each product with a copy of the tokens":
                gate = functional.silu(torch.bmm(flat.expand(EXPERTS, -1, -1), self.gate))
                inner = gate * torch.bmm(flat.expand(EXPERTS, -1, -1), self.up)
                y = (torch.bmm(inner, self.down) * flatly.t()[..., None]).sum(0)
            case "weighed at once":
                inner = functional.silu(torch.einsum("nd,edf->nef", flat, self.up))
                y = torch.einsum("nef,efd,ne->nd", inner, self.down, flatly)
            case _:
                picked = flatly.argmax(-1)
                inner = functional.silu(torch.einsum("nd,ndf->nf", flat, self.up[picked]))
                y = torch.einsum("nf,nfd->nd", inner, self.down[picked]) * flatly.amax(-1, keepdim=True)
        result: Tensor = x + y.reshape(x.shape)
        return result


FORMS = (
    "tokens in two axes",
    "gated",
    "gated, each product with a copy of the tokens",
    "weighed at once",
    "picked",
)


@pytest.mark.parametrize("form", FORMS)
def test_experts_and_their_router(form: str) -> None:
    model, x = Mixture(form).eval(), torch.randn(2, 5, WIDTH)
    compiled: Any = peftc.compile(model, ["lora:all-linear(rank=2, alpha=2)"], {"x": x}, defaults=False)
    parts = {(each.role, each.part, each.sizes.get("experts")) for each in compiled.peftc_plan.sites}
    stacks = {"up", "down"} | ({"gate"} if "gated" in form else set())
    assert parts >= {("linear", part, EXPERTS) for part in stacks} | {("linear", "router", None)}
    assert [each.id for each in compiled.peftc_plan.sites if each.role == "ffn"] == [".:ffn"]
    other = torch.randn(3, 7, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(compiled(other), model(other), atol=1e-6, rtol=1e-5)
        randomise(compiled)
        got = compiled(other)
        moved = Mixture(form)
        moved.load_state_dict(model.state_dict())
        for application in compiled.peftc_plan.applications:
            path, rows = application.site.weights["W"], application.site.stored.get("W", ("d_in",))
            a, b = (compiled.get_parameter(made.path) for made in application.parameters)
            delta = b @ a
            turned = rows[-1] == "d_out"
            moved.get_parameter(path).add_(delta.mT if turned else delta)
        torch.testing.assert_close(got, moved(other), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled.merge_and_unload()(other), got, atol=1e-5, rtol=1e-5)


SCALED = """
format = 1
name = "scaled"
summary = "Scales what a network reads."
match = { role = "ffn", values = { x = "* d_model" } }
parameters = { s = { axes = "d_model", init = "ones" } }
rewrite = { x = "x * s" }
"""


@pytest.mark.parametrize("form", FORMS[1:3])
def test_what_a_rule_does_to_the_tokens_reaches_every_product_of_them(form: str, tmp_path: Path) -> None:
    (tmp_path / "scaled.toml").write_text(SCALED)
    model, x = Mixture(form).eval(), torch.randn(2, 5, WIDTH)
    compiled: Any = peftc.compile(model, [tmp_path / "scaled.toml"], {"x": x}, defaults=False)
    randomise(compiled)
    (scale,) = (each for each in compiled.parameters() if each.requires_grad)
    with torch.no_grad():
        got = compiled(x)
        model.up.mul_(scale[:, None])
        model.gate.mul_(scale[:, None])
        torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)
