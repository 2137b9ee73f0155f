"""Who sees whom: masks that show or hide one pair too many are named, with a prefix and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import peftc
from peftc.certificate.subject import examined
from peftc.certificate.visibility import CLEAR, between_tokens, depends, visibility
from peftc.graphs.reading import is_attention, is_call
from tests.certificate.breaking import broken, is_not, masked_by, named
from tests.models import bert, llama, mistral, tokens
from tests.zoo import entry, inputs

FRONT = 3


def causal(query: Tensor, key: Tensor) -> Tensor:
    """Who sees whom in a decoder, with keys in front or without."""
    queries, keys = query.shape[-2], key.shape[-2]
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def without_itself(query: Tensor, key: Tensor) -> Tensor:
    """The same, but that a token does not see itself."""
    front = key.shape[-2] - query.shape[-2]
    seen = causal(query, key).tril(front - 1)
    seen[:, : max(front, 1)] = True
    return seen


def without_one(query: Tensor, key: Tensor) -> Tensor:
    """The same, but that one token does not see one before it."""
    seen = causal(query, key)
    seen[5, 2 + key.shape[-2] - query.shape[-2]] = False
    return seen


def with_one(query: Tensor, key: Tensor) -> Tensor:
    """The same, but that one token sees one behind it."""
    seen = causal(query, key)
    seen[5, 6 + key.shape[-2] - query.shape[-2]] = True
    return seen


@pytest.mark.parametrize("rule", [f"prefix:{FRONT}", "lora:q,v"])
@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (without_itself, "does not see key"),
        (without_one, "query 5 does not see key 2"),
        (with_one, "query 5 sees key 6"),
    ],
)
def test_a_pair_too_many_or_too_few_is_named(
    rule: str, mask: Callable[[Tensor, Tensor], Tensor], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = named(broken(monkeypatch, masked_by(mask), [rule]), visibility)
    assert finding.verdict == "fail"
    assert "model.layers.1.self_attn" in finding.detail
    assert told in finding.detail


def renamed(graph: fx.Graph) -> None:
    """Every attention computed by another node, in the place of the one that there was."""
    for node in [each for each in graph.nodes if is_attention(each)]:
        with graph.inserting_after(node):
            other = graph.create_node("call_function", node.target, node.args, node.kwargs, "another")
        other.meta = dict(node.meta)
        node.replace_all_uses_with(other)
        graph.erase_node(node)


def test_attentions_that_a_rewrite_renames_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    good = named(peftc.compile(llama(), ["lora:q,v"]), visibility)
    same = named(broken(monkeypatch, renamed, ["lora:q,v"]), visibility)
    assert same == good

    def mend(graph: fx.Graph) -> None:
        masked_by(without_one)(graph)
        renamed(graph)

    finding = named(broken(monkeypatch, mend, ["lora:q,v"]), visibility)
    assert finding.verdict == "fail"
    assert "model.layers.1.self_attn query 5 does not see key 2" in finding.detail


def test_an_attention_that_is_not_there_to_be_compared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **more)

    def mend(graph: fx.Graph) -> None:
        node = [each for each in graph.nodes if is_attention(each)][-1]
        with graph.inserting_after(node):
            other = graph.call_function(same, node.args, dict(node.kwargs))
        other.meta = dict(node.meta)
        node.replace_all_uses_with(other)
        graph.erase_node(node)

    finding = named(broken(monkeypatch, mend, ["lora:q,v"]), visibility)
    assert finding.verdict == "fail"
    assert finding.figure == 1
    assert "1 attentions of the model are not compared, such as that at model.layers.1" in finding.detail


def test_the_right_mask_passes_however_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = named(broken(monkeypatch, masked_by(causal), [f"prefix:{FRONT}"]), visibility)
    assert finding.verdict == "pass"
    assert "pairs of query and key" in finding.detail


def test_a_window_that_a_prefix_is_in_front_of_is_as_it_was() -> None:
    for rule in ("prefix:3", "prefix:3(visible=window)", "prompt:3"):
        assert named(peftc.compile(mistral(), [rule], defaults=False), visibility).verdict == "pass"


def test_padding_is_seen_by_none_more() -> None:
    given = {"input_ids": tokens(), "attention_mask": torch.tensor([[1] * 7 + [0] * 4] * 3)}
    compiled = peftc.compile(bert(), ["prefix:3"], given, defaults=False)
    assert named(compiled, visibility, **given).verdict == "pass"


def test_patches_are_seen_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = entry("vit").model()
    given = inputs(model)
    compiled = peftc.compile(model, ["prefix:3"], given, defaults=False)
    assert named(compiled, visibility, **given).verdict == "pass"

    def one_hidden(query: Tensor, key: Tensor) -> Tensor:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
        seen[1, -1] = False
        return seen

    spoilt = broken(monkeypatch, masked_by(one_hidden), ["prefix:3"], entry("vit").model(), given)
    finding = named(spoilt, visibility, **given)
    assert finding.verdict == "fail"
    assert "query 1 does not see key" in finding.detail


def test_a_token_that_is_not_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_third(rows: Tensor) -> Tensor:
        return rows * (torch.arange(rows.shape[1]) != 3).to(rows).unsqueeze(1)

    def mend(graph: fx.Graph) -> None:
        node = next(each for each in graph.nodes if is_call(each, "embedding"))
        with graph.inserting_after(node):
            fewer = graph.call_function(without_third, (node,))
        fewer.meta = dict(node.meta)
        node.replace_all_uses_with(fewer, delete_user_cb=is_not(fewer))

    finding = named(broken(monkeypatch, mend, ["lora:q,v"]), visibility)
    assert finding.verdict == "fail"
    assert "output 3 does not see token 3" in finding.detail


@pytest.mark.slow
def test_a_call_of_a_size_that_has_no_program_yet_is_captured() -> None:
    model = entry("mamba").model()  # its scan is captured for one length at a time
    given = inputs(model)
    compiled = peftc.compile(model, ["lora:all-linear(rank=2)"], given, defaults=False)
    finding = named(compiled, visibility, **given)
    assert finding.verdict == "pass"
    assert "pairs of output and token" in finding.detail


class Sharp(nn.Module):
    """A causal attention whose weights are almost all on one key."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.q, self.k, self.v, self.h = (
            nn.Embedding(30, 16),
            *(nn.Linear(16, size) for size in (16, 16, 16, 30)),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        q, k, v = (each(x).unsqueeze(1) for each in (self.q, self.k, self.v))
        gathered = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.h(x + gathered.squeeze(1))
        return out


def test_a_token_without_weight_in_a_sharp_softmax_is_not_hidden() -> None:
    torch.manual_seed(0)
    given = {"input_ids": torch.randint(0, 30, (2, 8))}
    compiled = peftc.compile(Sharp().eval(), ["lora:q,k"], given).eval()
    with examined(compiled, given) as subject:
        for name, parameter in compiled.named_parameters():
            if name.endswith((".A", ".B")):
                parameter.data.mul_(4)
        tokens = between_tokens(subject)
        assert not isinstance(tokens, str)
        assert bool((depends(tokens[0], CLEAR) & ~depends(tokens[1])).any())
        assert visibility(subject).verdict == "pass"
