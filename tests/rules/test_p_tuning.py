"""Rows that a network makes, against the network written out step by step and against HF PEFT; folded for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.graphs import operations
from peftc.graphs.printing import text
from tests.models import BATCH, LENGTH, bert, llama, padding, randomise, tokens
from tests.rules.test_prompt import by_hand, call

ROWS, HIDDEN = 5, 7
MODELS: dict[str, Callable[[], Any]] = {"bert": bert, "llama": llama}


@cache
def made(name: str, network: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """A model, the one compiled with rows of a network in front, and the network's parameters by name."""
    model = MODELS[name]()
    spec = f"p_tuning:{ROWS}(network={network}, hidden={HIDDEN})"
    compiled: Any = peftc.compile(model, [spec], defaults=False)
    randomise(compiled, scale=0.4)
    own = {each.name: compiled.get_parameter(each.path) for each in compiled.peftc_plan.new_tensors}
    return model, compiled, own


def test_golden_graph(golden: Callable[[str, str], None]) -> None:
    golden("p_tuning/llama_tiny.graph.txt", text(made("llama", "lstm")[1]._peftc.entries[0].rewritten))


def written_out(own: dict[str, Tensor], rows: Tensor, layer: str, way: str) -> Tensor:
    """One layer of a long short-term memory in one direction, gate by gate."""
    step, state, bias = (own[f"{layer}{part}_{way}"] for part in ("step", "state", "bias"))
    width = state.shape[1]
    hidden, cell = torch.zeros(width), torch.zeros(width)
    outputs: dict[int, Tensor] = {}
    for place in range(len(rows)) if way == "f" else reversed(range(len(rows))):
        gates = (step @ rows[place] + state @ hidden + bias).reshape(4, width)
        put, forget, shown = (1 / (1 + (-gates[number]).exp()) for number in (0, 1, 3))
        cell = forget * cell + put * gates[2].tanh()
        hidden = shown * cell.tanh()
        outputs[place] = hidden
    return torch.stack([outputs[place] for place in range(len(rows))])


def network_by_hand(own: dict[str, Tensor], network: str) -> Tensor:
    """The rows [rows d]."""
    h = own["E"]
    if network == "mlp":
        h = (h @ own["in_w"].T + own["in_b"]).clamp(min=0)
        h = (h @ own["mid_w"].T + own["mid_b"]).clamp(min=0)
        return h @ own["out_w"].T + own["out_b"]
    for layer in ("", "next_"):
        h = torch.cat([written_out(own, h, layer, way) for way in ("f", "b")], -1)
    return (h @ own["up_w"].T + own["up_b"]).clamp(min=0) @ own["out_w"].T + own["out_b"]


@pytest.mark.parametrize(
    ("name", "network"),
    [pytest.param("bert", "lstm", marks=pytest.mark.slow), ("llama", "lstm"), ("llama", "mlp")],
)
def test_the_network_written_out(name: str, network: str) -> None:
    model, compiled, own = made(name, network)
    given = call(name)
    got = compiled(**given)
    want, loss = by_hand(name, model, network_by_hand(own, network), given)
    real = given["attention_mask"].bool() if name == "llama" else ...
    assert (got.logits[real] - want[real]).abs().max() <= 1e-5
    ours = torch.autograd.grad(got.loss, list(own.values()))
    theirs = torch.autograd.grad(loss, list(own.values()))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1e-2, float(other.abs().max()))
        assert float(other.abs().max()) > 0


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("llama", "lstm"),
        ("llama", "mlp"),
        pytest.param("bert", "lstm", marks=pytest.mark.slow),
        ("bert", "mlp"),
    ],
)
def test_hf_peft_with_the_same_network(name: str, network: str) -> None:
    from peft import PromptEncoderConfig, get_peft_model

    model, compiled, own = made(name, network)
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM" if name == "llama" else "SEQ_CLS",
        num_virtual_tokens=ROWS,
        encoder_reparameterization_type=network.upper(),
        encoder_hidden_size=HIDDEN,
    )
    if network == "lstm":
        config.encoder_num_layers = 2
    theirs: Any = get_peft_model(copy.deepcopy(model), config).eval()
    encoder = theirs.prompt_encoder["default"]
    pairs = {"E": encoder.embedding.weight}
    if network == "mlp":
        for place, layer in ((0, "in"), (2, "mid"), (4, "out")):
            pairs |= {
                f"{layer}_w": encoder.mlp_head[place].weight,
                f"{layer}_b": encoder.mlp_head[place].bias,
            }
    else:
        for place, layer in ((0, "up"), (2, "out")):
            pairs |= {
                f"{layer}_w": encoder.mlp_head[place].weight,
                f"{layer}_b": encoder.mlp_head[place].bias,
            }
        for number, layer in ((0, ""), (1, "next_")):
            for end, way in (("", "f"), ("_reverse", "b")):
                for part, kind in (("step", "weight_ih"), ("state", "weight_hh"), ("bias", "bias_ih")):
                    pairs[f"{layer}{part}_{way}"] = getattr(encoder.lstm_head, f"{kind}_l{number}{end}")
                getattr(encoder.lstm_head, f"bias_hh_l{number}{end}").data.zero_()
    assert pairs.keys() == own.keys()
    with torch.no_grad():
        for key, parameter in pairs.items():
            parameter.copy_(own[key])
    given = call(name)
    one, other = compiled(**given), theirs(**given)
    if name == "llama":
        real = given["attention_mask"].bool()
        assert (one.logits[real] - other.logits[:, ROWS:][real]).abs().max() <= 1e-5
    else:
        assert (one.logits - other.logits).abs().max() <= 1e-5
    ours = torch.autograd.grad(one.loss, list(own.values()))
    gradients = torch.autograd.grad(other.loss, [pairs[key] for key in own])
    for mine, yours in zip(ours, gradients, strict=True):
        assert (mine - yours).abs().max() <= 1e-5 * max(1e-2, float(yours.abs().max()))


@pytest.mark.slow
def test_it_is_folded_saved_and_generates(tmp_path: Path) -> None:
    model, compiled, _ = made("llama", "lstm")
    ids, mask = tokens(), padding(left=True)
    want = compiled(ids, attention_mask=mask).logits.detach()
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, want, atol=5e-6, rtol=5e-6)
        settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
        got = compiled.generate(input_ids=ids * mask, **settings)
        assert torch.equal(got, compiled.generate(input_ids=ids * mask, use_cache=False, **settings))
        assert got.shape == (BATCH, LENGTH + 4)
    folded = [each for each in compiled._peftc.entries if each.state == "folded"]
    assert [each.continued for each in folded].count(True) == 1
    assert not [node for each in folded for node in each.rewritten.nodes if node.target is operations.lstm]
    compiled.save_pretrained(tmp_path)
    again: Any = peftc.load(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids, attention_mask=mask).logits, compiled(ids, attention_mask=mask).logits)
