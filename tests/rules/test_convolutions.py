"""Convolutions as linear maps of what they read: low-rank updates by hand and by HF PEFT, and other rules of `linear`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import MergeError, NoMatchError
from tests.models import randomise
from tests.rules.test_updates import close
from tests.zoo import entry, inputs

RANK, ALPHA = 2, 6
SPEC = f"lora:conv(rank={RANK}, alpha={ALPHA})"
LAYERS: dict[str, Any] = {
    "plain": nn.Conv2d(6, 8, 3),
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(6, 8, (3, 2), dilation=(2, 1), padding=(2, 0), bias=False),
    "grouped": nn.Conv2d(6, 9, 3, groups=3, padding=1),
    "same": nn.Conv2d(6, 8, 3, padding="same", dilation=2),
    "reflected": nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "pointwise": nn.Conv2d(6, 8, 1),
}


class Net(nn.Module):
    """A convolution between two nonlinear layers, so that gradients reach it in more ways than one."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv: Any = copy.deepcopy(layer)
        self.norm = nn.BatchNorm2d(layer.out_channels)
        self.head = nn.Linear(layer.out_channels, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(pixels)))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class ByHand(nn.Module):
    """conv(x) + (alpha / rank) · B ∗ (A ∗ x): A has the convolution's kernel, B one of 1; one pair for each group."""

    def __init__(self, conv: Any, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.conv, self.a, self.b = conv, a, b

    def forward(self, x: Tensor) -> Tensor:
        conv, groups = self.conv, self.conv.groups
        rank = self.a.numel() // conv.weight[0].numel()  # of all groups
        inner = copy.copy(conv)
        inner._parameters = {"weight": self.a.reshape(rank, *conv.weight.shape[1:]), "bias": None}
        kernel = self.b.reshape(conv.out_channels, -1, *(1 for _ in conv.kernel_size))
        out: Tensor = conv(x) + ALPHA / RANK * functional.conv2d(inner(x), kernel, groups=groups)
        return out


def pixels(seed: int = 0) -> Tensor:
    return torch.randn(2, 6, 9, 10, generator=torch.Generator().manual_seed(seed))


def compiled_and_own(model: nn.Module, rules: list[Any], data: Any = None) -> tuple[Any, dict[str, Tensor]]:
    """A compiled module with random parameters, and those of its one application by name."""
    given = {"pixels": pixels()} if data is None else data
    compiled: Any = peftc.compile(model.eval(), rules, given, defaults=False)
    randomise(compiled)
    (application,) = compiled.peftc_plan.applications
    return compiled, {each.name: compiled.get_parameter(each.path) for each in application.parameters}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_equation(kind: str) -> None:
    model = Net(LAYERS[kind])
    compiled, own = compiled_and_own(model, [SPEC])
    assert own["A"].shape[-1] == model.conv.weight[0].numel()
    reference = copy.deepcopy(model)
    reference.conv = ByHand(reference.conv, own["A"], own["B"])
    for mode in (False, True):
        got, want = compiled.train(mode)(pixels(3)), reference.train(mode)(pixels(3))
        close(got, want)
        assert (got - model(pixels(3))).abs().max() > 1e-3
        weights = torch.randn(want.shape)
        ours = torch.autograd.grad((got * weights).sum(), list(own.values()))
        theirs = torch.autograd.grad((want * weights).sum(), list(own.values()))
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with torch.no_grad():
        close(compiled.eval().merge_and_unload()(pixels(3)), compiled(pixels(3)))


def test_it_starts_as_the_model_it_came_from() -> None:
    model = Net(LAYERS["strided"]).eval()
    compiled: Any = peftc.compile(model, [SPEC], {"pixels": pixels()}, defaults=False)
    with torch.no_grad():
        assert torch.equal(compiled.eval()(pixels(4)), model(pixels(4)))


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_logits_and_gradients_are_those_of_hf_peft(drop: float) -> None:
    from peft import LoraConfig, get_peft_model

    model = entry("resnet").model()
    given = {**inputs(model), "labels": torch.tensor([0, 1])}
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=drop, target_modules=targets)
    theirs: Any = get_peft_model(copy.deepcopy(model), config)
    spec = f"lora:conv(rank={RANK}, alpha={ALPHA}, drop={drop})"
    compiled: Any = peftc.compile(model, [spec], given, defaults=False)
    randomise(compiled, scale=0.05)
    names = {
        parameter.path: f"base_model.model.{each.site.path}.lora_{parameter.name}.default.weight"
        for each in compiled.peftc_plan.applications
        for parameter in each.parameters
    }
    assert len(names) == 2 * len(targets)
    with torch.no_grad():
        for ours, other in names.items():
            held = theirs.get_parameter(other)
            held.copy_(compiled.get_parameter(ours).reshape(held.shape))
    if not drop:
        with torch.no_grad():
            close(compiled.eval()(**given).logits, theirs.eval()(**given).logits)
    for each in (compiled, theirs):
        torch.manual_seed(5)
        each.train()(**given).loss.backward()
    for ours, other in names.items():
        want = theirs.get_parameter(other).grad
        assert (
            compiled.get_parameter(ours).grad.reshape(want.shape) - want
        ).abs().max() <= 2e-5 * want.abs().max()


MAGNITUDE = """
format = 1
name = "magnitude"
summary = "A low-rank update of the directions of a matrix's rows, and their lengths."
shorthand = "part"
options.rank = { default = 2, min = 1 }
match = { role = "linear", part = "conv", values = { x = "* d_in", W = "d_out d_in", y = "* d_out" } }
[parameters]
A = { axes = "rank d_in", init = "kaiming_uniform" }
B = { axes = "d_out rank", init = "zeros" }
m = { axes = "d_out", init = "length(W, axis='d_in')" }
[let]
V = "W + B @ A"
factor = "m / length(V, axis='d_in')"
[rewrite]
y = "y + x @ (V * factor - W)"
[merge]
W = "V * factor"
"""


@pytest.mark.parametrize("kind", ["strided", "grouped"])
def test_a_rule_that_reads_the_weight(kind: str, tmp_path: Any) -> None:
    (tmp_path / "magnitude.toml").write_text(MAGNITUDE)
    model = Net(LAYERS[kind]).eval()
    rule = tmp_path / "magnitude.toml"
    plain: Any = peftc.compile(model, [rule], {"pixels": pixels()}, defaults=False)
    with torch.no_grad():
        close(plain(pixels(3)), model(pixels(3)))  # m starts as the lengths, for each group too
    compiled, own = compiled_and_own(model, [rule])
    weight = model.conv.weight
    groups = model.conv.groups
    flat = weight.reshape(groups, -1, weight[0].numel())
    moved = flat + (own["B"] @ own["A"]).reshape(flat.shape)
    scaled = moved / moved.norm(dim=-1, keepdim=True) * own["m"].reshape(groups, -1, 1)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.conv.weight.copy_(scaled.reshape(weight.shape))
        close(compiled(pixels(3)), reference(pixels(3)))
        close(compiled.merge_and_unload()(pixels(3)), reference(pixels(3)))


SCALED = """
format = 1
name = "scaled"
summary = "An update of what is read, weighed and squashed."
options.width = { default = 3, min = 1 }
match = { role = "linear", part = "conv" }
[parameters]
l = { axes = "d_in", init = "ones" }
D = { axes = "width d_in", init = "kaiming_uniform" }
U = { axes = "d_out width", init = "zeros" }
[rewrite]
y = "y + tanh(x * l) @ D @ U"
"""


def test_what_a_convolution_reads_is_laid_out_where_a_rule_asks_for_it(tmp_path: Any) -> None:
    (tmp_path / "scaled.toml").write_text(SCALED)
    model = Net(LAYERS["strided"]).eval()
    compiled, own = compiled_and_own(model, [tmp_path / "scaled.toml"])
    conv = model.conv
    with torch.no_grad():
        patches = functional.unfold(pixels(3), 3, padding=1, stride=2).mT  # [batch places d_in]
        update = torch.tanh(patches * own["l"]) @ own["D"].T @ own["U"].T
        y = conv(pixels(3))
        y = y + update.mT.reshape(y.shape)
        want = model.head(torch.relu(model.norm(y)).mean((2, 3)))
        close(compiled(pixels(3)), want)
    with pytest.raises(MergeError, match="no change of a weight"):
        compiled.merge_and_unload()


def test_what_follows_may_ask_for_the_layout_in_memory() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(4, 6, 3), nn.Linear(6 * 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.conv(x).view(x.shape[0], -1))
            return out

    model, x = Viewed(), torch.randn(2, 4, 10)
    compiled: Any = peftc.compile(model, ["lora:conv(rank=2)"], {"x": x}, defaults=False).eval()
    randomise(compiled)
    with torch.no_grad():
        close(compiled.merge_and_unload()(x), compiled(x))


def test_all_linear_leaves_convolutions_alone_and_says_so() -> None:
    plan = peftc.plan(Net(LAYERS["plain"]), ["lora:head,conv(rank=2)"], {"pixels": pixels()}, defaults=False)
    assert {each.site.part for each in plan.applications} == {"head", "conv"}
    vit = entry("vit").model()
    plan = peftc.plan(vit, ["lora:all-linear(rank=2)"], inputs(vit), defaults=False)
    reasons = {skip.site.path: skip.reason for skip in plan.skips}
    assert reasons["vit.embeddings.patch_embeddings.projection"] == "part conv is not among all-linear"


def test_a_convolution_of_each_channel_alone_has_no_update_of_lower_rank() -> None:
    model = Net(nn.Conv2d(6, 6, 3, groups=6))
    with pytest.raises(NoMatchError, match="rank < d_out is not so"):
        peftc.plan(model, ["lora:conv(rank=2)"], {"pixels": pixels()}, defaults=False)
    plan = peftc.plan(model, ["bitfit"], {"pixels": pixels()}, defaults=False)
    assert "conv.bias" in plan.trained
    assert "norm.bias" in plan.trained


WEIGHED = """
format = 1
name = "weighed"
summary = "What is read, weighed."
match = { role = "linear", part = "conv" }
parameters.l = { axes = "d_in", init = "ones" }
rewrite.x = "x * l"
merge.W = "W * l"
"""


def test_groups_are_left_out_where_a_rule_cannot_be_lifted() -> None:
    with pytest.raises(
        NoMatchError, match="it is a stack of groups, and what adds to the loss is for single"
    ):
        peftc.plan(Net(LAYERS["grouped"]), ["adalora:conv(rank=2, target=2)"], {"pixels": pixels()})


@pytest.mark.parametrize("kind", ["strided", "grouped"])
def test_what_is_read_may_be_rewritten(kind: str, tmp_path: Any) -> None:
    """The convolution is then a product of its patches, before and after other rules."""
    (tmp_path / "weighed.toml").write_text(WEIGHED)
    model: Any = Net(LAYERS[kind]).eval()
    weight = model.conv.weight.detach()
    flat = weight.reshape(model.conv.groups, -1, weight[0].numel())
    for rules in ([tmp_path / "weighed.toml", SPEC], [SPEC, tmp_path / "weighed.toml"]):
        compiled: Any = peftc.compile(model, rules, {"pixels": pixels()}, defaults=False).eval()
        randomise(compiled)
        made = {
            name: compiled.get_parameter(each.path)
            for application in compiled.peftc_plan.applications
            for each in application.parameters
            for name in [each.name]
        }
        factor = made["l"].reshape(model.conv.groups, 1, -1)
        delta = (ALPHA / RANK * made["B"] @ made["A"]).reshape(flat.shape)
        moved = (flat + delta) * factor if rules[1] == SPEC else flat * factor + delta
        reference = copy.deepcopy(model)
        with torch.no_grad():
            reference.conv.weight.copy_(moved.reshape(weight.shape))
            close(compiled(pixels(3)), reference(pixels(3)))
            close(compiled.merge_and_unload()(pixels(3)), reference(pixels(3)))


KINDS = ["resnet", "mobilenet_v2", "regnet", "poolformer", "pp_lcnet", "wav2vec2", "mobilenet_v1", "convnext"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
def test_architectures(model_type: str) -> None:
    """They train, a step changes what they say, and the trained adapter merges."""
    model = entry(model_type).model()
    given = inputs(model)
    compiled: Any = peftc.compile(model, ["lora:conv(rank=2)"], given, defaults=False).train()
    trained = [parameter for parameter in compiled.parameters() if parameter.requires_grad]
    randomise(compiled, scale=0.05)
    said(compiled, given).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    with torch.no_grad():
        beside = said(compiled.eval(), given)
        close(said(compiled.merge_and_unload().eval(), given), beside)
        with compiled.disable_adapter():
            assert not torch.allclose(said(compiled, given), beside, atol=1e-6)


def said(model: nn.Module, given: dict[str, Any]) -> Tensor:
    """The logits, or the first value of a model that has none."""
    output = model(**given)
    held: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return held
