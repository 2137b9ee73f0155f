"""The certificate: what passes on sound modules, and that each property, broken on purpose, is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import peftc
from peftc.certificate import gradients, invariances, properties, visibility
from peftc.certificate.subject import examined
from peftc.errors import CaptureError
from peftc.graphs.reading import is_attention, is_call
from peftc.rewrite import without_adapters
from peftc.runtime import engine as engines
from peftc.runtime import merging
from tests.certificate.breaking import added, broken, masked_by, named
from tests.models import bert, llama, tokens

RULES = {"lora": ["lora:q,v"], "all": ["lora:all-linear(rank=4)", "bitfit"], "prefix": ["prefix:3"]}


QUICK = ((bert, "lora"), (bert, "prefix"))
SOUND = [
    pytest.param(
        make, rules, id=f"{make.__name__}-{name}", marks=() if (make, name) in QUICK else pytest.mark.slow
    )
    for make in (bert, llama)
    for name, rules in RULES.items()
]


@pytest.mark.parametrize(("make", "rules"), SOUND)
def test_sound_modules_pass(make: Callable[..., Any], rules: list[str]) -> None:
    certificate = peftc.check(peftc.compile(make(), rules))
    assert certificate.passed, str(certificate)
    for name in ("adapters off", "gradients", "captured gradients", "batch", "torch.compile"):
        assert certificate.finding(name).verdict == "pass"


def test_what_does_not_apply_is_said() -> None:
    certificate = peftc.check(peftc.compile(bert(), ["prefix:3"]))
    assert "prefix" in certificate.finding("merged").detail
    assert certificate.finding("cached decoding").verdict == "not applicable"
    assert "no cache" in certificate.finding("cached decoding").detail or certificate.passed
    data = json.loads(json.dumps(certificate.as_dict()))
    assert data["passed"] is True
    assert {each["name"] for each in data["findings"]} >= {"merged", "visibility", "padding"}
    assert str(certificate).splitlines()[0].endswith("passes")


def test_where_a_text_begins_is_no_matter_of_the_cache() -> None:
    certificate = peftc.check(peftc.compile(llama(num_hidden_layers=1), ["loreft:2"], defaults=False))
    assert certificate.passed, str(certificate)
    assert "loreft acts on what the call gives that begins a text" in str(certificate)


@pytest.mark.slow
def test_everything_is_put_back() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v", "bitfit"]).train()
    before = {name: value.clone() for name, value in compiled.state_dict().items()}
    state = torch.random.get_rng_state()
    peftc.check(compiled)
    assert compiled.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in compiled.parameters())
    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())


def test_only_compiled_modules_are_examined() -> None:
    with pytest.raises(CaptureError, match="no compiled module"):
        peftc.check(nn.Linear(2, 2))


def test_a_wrong_scale_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(graph: fx.Graph) -> None:
        for node in added(graph, "mul"):
            node.args = tuple(2 * each if isinstance(each, float) else each for each in node.args)

    finding = named(broken(monkeypatch, mend, ["lora:q,v"]), properties.merged)
    assert finding.verdict == "fail"
    assert finding.figure > 1e-3


def test_a_mask_that_is_off_by_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_more(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril(1)

    spoilt = broken(monkeypatch, masked_by(one_more, last=False), ["lora:q,v"])
    finding = named(spoilt, visibility.visibility)
    assert finding.verdict == "fail"
    assert "output 0 sees token 1" in finding.detail


def test_a_prefix_that_some_token_does_not_see_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(peftc.compile(llama(), ["prefix:3"]), visibility.keys_in_front).verdict == "pass"

    def hidden(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril(3)
        seen[2, :3] = False
        return seen

    finding = named(broken(monkeypatch, masked_by(hidden), ["prefix:3"]), visibility.keys_in_front)
    assert finding.verdict == "fail"
    assert "2 of 16 outputs do not see those of model.layers.1.self_attn" in finding.detail


def test_a_detached_branch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(graph: fx.Graph) -> None:
        node = next(each for each in reversed(added(graph, "linear")) if "v_proj" in each.name)
        with graph.inserting_after(node):
            cut = graph.call_function(torch.ops.aten.detach.default, (node,))
        cut.meta = dict(node.meta)
        node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)

    finding = named(broken(monkeypatch, mend, ["lora:q,v"]), gradients.gradients_reach)
    assert finding.verdict == "fail"
    assert "layers.1.self_attn.v_proj.peftc" in finding.detail


@pytest.mark.parametrize("path", ["lm_head.weight", "model.layers.0.self_attn.q_proj.peftc.default.lora.q.A"])
def test_what_trains_against_the_plan_is_named(path: str) -> None:
    compiled: Any = peftc.compile(llama(tie_word_embeddings=False), ["lora:q,v"])
    parameter = compiled.get_parameter(path)
    parameter.requires_grad_(not parameter.requires_grad)
    finding = named(compiled, gradients.gradients_reach)
    assert finding.verdict == "fail"
    assert path in finding.detail


def test_an_unmerged_slice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = merging.with_part

    def forgetful(held: Any, part: Any, application: Any, port: str) -> Any:
        return held if application.site.part == "v" else whole(held, part, application, port)

    monkeypatch.setattr(merging, "with_part", forgetful)
    assert named(peftc.compile(llama(), ["lora:q,v"]), properties.merged).verdict == "fail"


class Pooled(nn.Module):
    """A pooler that a mean makes no use of, in one branch of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.pooler = nn.Linear(6, 6), nn.Linear(6, 6)
        self.read = True

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.pooler(x)
        return self.inner(x) + (pooled if self.read else 0 * pooled.detach())


def test_an_unread_pooler_is_named() -> None:
    module = Pooled()
    compiled = peftc.compile(module, ["lora:all-linear(rank=2)"], {"x": torch.randn(3, 5, 6)})
    assert named(compiled, gradients.gradients_reach, x=torch.randn(3, 5, 6)).verdict == "pass"
    unread = Pooled()
    unread.read = False
    compiled = peftc.compile(unread, ["lora:all-linear(rank=2)"], {"x": torch.randn(3, 5, 6)})
    finding = named(compiled, gradients.gradients_reach, x=torch.randn(3, 5, 6))
    assert finding.verdict == "fail"
    assert "pooler" in finding.detail


def test_a_model_that_changed_is_named() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v"])
    with examined(compiled, {"input_ids": tokens()}) as subject:
        with torch.no_grad():
            for parameter in subject.plain.parameters():
                fresh = nn.Parameter(parameter * 1.01)
                break
        subject.plain.get_submodule("model.embed_tokens").weight = fresh
        assert properties.adapters_off(subject).verdict == "fail"


def test_rows_that_mix_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(graph: fx.Graph) -> None:
        node = next(each for each in graph.nodes if is_call(each, "rms_norm"))
        with graph.inserting_before(node.next):
            mean = graph.call_function(torch.mean, (node, 0, True))
            mixed = graph.call_function(torch.ops.aten.add.Tensor, (node, mean))
        for each in (mean, mixed):
            each.meta = dict(node.meta)
        node.replace_all_uses_with(mixed, delete_user_cb=lambda user: user not in (mean, mixed))

    compiled = broken(monkeypatch, mend, ["lora:q,v"])
    assert named(compiled, invariances.batch).verdict == "fail"


def test_padding_that_is_seen_and_a_cache_that_is_not_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(graph: fx.Graph) -> None:
        for node in [each for each in graph.nodes if is_attention(each)]:
            node.kwargs = {**node.kwargs, "attn_mask": None, "is_causal": False}

    compiled = broken(monkeypatch, mend, ["lora:q,v"])
    assert named(compiled, invariances.padding).verdict == "fail"
    assert named(compiled, invariances.decoding).verdict == "fail"


def test_gradients_of_another_computation_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: Any, **kwargs: Any) -> fx.Graph:
        graph = without_adapters(*args, **kwargs)
        node = next(each for each in graph.nodes if is_call(each, "silu"))
        with graph.inserting_after(node):
            detached = graph.call_function(torch.ops.aten.detach.default, (node,))
        detached.meta = dict(node.meta)
        node.replace_all_uses_with(detached, delete_user_cb=lambda user: user is not detached)
        return graph

    monkeypatch.setattr(engines, "without_adapters", cut)
    finding = named(peftc.compile(llama(), ["lora:q,v"]), gradients.captured_gradients)
    assert finding.verdict == "fail"
    assert "gate_proj" in finding.detail or finding.figure > 1e-3


def test_a_graph_that_breaks_under_the_tracer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x

    def mend(graph: fx.Graph) -> None:
        node = next(each for each in graph.nodes if is_call(each, "rms_norm"))
        with graph.inserting_after(node):
            more = graph.call_function(printed, (node,))
        more.meta = dict(node.meta)
        node.replace_all_uses_with(more, delete_user_cb=lambda user: user is not more)

    finding = named(broken(monkeypatch, mend, ["lora:q,v"]), properties.traced)
    assert finding.verdict == "fail"


def test_a_model_all_of_whose_weights_train_is_examined() -> None:
    certificate = peftc.check(peftc.compile(bert(), ["full"], defaults=False))
    assert certificate.passed, str(certificate)
    (finding,) = [each for each in certificate.findings if each.name == "captured gradients"]
    assert finding.verdict == "not applicable"


def test_example_inputs_without_names_are_refused() -> None:
    with pytest.raises(CaptureError, match="a mapping of forward's arguments by name, not a tuple") as caught:
        peftc.sites(bert(), (tokens(),))  # type: ignore[arg-type]
    assert "input_ids" in str(caught.value.hint)


def test_a_call_that_the_model_itself_refuses_is_no_matter_of_the_rules() -> None:
    beyond = {"input_ids": tokens() + 10_000}
    compiled = peftc.compile(bert(), ["lora:q,v"], beyond)
    with pytest.raises(
        CaptureError, match="itself raises IndexError in this call: index out of range"
    ) as caught:
        peftc.check(compiled, beyond)
    assert "ids of its vocabulary" in str(caught.value)
