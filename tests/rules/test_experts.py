"""Stacks of expert matrices as linear sites: updates by hand and by HF PEFT, other rules, and every form of product."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import NoMatchError
from tests.models import randomise
from tests.rules.test_updates import close
from tests.zoo import entry, inputs

RANK, ALPHA = 3, 6
SCALE = ALPHA / RANK
SPEC = f"lora:gate,up,down(rank={RANK}, alpha={ALPHA})"


def model_of(model_type: str, way: str) -> Any:
    """A tiny mixture of experts that computes its products in one of the library's ways."""
    model = entry(model_type).model()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = way
    return model


def own_parameters(compiled: Any, path: str) -> dict[str, dict[str, Tensor]]:
    """Part → name → parameter, of the applications at one module."""
    return {
        each.site.part: {made.name: compiled.get_parameter(made.path) for made in each.parameters}
        for each in compiled.peftc_plan.applications
        if each.site.path == path
    }


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


class ByHand(nn.Module):
    """Token by token, expert by expert: (W_e + scale · B_e A_e) x + b_e, gated as the model gates."""

    def __init__(self, own: Any, parts: dict[str, dict[str, Tensor]]) -> None:
        super().__init__()
        self.own, self.parts = own, parts

    def product(self, name: str, x: Tensor, expert: int) -> Tensor:
        weight = getattr(self.own, name)[expert]
        y: Tensor = x @ (weight if self.own.is_transposed else weight.T)
        bias: Tensor | None = getattr(self.own, f"{name}_bias", None)
        return y if bias is None else y + bias[expert]

    def update(self, part: str, x: Tensor, expert: int) -> Tensor:
        made = self.parts[part]
        out: Tensor = SCALE * made["B"][expert] @ (made["A"][expert] @ x)
        return out

    def forward(self, tokens: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        rows = []
        for token, chosen, each in zip(tokens, experts.tolist(), weights, strict=True):
            total = torch.zeros_like(token)
            for number, weight in zip(chosen, each, strict=True):
                gate, up = (self.update(part, token, number) for part in ("gate", "up"))
                both = (
                    torch.stack([gate, up], -1).flatten() if self.own.is_transposed else torch.cat([gate, up])
                )
                inner = self.own._apply_gate(self.product("gate_up_proj", token, number) + both)
                total = total + weight * (
                    self.product("down_proj", inner, number) + self.update("down", inner, number)
                )
            rows.append(total)
        return torch.stack(rows)


def with_hands(model: Any, compiled: Any) -> Any:
    """A copy of a model whose experts are written out."""
    reference = copy.deepcopy(model)
    for path in {each.site.path for each in compiled.peftc_plan.applications}:
        reference.set_submodule(path, ByHand(reference.get_submodule(path), own_parameters(compiled, path)))
    return reference


@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_the_equation(model_type: str, way: str) -> None:
    model = model_of(model_type, way)
    given = inputs(model)
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    assert len(compiled.peftc_plan.applications) == 6
    randomise(compiled)
    reference = with_hands(model, compiled)
    trained = [parameter for parameter in compiled.parameters() if parameter.requires_grad]
    got, want = compiled(**given).logits, reference(**given).logits
    close(got, want)
    assert (got - model(**given).logits).abs().max() > 1e-2
    weights = torch.randn(want.shape)
    ours = torch.autograd.grad((got * weights).sum(), trained)
    theirs = torch.autograd.grad((want * weights).sum(), trained)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with torch.no_grad():
        close(compiled.merge_and_unload()(**given).logits, want)
        with compiled.disable_adapter():
            close(compiled(**given).logits, model(**given).logits)


def test_it_starts_as_the_model_and_each_expert_by_itself() -> None:
    model = model_of("mixtral", "grouped_mm")
    compiled: Any = peftc.compile(model, [SPEC], inputs(model), defaults=False).eval()
    with torch.no_grad():
        assert torch.equal(compiled(**inputs(model)).logits, model(**inputs(model)).logits)
    for parts in (own_parameters(compiled, "model.layers.0.mlp.experts"),):
        bound = (1 / parts["down"]["A"].shape[-1]) ** 0.5  # of one expert's matrix, as of any other
        assert 0.8 * bound < parts["down"]["A"].abs().max() <= bound


def test_one_token_is_a_program_of_its_own() -> None:
    model = model_of("mixtral", "grouped_mm")
    compiled: Any = peftc.compile(model, [SPEC], inputs(model), defaults=False).eval()
    randomise(compiled)
    ids = inputs(model)["input_ids"]
    with torch.no_grad():
        merged = compiled.merge_and_unload()
        told: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(compiled.generate(ids, **told), merged.generate(ids, **told))


def test_logits_and_gradients_are_those_of_hf_peft() -> None:
    from peft import LoraConfig, get_peft_model

    model = model_of("mixtral", "grouped_mm")
    given = inputs(model)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[], target_parameters=targets)
    theirs: Any = get_peft_model(copy.deepcopy(model), config).eval()
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    randomise(compiled)
    pairs = []
    with torch.no_grad():
        for name, wrapper in theirs.named_modules():
            if not hasattr(wrapper, "parameter_name"):
                continue
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            parts = own_parameters(compiled, path)
            own = [parts["down"]] if wrapper.parameter_name == "down_proj" else [parts["gate"], parts["up"]]
            for other in own[1:]:
                other["A"].copy_(own[0]["A"])  # theirs has one A for both halves
            a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
            a.copy_(own[0]["A"].flatten(0, 1))
            b.copy_(torch.cat([each["B"] for each in own], 1).permute(1, 2, 0).flatten(1))
            pairs.append((own, a, b))
    assert len(pairs) == 4
    got, want = compiled(**given).logits, theirs(**given).logits
    close(got, want)
    weights = torch.randn(want.shape)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    for own, a, b in pairs:
        of_a = torch.stack([gradient(each["A"]) for each in own]).sum(0).flatten(0, 1)
        of_b = torch.cat([gradient(each["B"]) for each in own], 1).permute(1, 2, 0).flatten(1)
        assert (of_a - a.grad).abs().max() <= 1e-5 * a.grad.abs().max()
        assert (of_b - b.grad).abs().max() <= 1e-5 * b.grad.abs().max()


class Forms(nn.Module):
    """One stack of matrices [3 d_out d_in] or [3 d_in d_out], read in one of many ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        turned = form in ("bmm", "baddbmm", "grouped", "picked")
        self.form = form
        self.experts: Any = nn.Module()
        self.experts.weight = nn.Parameter(torch.randn(3, *((4, 5) if turned else (5, 4))))
        if form == "below":  # one matrix below the other
            self.experts.weight = nn.Parameter(self.experts.weight.detach().flatten(0, 1))
        self.experts.bias = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        """x [3 rows 4] or [rows 4]; which matrix each row meets, in order."""
        weight, bias = self.experts.weight, self.experts.bias
        y: Tensor
        match self.form:
            case "bmm":
                y = torch.bmm(x, weight)
            case "baddbmm":
                y = torch.baddbmm(bias.unsqueeze(1), x, weight)
            case "matmul":
                y = x @ weight.mT + bias[:, None]
            case "einsum":
                y = torch.einsum("eri,eoi->ero", x, weight)
            case "left":
                y = torch.einsum("eoi,eri->eor", weight, x).mT
            case "below":
                y = torch.bmm(x, weight.view(3, 5, 4).mT)
            case "picked":
                y = torch.bmm(x.unsqueeze(1), weight[numbers]).squeeze(1) + bias[numbers]
            case "picked left":
                y = torch.bmm(weight[numbers], x.unsqueeze(-1)).squeeze(-1)
            case "grouped":
                ends = torch.cumsum(torch.histc(numbers.float(), 3, 0, 2), 0, dtype=torch.int32)
                y = torch.ops.transformers.grouped_mm_fallback(x, weight, ends) + bias[numbers]
            case _:  # one after the other
                y = torch.stack([nn.functional.linear(x[e], weight[e], bias[e]) for e in range(3)])
        return torch.tanh(y).sin()


FORMS = ["bmm", "baddbmm", "matmul", "einsum", "left", "below", "picked", "picked left", "grouped", "each"]


def rows(form: str) -> dict[str, Tensor]:
    import transformers.integrations.moe  # noqa: F401 - registers the product of groups

    torch.manual_seed(3)
    numbers = torch.tensor([0, 0, 1, 2, 2, 2])
    flat = form in ("picked", "picked left", "grouped")
    return {"x": torch.randn(6, 4) if flat else torch.randn(3, 2, 4), "numbers": numbers}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_product(form: str) -> None:
    model: Any = Forms(form).eval()
    given = rows(form)
    compiled: Any = peftc.compile(model, ["lora:all-linear(rank=2, alpha=2)"], given, defaults=False)
    randomise(compiled)
    (application,) = compiled.peftc_plan.applications
    assert application.site.sizes == {"d_in": 4, "d_out": 5, "experts": 3}
    assert ("b" in application.site.weights) == (form in ("baddbmm", "matmul", "picked", "grouped", "each"))
    a, b = (compiled.get_parameter(made.path) for made in application.parameters)
    assert (a.shape, b.shape) == ((3, 2, 4), (3, 5, 2))
    reference = copy.deepcopy(model)
    weight, delta = model.experts.weight.detach(), b @ a
    turned = form in ("bmm", "baddbmm", "grouped", "picked")
    moved = weight + (delta.mT if turned else delta).reshape(weight.shape)
    del reference.experts._parameters["weight"]
    reference.experts.weight = moved
    got, want = compiled(**given), reference(**given)
    close(got, want)
    weights = torch.randn(want.shape)
    ours = torch.autograd.grad((got * weights).sum(), (a, b))
    theirs = torch.autograd.grad((want * weights).sum(), (a, b))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with torch.no_grad():
        close(compiled.merge_and_unload()(**given), want)


MAGNITUDE = """
format = 1
name = "magnitude"
summary = "A low-rank update of the directions of a matrix's rows, and their lengths."
shorthand = "part"
options.rank = { default = 2, min = 1 }
match = { role = "linear", part = "all-linear", values = { x = "* d_in", W = "d_out d_in", y = "* d_out" } }
[parameters]
A = { axes = "rank d_in", init = "kaiming_uniform" }
B = { axes = "d_out rank", init = "zeros" }
m = { axes = "d_out", init = "length(W, axis='d_in')" }
[let]
V = "W + B @ A"
factor = "m / length(V, axis='d_in')"
[rewrite]
y = "(y - b) * factor + (x @ A @ B) * factor + b"
[merge]
W = "V * factor"
"""


@pytest.mark.parametrize("form", ["baddbmm", "picked", "grouped", "each"])
def test_a_rule_that_reads_weight_and_bias(form: str, tmp_path: Any) -> None:
    (tmp_path / "magnitude.toml").write_text(MAGNITUDE)
    model, given = Forms(form).eval(), rows(form)
    rule = tmp_path / "magnitude.toml"
    with torch.no_grad():
        close(peftc.compile(model, [rule], given, defaults=False)(**given), model(**given))
    compiled: Any = peftc.compile(model, [rule], given, defaults=False)
    randomise(compiled)
    (application,) = compiled.peftc_plan.applications
    a, b, m = (compiled.get_parameter(made.path) for made in application.parameters)
    weight = model.experts.weight
    own = weight if form == "each" else weight.mT
    moved = own + b @ a
    moved = moved / moved.norm(dim=-1, keepdim=True) * m.unsqueeze(-1)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.experts.weight.copy_(moved if form == "each" else moved.mT)
        close(compiled(**given), reference(**given))
        close(compiled.merge_and_unload()(**given), reference(**given))


def test_gradients_of_what_each_row_brings_with_it(tmp_path: Any) -> None:
    (tmp_path / "magnitude.toml").write_text(MAGNITUDE)
    grads = []
    for form in ("grouped", "picked"):  # the same mathematics in two ways
        model, given = Forms(form).eval(), rows(form)
        compiled: Any = peftc.compile(model, [tmp_path / "magnitude.toml"], given, defaults=False)
        randomise(compiled)
        compiled(**given).square().sum().backward()
        grads.append([parameter.grad for parameter in compiled.parameters() if parameter.requires_grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("adalora:up", "adds to the loss is for single matrices"),
        ("{loss}", "gram would mix the experts"),
        ("{seq}", "the rows of x, y stand in no order that has names"),
        ("{experts}", "which is the name of something else here"),
    ],
)
def test_what_cannot_be_lifted_is_left_out_with_its_reason(rule: str, reason: str, tmp_path: Any) -> None:
    written = {
        "loss": "y = \"y + rename(y @ gram(v, axis='d_out', to='e'), axis='e', to='d_out')\"",
        "seq": "y = \"y + mean(x, axis='seq') @ M\"",
        "experts": 'y = "y * experts"',
    }
    key = rule.strip("{}")
    if key in written:
        values = ', values = { x = "batch seq d_in", y = "batch seq d_out" }' if key == "seq" else ""
        parameters = {
            "loss": 'v = { axes = "d_out", init = "ones" }',
            "seq": 'M = { axes = "d_out d_in", init = "zeros" }',
            "experts": 'experts = { axes = "d_out", init = "ones" }',
        }[key]
        (tmp_path / "own.toml").write_text(
            f'format = 1\nname = "own"\nsummary = "."\nmatch = {{ role = "linear", part = "up"{values} }}\n'
            f"[parameters]\n{parameters}\n[rewrite]\n{written[key]}\n"
        )
        rule = str(tmp_path / "own.toml")
    model = model_of("mixtral", "grouped_mm")
    with pytest.raises(NoMatchError) as caught:
        peftc.plan(model, [rule], inputs(model), defaults=False)
    assert reason in str(caught.value)


def test_biases_of_experts_train_and_none_is_put_in() -> None:
    model = model_of("gpt_oss", "grouped_mm")
    plan = peftc.plan(model, ["bitfit:down"], inputs(model), defaults=False)
    assert "model.layers.0.mlp.experts.down_proj_bias" in plan.trained
    model = model_of("mixtral", "grouped_mm")
    plan = peftc.plan(model, ["bitfit:down,o"], inputs(model), defaults=False)
    reasons = {skip.reason for skip in plan.skips if skip.site.part == "down"}
    assert reasons == {"it is a stack of experts, which has no place for a b that is put in"}


def test_all_linear_has_experts_and_router() -> None:
    model = model_of("qwen3_moe", "grouped_mm")
    plan = peftc.plan(model, ["lora:all-linear(rank=2)"], inputs(model), defaults=False)
    found = {(each.site.part, each.site.stack) for each in plan.applications}
    assert {("gate", "experts"), ("up", "experts"), ("down", "experts"), ("router", "")} <= found


def test_an_adapter_is_read_back(tmp_path: Any) -> None:
    model = model_of("gpt_oss", "grouped_mm")
    given = inputs(model)
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    randomise(compiled)
    compiled.save_pretrained(tmp_path)
    again: Any = peftc.load(model, tmp_path, given).eval()
    with torch.no_grad():
        assert torch.equal(again(**given).logits, compiled(**given).logits)
