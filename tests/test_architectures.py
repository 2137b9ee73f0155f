"""Any architecture: roles, capture and rules on tiny models of transformers' own classes, without a table.

The quick tests take one architecture of each kind of difficulty; the slow ones all 57.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

import peftc
from peftc.analyse import Use, analyse
from peftc.errors import NoMatchError, UnknownPartError
from peftc.runtime import capture_example
from tests.models import randomise
from tests.zoo import THE_57, entry, inputs

# What is hard about each: a fused projection, an interleaved one, one key head, latent attention, experts, capped
# scores, biases of relative positions, one layer twelve times, cross-attention, windows of images, sound, a scan.
HARD = """
gpt2 bloom gpt_bigcode falcon deepseek_v3 qwen3_moe gemma2 mpnet deberta-v2
albert t5 bart phi3 codegen swin wav2vec2 mamba
"""
QUICK = {"gpt2", "albert", "t5", "swin"}
NO_ATTENTION = {"mamba"}
NO_FEED_FORWARD = {"mamba"}


def quick(model_types: Iterable[str], kept: Iterable[str] = QUICK) -> list[Any]:
    """The architectures, those that are not among the quick ones marked as slow."""
    return [each if each in kept else pytest.param(each, marks=pytest.mark.slow) for each in model_types]


def parts(model_type: str) -> dict[str, set[str]]:
    """Last word of each linear site's path → parts it plays."""
    model = entry(model_type).model()
    found: dict[str, set[str]] = {}
    for site in peftc.sites(model, inputs(model)):
        if site.role == "linear":
            found.setdefault(site.path.rpartition(".")[2], set()).add(site.part or "other")
    return found


@pytest.mark.parametrize(
    ("model_type", "want"),
    [
        ("gpt2", {"c_attn": "q k v", "c_fc": "up"}),
        ("bloom", {"query_key_value": "q k v", "dense": "o", "dense_h_to_4h": "up", "dense_4h_to_h": "down"}),
        ("codegen", {"qkv_proj": "q k v", "out_proj": "o"}),
        ("falcon", {"query_key_value": "q k v", "dense": "o"}),
        ("mpt", {"Wqkv": "q k v", "up_proj": "up", "down_proj": "down"}),
        ("phi3", {"qkv_proj": "q k v", "gate_up_proj": "gate up", "down_proj": "down"}),
        ("gemma2", {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate"}),
        (
            "deepseek_v3",
            {"q_b_proj": "q", "kv_b_proj": "k v", "kv_a_proj_with_mqa": "k other", "o_proj": "o"},
        ),
        ("mixtral", {"gate": "router", "q_proj": "q"}),
        ("qwen3_moe", {"gate": "router", "v_proj": "v"}),
        ("deberta-v2", {"query_proj": "q", "key_proj": "k", "value_proj": "v"}),
        ("t5", {"q": "q", "k": "k", "v": "v", "o": "o", "wi": "up", "wo": "down"}),
        ("wav2vec2", {"q_proj": "q", "out_proj": "o", "intermediate_dense": "up", "output_dense": "down"}),
    ],
)
def test_parts_of_projections(model_type: str, want: dict[str, str]) -> None:
    found = parts(model_type)
    assert {name: found[name] for name in want} == {name: set(said.split()) for name, said in want.items()}


@pytest.mark.parametrize("model_type", quick([*THE_57, "lilt", "blip-2"]))
def test_every_site_has_an_id_of_its_own(model_type: str) -> None:
    model = entry(model_type).model()
    program, _ = capture_example(model, inputs(model))[2][:2]
    located = analyse(program.graph, model).located
    ids = [each.site.id for each in located]
    assert len(set(ids)) == len(ids)
    for each in located:
        if each.site.role in ("ffn", "attention", "residual", "norm", "embedding"):
            assert len({weights_behind(use) for use in each.uses}) == 1, each.site.id


def weights_behind(use: Use) -> frozenset[str]:
    """The first weights on the ways back from what a use makes, or from the queries that it reads."""
    queue: list[Any] = [use.ports["q"].source if "q" in use.ports else use.ports["y"].source]
    found, seen = set(), set(queue)
    while queue:
        node = queue.pop()
        own = {str(each.target) for each in node.all_input_nodes if each.op == "get_attr"}
        found |= own
        new = [] if own else [each for each in node.all_input_nodes if each not in seen]
        seen.update(new)
        queue += new
    return frozenset(found)


def test_a_scan_is_no_feed_forward_network() -> None:
    assert parts("mamba") == {
        "in_proj": {"other"},
        "conv1d": {"conv"},
        "x_proj": {"other"},
        "dt_proj": {"other"},
        "out_proj": {"other"},
        "lm_head": {"head"},
    }


FUSED = ("gpt2 bloom gpt_neox gpt_bigcode codegen falcon mpt phi3 modernbert").split()  # noqa: SIM905 - a list of names to be read


@pytest.mark.parametrize("model_type", FUSED)
def test_q_and_v_of_a_fused_projection_leave_k_bit_for_bit(model_type: str) -> None:
    model = entry(model_type).model()
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=4)"], inputs(model), defaults=False)
    randomise(compiled)
    sites = {site.id: site for site in compiled.peftc_plan.sites if site.part in ("q", "k", "v")}
    merged = compiled.merge_and_unload()
    changed = 0
    for site in sites.values():
        assert site.rows is not None
        weight = site.weights["W"]
        axis = site.stored.get("W", ("d_out", "d_in")).index("d_out")
        index = torch.cat([torch.arange(start, stop) for start, stop in site.rows])
        before, after = (each.get_parameter(weight).index_select(axis, index) for each in (model, merged))
        assert torch.equal(before, after) == (site.part == "k"), site.id
        changed += site.part != "k"
    assert changed == 2 * len({site.weights["W"] for site in sites.values()})


@pytest.mark.parametrize(
    ("model_type", "fused"), [("deberta", "in_proj.weight"), ("deepseek_v3", "kv_b_proj.weight")]
)
def test_what_q_and_v_have_no_part_of_is_as_it_was(model_type: str, fused: str) -> None:
    model = entry(model_type).model()
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=4)"], inputs(model), defaults=False)
    randomise(compiled)
    sites = compiled.peftc_plan.sites
    trained = {application.site.weights["W"] for application in compiled.peftc_plan.applications}
    merged = compiled.merge_and_unload()
    shared = [site for site in sites if site.role == "linear" and site.weights["W"].endswith(fused)]
    assert {site.part for site in shared} >= {"k", "v"}
    for site in shared:
        assert site.rows is not None
        index = torch.cat([torch.arange(start, stop) for start, stop in site.rows])
        before, after = (each.get_parameter(site.weights["W"])[index] for each in (model, merged))
        assert torch.equal(before, after) == (site.part == "k"), site.id
    others = {site.weights["W"] for site in sites if site.role == "linear"} - trained
    assert len(others) > len(trained)
    assert all(torch.equal(model.get_parameter(path), merged.get_parameter(path)) for path in others)


RULES = (
    "lora:q,v(rank=4)",
    "lora:all-linear(rank=4)",
    "bottleneck:ffn(size=4)",
    "parallel:ffn(size=4)",
    "bitfit",
)
PREFIXES = ("prefix:4", "prefix_mlp:4(hidden=8)", "p_tuning_v2:4(visible=window)")


def certified(model_type: str, rules: list[str], absent: bool) -> None:
    """Check that rules pass on an architecture, or are refused where it has no such site."""
    model = entry(model_type).model()
    given = inputs(model)
    if absent:
        with pytest.raises((NoMatchError, UnknownPartError), match="has no"):
            peftc.compile(model, rules, given, defaults=False)
        return
    certificate = peftc.check(peftc.compile(model, rules, given, defaults=False), given)
    assert certificate.passed, str(certificate)


# Decoding behind an encoder is quick in tests/certificate.
@pytest.mark.parametrize("model_type", quick(HARD.split(), {"albert"}))
def test_rules_together_on_what_is_hard(model_type: str) -> None:
    if model_type in NO_ATTENTION:
        certified(model_type, ["lora:all-linear(rank=4)"], absent=False)
        certified(model_type, ["prefix:4"], absent=True)
        certified(model_type, ["bottleneck:4"], absent=True)
        return
    certified(model_type, ["lora:q,v(rank=4)", "bottleneck:ffn(size=4)", "prefix:4"], absent=False)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [*RULES, *PREFIXES])
@pytest.mark.parametrize("model_type", THE_57)
def test_every_rule_on_every_architecture(model_type: str, rule: str) -> None:
    lacks = rule in ("lora:q,v(rank=4)", *PREFIXES) and model_type in NO_ATTENTION
    certified(model_type, [rule], lacks or (":ffn" in rule and model_type in NO_FEED_FORWARD))


DECODERS = ("gpt2", "falcon", "gemma2", "deepseek_v3", "t5", "bart")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True},
    "static": {"cache_implementation": "static"},
}
NEW = 5


# Generation of an encoder-decoder is quick in tests/rules/test_prefix_scopes.py.
@pytest.mark.parametrize("model_type", quick(DECODERS, {"gpt2"}))
def test_generation(model_type: str) -> None:
    model = entry(model_type).model()
    compiled: Any = peftc.compile(
        model, ["lora:q,v(rank=4)", "prefix:3"], inputs(model), defaults=False
    ).eval()
    randomise(compiled)
    ids = inputs(model)["input_ids"]
    told: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    for name, way in WAYS.items():
        torch.manual_seed(0)
        want = model.generate(input_ids=ids, **{**told, **way})
        with compiled.disable_adapter():
            torch.manual_seed(0)
            got = compiled.generate(input_ids=ids, **{**told, **way})
        assert torch.equal(got, want), name
    made = compiled.generate(input_ids=ids, **told)
    assert torch.equal(made, without_cache(compiled, ids))


def without_cache(compiled: Any, ids: torch.Tensor) -> torch.Tensor:
    """Greedy tokens, the whole text anew for each; the end of a text is never chosen, as `min_new_tokens` has it."""
    pairs = compiled.config.is_encoder_decoder
    start = compiled.generation_config.decoder_start_token_id or 0
    tokens = torch.full((len(ids), 1), start) if pairs else ids
    ends = compiled.generation_config.eos_token_id
    forced = getattr(compiled.generation_config, "forced_bos_token_id", None)
    assert forced is None
    for _ in range(NEW):
        given = {"input_ids": ids, "decoder_input_ids": tokens} if pairs else {"input_ids": tokens}
        with torch.no_grad():
            logits = compiled(**given, use_cache=False).logits[:, -1]
        if ends is not None:
            logits[:, ends] = float("-inf")
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return tokens
