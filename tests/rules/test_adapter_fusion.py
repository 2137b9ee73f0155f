"""AdapterFusion: attention over trained adapters, against the paper's equations; which adapters go together."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import CorruptAdapterError, MatchError, SavedAdapterError
from tests.models import BATCH, bert, llama, padding, randomise, tokens

ACTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def t5() -> Any:
    """A tiny encoder and decoder; its feed-forward networks have no biases."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=61, d_model=24, d_ff=40, d_kv=6, num_heads=4, num_layers=2, num_decoder_layers=2,
        dropout_rate=0.0, pad_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def call_of(model: Any) -> dict[str, Tensor]:
    given = {"input_ids": tokens(), "attention_mask": padding()}
    return {**given, "decoder_input_ids": tokens(seed=8)} if model.config.is_encoder_decoder else given


Weights = dict[str, dict[str, Tensor]]
"""Site id → name of a parameter → tensor."""


def saved(
    model: Any, folder: Path, rule: str, names: tuple[str, ...] = ("one", "two")
) -> tuple[dict[str, Path], list[Weights]]:
    """Adapters of one rule with different random weights: the folder of each by its name, and what it holds."""
    adapter: Any = peftc.compile(model, rule, defaults=False)
    held = []
    for number, name in enumerate(names):
        randomise(adapter, seed=number)
        adapter.save_pretrained(folder / name)
        held.append(
            {
                each.site.id: {
                    p.name: adapter.get_parameter(p.path).detach().clone() for p in each.parameters
                }
                for each in adapter.peftc_plan.applications
            }
        )
    return {name: folder / name for name in names}, held


def fused(model: Any, adapters: Mapping[str, Path], rule: str = "adapter_fusion") -> Any:
    """The fusion with queries, keys and values away from where they start."""
    compiled: Any = peftc.compile(model, rule, saved=adapters, defaults=False)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in compiled.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return compiled


class Fusion:
    """What replaces the sum with one adapter: softmax over n of (Q h)·(K z_n), of V z_n."""

    def __init__(
        self,
        adapters: list[dict[str, Tensor]],
        own: Mapping[str, Tensor],
        act: str,
        scale: float,
        parallel: bool,
    ) -> None:
        self.adapters, self.own, self.act, self.scale, self.parallel = adapters, own, act, scale, parallel

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        source = x if self.parallel else y
        query, scores, values = y @ self.own["query"].T, [], []
        for each in self.adapters:
            inner = ACTS[self.act](source @ each["down_w"].T + each["down_b"])
            z = self.scale * (inner @ each["up_w"].T + each["up_b"])
            scores.append((query * (z @ self.own["key"].T)).sum(-1).exp())
            values.append(z @ self.own["value"].T)
        whole = sum(scores)
        return sum(((s / whole)[..., None] * v for s, v in zip(scores, values, strict=True)), torch.zeros(()))


class Network(nn.Module):
    """In place of a feed-forward network as a whole."""

    def __init__(self, own: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.own, self.fusion = own, fusion

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.own(x)
        return y + self.fusion(x, y)


class Half(nn.Module):
    """In place of the encoder's output half of a feed-forward network; its residual is what went in."""

    def __init__(self, own: Any, fusion: Fusion) -> None:
        super().__init__()
        self.own, self.fusion = own, fusion

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        y = self.own.dense(hidden_states)
        out: Tensor = self.own.LayerNorm(y + self.fusion(input_tensor, y) + input_tensor)
        return out


def reference(model: Any, held: list[Weights], compiled: Any, act: str, scale: float, parallel: bool) -> Any:
    """A copy of `model` with the equations written out, of what each adapter held before it was saved."""
    copied = copy.deepcopy(model)
    for each in compiled.peftc_plan.applications:
        own = {p.name.removeprefix("fusion_"): compiled.get_parameter(p.path) for p in each.parameters}
        adapters = [
            {name.removeprefix("bottleneck_"): tensor for name, tensor in weights[each.site.id].items()}
            for weights in held
        ]
        fusion = Fusion(adapters, own, act, scale, parallel)
        path = each.site.path
        if hasattr(copied.get_submodule(path), "output"):
            half = copied.get_submodule(f"{path}.output")
            copied.set_submodule(f"{path}.output", Half(half, fusion))
        else:
            copied.set_submodule(path, Network(copied.get_submodule(path), fusion))
    return copied


CASES = [
    (llama, "bottleneck:8", "relu", 1.0, False),
    (bert, "bottleneck:8(act=gelu, scale=0.5)", "gelu", 0.5, False),
    pytest.param(t5, "bottleneck:8(act=silu)", "silu", 1.0, False, marks=pytest.mark.slow),
    (llama, "parallel:8(scale=2)", "relu", 2.0, True),
]


@pytest.mark.parametrize(
    ("make", "rule", "act", "scale", "parallel"), CASES, ids=["decoder", "encoder", "both", "parallel"]
)
def test_the_equation(
    make: Callable[[], Any], rule: str, act: str, scale: float, parallel: bool, tmp_path: Path
) -> None:
    model = make().double()
    folders, held = saved(model, tmp_path, rule, ("one", "two", "three"))
    compiled = fused(model, folders)
    want_of = reference(model, held, compiled, act, scale, parallel)
    call = call_of(model)
    real = padding().bool() if make is llama else torch.ones(BATCH, dtype=torch.bool)
    got, want = compiled(**call).logits[real], want_of(**call).logits[real]
    assert (got - model(**call).logits[real]).abs().max() > 1e-3
    assert (got - want).abs().max() <= 1e-9 * max(1.0, float(want.detach().abs().max()))
    trained = {name: p for name, p in compiled.named_parameters() if p.requires_grad}
    assert {name.rpartition("_")[2] for name in trained} == {"query", "key", "value"}
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((got * weights).sum(), list(trained.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        assert (one - other).abs().max() <= 1e-8 * other.abs().max(), name


@pytest.mark.slow
def test_it_starts_as_a_mean_of_what_the_adapters_add(tmp_path: Path) -> None:
    """One adapter twice is that adapter: the shares sum to 1, and the values start as what comes in."""
    model = llama()
    folder = saved(model, tmp_path, "bottleneck:8")[0]["one"]
    compiled: Any = peftc.compile(model, "adapter_fusion", saved={"a": folder, "b": folder}, defaults=False)
    alone: Any = peftc.load(model, folder)
    got, want = compiled(**call_of(model)).logits, alone(**call_of(model)).logits
    assert torch.allclose(got, want, atol=1e-4)
    held = {p.name: compiled.get_parameter(p.path) for p in compiled.peftc_plan.new_parameters}
    assert torch.equal(held["fusion_value"].diagonal(), torch.ones(24))
    assert torch.equal(held["fusion_value"] - torch.eye(24), 1e-6 * (1 - torch.eye(24)))
    assert 0.015 < held["fusion_query"].std() < 0.025
    assert 0.015 < held["fusion_key"].std() < 0.025


@pytest.mark.slow
def test_the_values_are_kept_near_the_identity(tmp_path: Path) -> None:
    model = llama()
    folders, _ = saved(model, tmp_path, "bottleneck:8")
    compiled = fused(model, folders, "adapter_fusion(decay=0.5)")
    values = [p for name, p in compiled.named_parameters() if name.endswith("fusion_value")]
    expected = 0.5 * sum(((value - torch.eye(24)) ** 2).sum() for value in values)
    assert len(values) == 2
    assert torch.allclose(compiled.auxiliary_loss(), torch.as_tensor(expected), rtol=1e-5)
    ids = tokens()
    plain, trained = (compiled.train(mode)(input_ids=ids, labels=ids).loss for mode in (False, True))
    assert torch.allclose(trained - plain, torch.as_tensor(expected), rtol=1e-4)


@pytest.mark.slow
def test_what_was_fused_needs_no_other_folder(tmp_path: Path) -> None:
    model = bert()
    folders, _ = saved(model, tmp_path / "single", "bottleneck:8@1")
    compiled = fused(model, folders)
    assert [each.site.layer for each in compiled.peftc_plan.applications] == [1], "where the adapters are"
    compiled.save_pretrained(tmp_path / "fused")
    shutil.rmtree(tmp_path / "single")
    loaded: Any = peftc.load(model, tmp_path / "fused", trainable=True)
    assert torch.equal(loaded(**call_of(model)).logits, compiled(**call_of(model)).logits)
    assert loaded.peftc_plan.digest == compiled.peftc_plan.digest
    assert any("one, two" in note for note in loaded.peftc_plan.notes)
    trained = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in compiled.named_parameters() if p.requires_grad]
    with pytest.raises(peftc.errors.MergeError, match="adapter_fusion cannot be merged"):
        compiled.merge_and_unload()


@pytest.mark.slow
def test_options_by_site_and_a_gate_of_a_layer_come_along(tmp_path: Path) -> None:
    model = llama()
    folders, held = saved(model, tmp_path, "adapter_drop:8")
    compiled: Any = peftc.compile(model, "adapter_fusion", saved=folders, defaults=False)
    assert not compiled.schedules.scheduled
    for each in compiled.peftc_plan.applications:
        for number, weights in enumerate(held):
            for parameter in each.parameters:
                if parameter.saved:
                    stacked = compiled.get_parameter(parameter.path)
                    assert torch.equal(stacked[number], weights[each.site.id][parameter.saved])
    by_site, _ = saved(model, tmp_path / "sizes", "bottleneck:8(*.layers.1.*: size=5, scale=2.0)")
    plan = peftc.plan(model, "adapter_fusion", saved=by_site, defaults=False)
    assert [each.parameters[0].shape for each in plan.applications] == [(2, 8, 24), (2, 5, 24)]
    assert [dict(each.options) for each in plan.applications] == [{}, {"fusion_size": 5, "fusion_scale": 2.0}]


@pytest.mark.slow
def test_adapters_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    model, narrow = llama(), llama(hidden_size=16)
    one = saved(model, tmp_path, "bottleneck:8", ("one",))[0]["one"]

    def other(rule: Any, of: Any = model, **settings: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        adapter: Any = peftc.compile(of, rule, **settings)
        adapter.save_pretrained(folder)
        return folder

    own = {**next(each for each in peftc.rules() if each.name == "bottleneck").content}
    turned = peftc.Rule.model_validate({**own, "let": {**own["let"], "source": "x"}})
    refused = [
        (other("bottleneck:4"), r"'one' has size = 8, 'two' 4"),
        (other("bottleneck:8(act=gelu)"), r"'one' has act = relu, 'two' gelu"),
        (other("bottleneck:8(scale=0.5)"), r"'one' has scale = 1, 'two' 0.5"),
        (other("bottleneck:8@1"), r"'one' is for all layers, 'two' for 1"),
        (other("bottleneck:8(*.0.*: scale=2)"), r"'one' is for no options by site, 'two' for \*\.0\.\*"),
        (other("parallel:8"), r"'one' is of bottleneck, 'two' of parallel"),
        (other({"rule": turned, "size": 8}), r"'one' has let\.source = 'y' in its bottleneck, 'two' 'x'"),
        (other(["bottleneck:8", "lora:q"]), r"'two' holds bottleneck and lora: an adapter of one rule is read"),
        (other("head", of=bert()), r"'two' holds a head alone"),
        (other("bottleneck:8", of=narrow), r"down_w of 'two' is \[8, 16\] at model\.layers\.0\.mlp:ffn, and \[8, 24\]"),
        (other("bottleneck:8", of=llama(num_hidden_layers=1)), r"'two' has no down_w at model\.layers\.1\.mlp:ffn"),
        (other("bottleneck:8", of=llama(num_hidden_layers=3)), r"'two' is of another model: it acts at model\.layers\.2\.mlp"),
    ]  # fmt: skip
    for folder, said in refused:
        with pytest.raises(SavedAdapterError, match=said):
            peftc.compile(model, "adapter_fusion", saved={"one": one, "two": folder})
    with pytest.raises(
        SavedAdapterError, match=r"adapter_fusion cannot read lora, which 'l' is of: the axis 'inner'"
    ):
        peftc.compile(model, "adapter_fusion", saved={"l": other("lora:q")})
    with pytest.raises(SavedAdapterError, match="fusion_size was given as 3, and is 8 for 'one'"):
        peftc.compile(model, "adapter_fusion(fusion_size=3)", saved={"one": one})
    with pytest.raises(SavedAdapterError, match="adapter was given as 3, and is 1 for 'one'"):
        peftc.compile(model, "adapter_fusion(adapter=3)", saved={"one": one})
    with pytest.raises(SavedAdapterError, match="no rule reads saved adapters: lora"):
        peftc.plan(model, "lora", saved={"one": one})
    with pytest.raises(MatchError, match="adapter_fusion is made of trained adapters, and none are given"):
        peftc.compile(model, "adapter_fusion")
    with pytest.raises(CorruptAdapterError, match="no such folder"):
        peftc.plan(model, "adapter_fusion", saved={"one": tmp_path / "nowhere"})
    with pytest.raises(SavedAdapterError, match="a saved adapter needs a name"):
        peftc.plan(model, "adapter_fusion", saved={"": one})


def test_a_head_that_was_trained_with_an_adapter_is_left_out(tmp_path: Path) -> None:
    model, other = bert(), bert(num_labels=2)
    folders = {}
    for name, of in (("three", model), ("two", other)):
        adapter: Any = peftc.compile(of, "bottleneck:8")
        assert adapter.peftc_plan.trained
        adapter.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    compiled: Any = peftc.compile(model, "adapter_fusion", saved=folders)
    assert set(compiled.peftc_plan.trained) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(compiled.classifier.weight, model.classifier.weight)
    assert any("no head of theirs is read" in note for note in compiled.peftc_plan.notes)


def test_the_plan(golden: Callable[[str, str], None], tmp_path: Path) -> None:
    folders, _ = saved(bert(), tmp_path, "bottleneck:8")
    golden(
        "adapter_fusion/bert.plan.txt",
        str(peftc.explain(peftc.plan(bert(), "adapter_fusion", saved=folders))),
    )
