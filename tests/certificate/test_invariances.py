"""What is beside a text or was computed before: modules that mind it are named, on either side and behind an encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import peftc
from peftc.certificate.invariances import decoding, padding
from peftc.certificate.subject import Subject
from peftc.graphs.operations import causal_mask
from peftc.graphs.reading import is_call
from tests.certificate.breaking import broken, is_not, masked_by, named
from tests.models import WORDS, llama, mistral, tokens
from tests.zoo import entry, inputs


def test_padding_in_front_that_is_seen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    good = named(peftc.compile(llama(num_hidden_layers=1), ["lora:q,v"]), padding)
    assert good.verdict == "pass"
    assert "behind or before" in good.detail

    mend = masked_by(causal_mask, last=False)
    # Nothing that stands behind a text is seen from it: only on the other side does it show that the mask is not read.
    finding = named(broken(monkeypatch, mend, ["lora:q,v"], llama(num_hidden_layers=1)), padding)
    assert finding.verdict == "fail"
    assert "most before" in finding.detail


def test_padding_in_front_moves_keys_out_of_a_window_as_their_rule_says() -> None:
    for rule, sides in (
        ("prefix:3(visible=window)", "padding behind them"),
        ("prefix:3", "behind or before"),
    ):
        finding = named(peftc.compile(mistral(), [rule], defaults=False), padding)
        assert finding.verdict == "pass"
        assert sides in finding.detail
        assert ("which counts padding too" in finding.detail) == ("window" in rule)


def test_a_side_on_which_the_model_minds_padding_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    model = entry("gpt2").model()
    compiled = peftc.compile(model, ["lora:q,v(rank=2)"], inputs(model), defaults=False)
    takes = Subject.takes
    monkeypatch.setattr(Subject, "takes", lambda self, name: name != "position_ids" and takes(self, name))
    finding = named(compiled, padding, **inputs(model))  # places are counted from the first padding then
    assert finding.verdict == "pass"
    assert "padding behind them" in finding.detail
    assert "before: the model itself differs" in finding.detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("t5", "lora:q,v(rank=2)"),
        ("whisper", "lora:q,v(rank=2)"),
        ("mamba", "lora:all-linear(rank=2)"),  # a state of a scan, in an argument of another name
    ],
)
def test_decoders_go_on_from_their_caches(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = entry(name).model()
    given = inputs(model)
    compiled = peftc.compile(model, [rule], given, defaults=False)
    assert named(compiled, decoding, **given).verdict == "pass"

    def counted(rows: Tensor) -> Tensor:
        return rows * (1 + 0.01 * rows.shape[1])

    def mend(graph: fx.Graph) -> None:
        node = [each for each in graph.nodes if is_call(each, "linear")][-1]
        with graph.inserting_after(node):
            more = graph.call_function(counted, (node,))
        more.meta = dict(node.meta)
        node.replace_all_uses_with(more, delete_user_cb=is_not(more))

    spoilt = broken(monkeypatch, mend, [rule], entry(name).model(), given)
    finding = named(spoilt, decoding, **given)
    assert finding.verdict == "fail"
    assert finding.figure > 1e-3


class OwnCache(nn.Module):
    """A decoder whose cache is a tuple of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, past: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
        x = self.embedding(input_ids)
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        seen = torch.arange(k.shape[2]) <= torch.arange(k.shape[2] - q.shape[2], k.shape[2])[:, None]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return {"logits": self.out(x + y.transpose(1, 2).flatten(2)), "past": (k, v)}


def test_a_cache_of_the_models_own_is_gone_on_from() -> None:
    given = {"input_ids": tokens()}
    for rules, verdict, said in (
        (["lora:q,v(rank=2)", "prefix:3"], "pass", "two one by one"),
        (["prompt:3"], "not applicable", "whether they are in 'past' already"),
    ):
        finding = named(peftc.compile(OwnCache(), rules, given, defaults=False), decoding, **given)
        assert finding.verdict == verdict, finding
        assert said in finding.detail


def test_why_there_is_no_cache_is_said() -> None:
    model = llama(num_hidden_layers=1)
    forward = type(model).forward

    class Forgetful(type(model)):  # type: ignore[misc]
        """Gives its cache back by a name that its forward does not take."""

        def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
            """Without what it remembers."""
            del past_key_values
            out = forward(self, *args, **{**kwargs, "use_cache": False})
            return type(out)(logits=out.logits)

    model.__class__ = Forgetful
    compiled = peftc.compile(model, ["lora:q,v(rank=2)"], {"input_ids": tokens()}, defaults=False)
    finding = named(compiled, decoding)
    assert finding.verdict == "not applicable"
    assert "no cache that its forward takes" in finding.detail


@pytest.mark.slow
def test_a_call_that_the_module_refuses_is_told_of() -> None:
    model = entry("mamba").model()
    given = inputs(model)
    finding = named(peftc.compile(model, ["prompt:3"], given, defaults=False), decoding, **given)
    assert finding.verdict == "not applicable"
    assert "3 rows go in front" in finding.detail
