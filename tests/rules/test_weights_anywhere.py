"""A weight that a product reads is a site, however the module reads it; and one weight has one update, wherever it is read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import MergeError
from tests.models import bert, llama, randomise, tokens
from tests.rules.test_updates import close
from tests.zoo import entry, inputs

RANK, ALPHA = 2, 4


def own_delta(compiled: Any, application: Any) -> Tensor:
    """scale · B A of one application, [d_out d_in], or [stack d_out d_in]."""
    a, b = (compiled.get_parameter(made.path) for made in application.parameters)
    delta: Tensor = ALPHA / RANK * (b @ a)
    return delta


def moved(model: nn.Module, compiled: Any) -> nn.Module:
    """A copy of a model, each weight the sum of what it was and of its updates, with gradients to these."""
    reference = copy.deepcopy(model)
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for application in compiled.peftc_plan.applications:
        site, path = application.site, application.site.weights["W"]
        made = {id(compiled.get_parameter(each.path)) for each in application.parameters}
        if made <= seen:  # one update, under another name of its weight
            continue
        seen |= made
        held = weights.get(path, model.get_parameter(path).detach())
        delta = own_delta(compiled, application)
        delta = delta.mT if site.axes("W")[-1] == "d_out" else delta
        if site.rows is None:
            weights[path] = held + delta.reshape(held.shape)
            continue
        index = torch.cat([torch.arange(*each) for each in site.rows])
        weights[path] = held.index_add(site.axes("W").index("d_out"), index, delta)
    for path, weight in weights.items():
        before = reference.get_parameter(path)
        for module in reference.modules():  # wherever it is tied to
            for name, own in list(module.named_parameters(recurse=False)):
                if own is before:
                    del module._parameters[name]
                    setattr(module, name, weight)
    return reference


def same_as_moved(model: nn.Module, spec: str, given: dict[str, Any], merges: bool = True) -> Any:
    """Compile and compare values, gradients and the merged model; the compiled module comes back."""
    compiled: Any = peftc.compile(model, [f"{spec}(rank={RANK}, alpha={ALPHA})"], given, defaults=False)
    randomise(compiled)
    reference = moved(model, compiled)
    got, want = first(compiled(**given)), first(reference(**given))
    close(got, want)
    assert (got - first(model(**given))).abs().max() > 1e-4
    weights, trained = torch.randn(want.shape), [each for each in compiled.parameters() if each.requires_grad]
    ours = torch.autograd.grad((got * weights).sum(), trained)
    theirs = torch.autograd.grad((want * weights).sum(), trained)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    if merges:
        with torch.no_grad():
            close(first(compiled.merge_and_unload()(**given)), want)
    return compiled


def first(output: Any) -> Tensor:
    held: Tensor = output if isinstance(output, Tensor) else output.logits
    return held


class Attended(nn.Module):
    """The library's own attention, of one sequence or of two."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **settings)
        nn.init.normal_(self.attention.in_proj_bias)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        source = x if source is None else source
        out: Tensor = self.head(self.attention(x, source, source, need_weights=False)[0])
        return out


@pytest.mark.parametrize("spec", ["lora:q,v", "lora:k", "lora:attention"])
@pytest.mark.parametrize("crossed", [False, True])
def test_attention_of_torch(spec: str, crossed: bool) -> None:
    given = {"x": torch.randn(2, 5, 16)} | ({"source": torch.randn(2, 7, 16)} if crossed else {})
    compiled = same_as_moved(Attended().eval(), spec, given)
    rows = {each.site.part: each.site.rows for each in compiled.peftc_plan.applications}
    want = {"q": ((0, 16),), "k": ((16, 32),), "v": ((32, 48),), "o": None}
    assert rows == {part: want[part] for part in rows}
    assert len(rows) == (1 if spec.endswith("k") else 2 if "," in spec else 4)


def test_attention_of_torch_with_weights_of_its_own_for_each() -> None:
    given = {"x": torch.randn(2, 5, 16), "source": torch.randn(2, 7, 12)}
    same_as_moved(Attended(kdim=12, vdim=12).eval(), "lora:attention", given)


class Einsums(nn.Module):
    """Heads as axes of the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward = nn.Parameter(torch.randn(6, 2, 3))  # width, heads, head width
        self.outward = nn.Parameter(torch.randn(2, 3, 6))
        self.turned = nn.Parameter(torch.randn(6, 2, 3))
        self.kernel = nn.Conv1d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.tanh(torch.einsum("bsd,dnh->bnsh", x, self.inward))
        y = torch.einsum("nhd,bnsh->sbd", self.outward, heads).transpose(0, 1)
        y = torch.einsum("bnsh,dnh->bsd", torch.einsum("bsd,dnh->bnsh", y, self.inward).sin(), self.turned)
        return functional.linear(y, self.kernel.weight.squeeze(-1), self.kernel.bias).sin()


def test_einsums() -> None:
    compiled = same_as_moved(Einsums().eval(), "lora:all-linear,head", {"x": torch.randn(2, 4, 6)})
    sizes = {
        each.site.weights["W"]: (each.site.sizes["d_in"], each.site.sizes["d_out"])
        for each in compiled.peftc_plan.applications
    }
    assert sizes == {"inward": (6, 6), "outward": (6, 6), "turned": (6, 6), "kernel.weight": (6, 5)}


class Several(nn.Module):
    """Weights of one module that play one part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (nn.Parameter(torch.randn(6, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.one + functional.linear(x, self.two)).sin()


def test_weights_of_one_module_are_sites_of_their_own() -> None:
    compiled = same_as_moved(Several(), "lora:other", {"x": torch.randn(2, 4, 6)})
    assert [each.site.id for each in compiled.peftc_plan.applications] == ["one:other", "two:other"]


@pytest.mark.slow
def test_a_state_space_model() -> None:
    model = entry("mamba").model()
    compiled = same_as_moved(model, "lora:path=*.out_proj", inputs(model))
    assert len(compiled.peftc_plan.applications) == 2
    plan = peftc.plan(model, ["lora:conv,head"], inputs(model), defaults=False)
    (skip,) = {skip.reason for skip in plan.skips if skip.site.part == "conv"}
    assert skip.startswith("rank < d_in is not so")


class Repeated(nn.Module):
    """One layer, twelve times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.tanh(self.layer(x))
        out: Tensor = self.head(x)
        return out


def test_one_module_called_twelve_times() -> None:
    compiled = same_as_moved(Repeated(), "lora:up", {"x": torch.randn(2, 8)})
    assert len(compiled.peftc_plan.applications) == 1
    model = entry("albert").model(num_hidden_layers=12)
    compiled = same_as_moved(model, "lora:q", inputs(model))
    assert len(compiled.peftc_plan.applications) == 1


class Tied(nn.Module):
    """One weight under the names of two modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))
        return out


def test_tied_weights_have_one_update() -> None:
    compiled = same_as_moved(Tied(), "lora:up", {"x": torch.randn(2, 8)})
    assert len({id(parameter) for parameter in compiled.parameters() if parameter.requires_grad}) == 2
    assert {each.site.path for each in compiled.peftc_plan.applications} == {"one", "two"}
    other: Any = peftc.compile(Tied(), ["lora:path=two(rank=2)"], {"x": torch.randn(2, 8)}, defaults=False)
    with pytest.raises(MergeError, match="one:up reads the same weight, and would change with it"):
        other.merge_and_unload()


@pytest.mark.parametrize("make", [llama, lambda: entry("gpt2").model()])
def test_an_update_of_a_tied_head_leaves_the_table_alone(make: Any) -> None:
    model = make()
    plan = peftc.plan(model, ["lora:head(rank=2)"], defaults=False)
    assert any("it cannot be merged" in note for note in plan.notes)
    compiled: Any = peftc.compile(model, ["lora:head(rank=2)"], defaults=False).eval()
    randomise(compiled)
    with pytest.raises(MergeError, match=r"reads the same weight.*\n.*untie"):
        compiled.merge_and_unload()
    ids = tokens()
    with torch.no_grad():
        states = [
            each(input_ids=ids, output_hidden_states=True).hidden_states[-1] for each in (compiled, model)
        ]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)  # of a product that is spelled in another way


def test_parts_of_one_weight_that_do_not_overlap_merge() -> None:
    assert peftc.plan(bert(), ["lora:q"], defaults=False).notes == ()
    model = entry("gpt2").model()
    same_as_moved(model, "lora:q,v", inputs(model))
