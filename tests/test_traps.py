"""What known libraries get wrong, by name: each is a test here, or is said to be one in the file where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.zoo import entry, inputs

ELSEWHERE = {
    "a prefix through the cache: no gradient checkpointing": (
        "rules/test_prefix.py",
        "test_gradient_checkpointing_changes_nothing",
    ),
    "a prefix through the cache: decoders alone": (
        "rules/test_prefix.py",
        "test_the_written_out_attention",
    ),
    "a prefix through the cache: it stays in the cache": (
        "rules/test_prefix.py",
        "test_the_prefix_never_enters_the_cache",
    ),
    "a prefix is out of sight behind a sliding window": (
        "rules/test_prefix.py",
        "test_a_prefix_under_a_sliding_window",
    ),
    "a causal mask from the wrong end hides a token's last predecessors": (
        "rules/test_prefix.py",
        "test_every_token_sees_the_prefix_and_no_later_token",
    ),
    "an inverted mask hides the prefix": (
        "rules/test_prefix.py",
        "test_padding_stays_hidden_and_the_prefix_stays_seen",
    ),
    "training goes on from a saved adapter": (
        "store/test_saving.py",
        "test_resuming_reads_into_the_module",
    ),
    "q and v of a fused projection change k": (
        "test_architectures.py",
        "test_q_and_v_of_a_fused_projection_leave_k_bit_for_bit",
    ),
    "a weight that torch's attention reads directly": (
        "rules/test_weights_anywhere.py",
        "test_attention_of_torch",
    ),
    "a weight that a scan reads directly": (
        "rules/test_weights_anywhere.py",
        "test_a_state_space_model",
    ),
    "experts are left out, and the router is adapted": (
        "rules/test_experts.py",
        "test_all_linear_has_experts_and_router",
    ),
    "a tied head, merged": (
        "rules/test_weights_anywhere.py",
        "test_an_update_of_a_tied_head_leaves_the_table_alone",
    ),
    "a part that is mistyped, beside one that is not": (
        "match/test_matching.py",
        "test_a_part_that_no_site_has_is_refused_even_when_another_matched",
    ),
    "a pooler that nobody reads, certified": (
        "certificate/test_certificate.py",
        "test_an_unread_pooler_is_named",
    ),
    "a penalty of the right size": (
        "rules/test_adalora.py",
        "test_the_loss_is_the_papers",
    ),
    "pruned ranks stay": (
        "runtime/test_shrinking.py",
        "test_matrices_have_their_live_ranks_and_compute_the_same",
    ),
}
"""The trap → the file and the test that looks for it."""


@pytest.mark.parametrize("trap", ELSEWHERE)
def test_the_trap_has_its_test(trap: str) -> None:
    file, name = ELSEWHERE[trap]
    assert f"\ndef {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_q_and_v_of_a_fused_projection_share_nothing() -> None:
    model = entry("gpt2").model(n_layer=1)
    plan = peftc.plan(model, ["lora:q,v(rank=2)"], inputs(model), defaults=False)
    assert [(each.site.part, [p.name for p in each.parameters]) for each in plan.applications] == [
        ("q", ["A", "B"]),
        ("v", ["A", "B"]),
    ]
    assert len({parameter.path for parameter in plan.new_parameters}) == len(plan.new_tensors) == 4


@pytest.mark.parametrize("spec", ["lora:q,valeu", "lora:q,gate", "lora:path=*.querry", "bitfit:q,gate"])
def test_a_mistyped_target_is_refused_though_another_matches(spec: str) -> None:
    with pytest.raises((peftc.errors.SpecError, peftc.errors.MatchError)):
        peftc.plan(bert(num_hidden_layers=1), [spec])


class States(nn.Module):
    """An encoder of whose outputs the last states alone are used: its pooler is computed for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert(num_hidden_layers=1).bert

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.inner(input_ids).last_hidden_state
        return states


def test_no_trainable_parameter_of_an_unread_pooler() -> None:
    compiled: Any = peftc.compile(States(), ["lora:all-linear(rank=2)"], {"input_ids": tokens()})
    assert any("pooler" in name for name in compiled.peftc_plan.unread)
    randomise(compiled)
    compiled(tokens()).square().sum().backward()
    without = [name for name, each in compiled.named_parameters() if each.requires_grad and each.grad is None]
    assert not without


def test_a_penalty_reaches_a_loss_of_ones_own() -> None:
    given = {"input_ids": tokens(), "attention_mask": padding()}
    compiled: Any = peftc.compile(
        bert(num_hidden_layers=1), ["adalora:q(rank=4, target=2)"], given, defaults=False
    )
    own = compiled(**given).logits.square().sum()
    (own + compiled.auxiliary_loss()).backward()
    left = [parameter for name, parameter in compiled.named_parameters() if name.endswith(".A")]
    assert len(left) == 1
    # the middle of every product is 0 at the start: what of a gradient there is comes from the penalty
    assert bool(left[0].grad.abs().max() > 0)


def test_a_prefix_over_low_rank_updates_freezes_neither_and_both_are_saved(tmp_path: Path) -> None:
    model = llama(num_hidden_layers=1)
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=2)", "prefix:3"], defaults=False)
    randomise(compiled)
    trained = {name: each for name, each in compiled.named_parameters() if each.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"A", "B", "P_k", "P_v"}
    compiled(tokens()).logits.square().sum().backward()
    assert all(each.grad is not None and bool(each.grad.abs().max() > 0) for each in trained.values())
    compiled.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, compiled(tokens()).logits)


def test_each_block_has_its_own_norm_before_its_bottleneck() -> None:
    compiled: Any = peftc.compile(bert(num_hidden_layers=3), ["pfeiffer:4"], defaults=False)
    graph = peftc.graph(compiled).graph
    bottlenecks = [
        node
        for node in graph.nodes
        if any(
            source.op == "get_attr" and str(source.target).endswith("down_w")
            for source in node.all_input_nodes
        )
    ]
    assert len(bottlenecks) == 3
    for number, node in enumerate(bottlenecks):
        norm = node.all_input_nodes[0]
        weights = [str(source.target) for source in norm.all_input_nodes if source.op == "get_attr"]
        block = f"bert.encoder.layer.{number}.output.LayerNorm"
        assert weights == [f"{block}.weight", f"{block}.bias"]
