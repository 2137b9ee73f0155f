"""Updates of tables: by hand, by HF PEFT, with tied heads, and which tables a spec chooses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import MergeError, SpecError
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.test_updates import close
from tests.zoo import entry, inputs

RANK, ALPHA = 4, 12
SPEC = f"lora:embedding(rank={RANK}, alpha={ALPHA})"


class ByHand(nn.Module):
    """E[ids] + (alpha / rank) · A[ids] B, times what the table's own rows are scaled by."""

    def __init__(self, own: nn.Embedding, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.own, self.a, self.b = own, a, b

    def forward(self, ids: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(ids, self.own.num_embeddings).to(self.a.dtype)
        if self.own.padding_idx is not None:  # its row never trains
            one_hot = one_hot * (ids != self.own.padding_idx).unsqueeze(-1)
        rows = self.a[ids].detach() + one_hot @ self.a - (one_hot @ self.a).detach()
        scale = getattr(self.own, "embed_scale", 1.0)
        out: Tensor = self.own(ids) + scale * ALPHA / RANK * (rows @ self.b)
        return out


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma2", "t5"])
def test_the_equation(kind: str) -> None:
    """A post-norm encoder, a pre-norm decoder, one whose rows are scaled, and a table that two stacks share."""
    model: Any = {"bert": bert, "llama": llama}.get(kind, lambda: entry(kind).model())()
    given = {"input_ids": tokens()} if kind in ("bert", "llama") else inputs(model)
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    randomise(compiled)
    reference = copy.deepcopy(model)
    for each in compiled.peftc_plan.applications:
        a, b = (compiled.get_parameter(made.path) for made in each.parameters)
        reference.set_submodule(each.site.path, ByHand(reference.get_submodule(each.site.path), a, b))
    got, want = compiled(**given).logits, reference(**given).logits
    close(got, want)
    assert (got - model(**given).logits).abs().max() > 1e-3
    trained = [parameter for parameter in compiled.parameters() if parameter.requires_grad]
    assert len(trained) == 2
    weights = torch.randn(want.shape)
    ours = torch.autograd.grad((got * weights).sum(), trained)
    theirs = torch.autograd.grad((want * weights).sum(), trained)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`:UserWarning"
)  # theirs says what it cannot
@pytest.mark.parametrize("make", [bert, llama, lambda: entry("gemma2").model()])
def test_logits_and_gradients_are_those_of_hf_peft(make: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = make()
    given = {"input_ids": tokens(), "attention_mask": padding()}
    given["input_ids"][:, 0] = 0  # a token that is the padding's: its row must not train
    name = "word_embeddings" if hasattr(model, "bert") else "embed_tokens"
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[name])
    theirs: Any = get_peft_model(copy.deepcopy(model), config).eval()
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    randomise(compiled)
    (application,) = compiled.peftc_plan.applications
    a, b = (compiled.get_parameter(made.path) for made in application.parameters)
    layer = theirs.get_submodule(f"base_model.model.{application.site.path}")
    their_a, their_b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    with torch.no_grad():
        their_a.copy_(a.T)
        their_b.copy_(b.T)
    got, want = compiled(**given).logits, theirs(**given).logits
    close(got, want)
    weights = torch.randn(want.shape)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    for one, other in ((a.grad.T, their_a.grad), (b.grad.T, their_b.grad)):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    padded = model.get_submodule(application.site.path).padding_idx
    assert padded is not None
    assert not a.grad[padded].any()
    assert a.grad[given["input_ids"][0, 1]].any()


def test_it_starts_as_the_model_it_came_from_and_saves(tmp_path: Any) -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["lora:q,embedding"], defaults=False).eval()
    with torch.no_grad():
        assert torch.equal(compiled(tokens()).logits, model(tokens()).logits)
        randomise(compiled)
        compiled.save_pretrained(tmp_path)
        assert torch.equal(peftc.load(model, tmp_path).eval()(tokens()).logits, compiled(tokens()).logits)


def test_only_the_embedding_of_a_tied_table_changes() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, [SPEC], defaults=False).eval()
    randomise(compiled)
    assert any("model.embed_tokens:embedding alone" in note for note in compiled.peftc_plan.notes)
    with pytest.raises(MergeError, match="lm_head:head reads the same weight, and would change with it"):
        compiled.merge_and_unload()
    with torch.no_grad():
        states = compiled(tokens(), output_hidden_states=True)
        assert torch.equal(states.hidden_states[-1] @ model.lm_head.weight.T, states.logits)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_table_of_its_own_merges(kind: str) -> None:
    changes: dict[str, Any] = {"tie_word_embeddings": False}
    model: Any = llama(**changes) if kind == "llama" else entry(kind).model(**changes)
    if kind == "t5":  # the stacks share a table, the head has its own
        model.encoder.embed_tokens.weight = model.decoder.embed_tokens.weight = model.shared.weight
        model.lm_head.weight = nn.Parameter(model.shared.weight.detach().clone())
    given = {"input_ids": tokens()} | ({"decoder_input_ids": tokens()} if kind == "t5" else {})
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    randomise(compiled)
    with torch.no_grad():
        close(compiled.merge_and_unload()(**given).logits, compiled(**given).logits)


def parts(spec: str, model: nn.Module) -> dict[str, str]:
    plan = peftc.plan(model, [spec], defaults=False)
    return {each.site.part: each.site.path.rpartition(".")[2] for each in plan.applications}


def test_which_tables_are_chosen() -> None:
    tables = {
        "embedding": "word_embeddings",
        "position": "position_embeddings",
        "table": "token_type_embeddings",
    }
    model = bert()
    for part in ("embedding", "position"):
        assert parts(f"lora:{part}(rank=2)", model) == {part: tables[part]}
    assert parts("lora:table(rank=1)", model) == {"table": "token_type_embeddings"}
    plan = peftc.plan(model, ["lora:embedding,q"], defaults=False)
    assert {each.site.part for each in plan.applications} == {"embedding", "q"}
    reasons = {skip.site.path.rpartition(".")[2]: skip.reason for skip in plan.skips}
    assert reasons["position_embeddings"] == "part position is not among embedding"
    assert {each.site.role for each in peftc.plan(model, ["lora"], defaults=False).applications} == {"linear"}
    assert {skip.site.role for skip in peftc.plan(model, ["lora:q"], defaults=False).skips} == {"linear"}
    assert set(parts("lora:path=*.word_embeddings", model)) == {"embedding"}
    with pytest.raises(SpecError, match="bitfit has no part 'embedding'"):
        peftc.plan(model, ["bitfit:embedding"])


@pytest.mark.parametrize("model_type", ["roberta", "esm", "opt", "gpt2", "mpnet", "electra"])
def test_tables_of_places_are_told_from_those_of_tokens(model_type: str) -> None:
    model = entry(model_type).model()
    found = {
        site.path.rpartition(".")[2]: site.part
        for site in peftc.sites(model, inputs(model))
        if site.role == "embedding"
    }
    tokens_of = {"gpt2": "wte", "opt": "embed_tokens"}.get(model_type, "word_embeddings")
    places = {"gpt2": "wpe", "opt": "embed_positions"}.get(model_type, "position_embeddings")
    assert (found[tokens_of], found[places]) == ("embedding", "position")


def test_a_call_that_gives_other_things_finds_the_same_table() -> None:
    model = bert()
    compiled: Any = peftc.compile(model, [SPEC], {"input_ids": tokens()}, defaults=False).eval()
    randomise(compiled)
    ids = {"token_type_ids": torch.zeros_like(tokens()), "position_ids": torch.arange(11).expand(3, 11)}
    with torch.no_grad():
        close(compiled(input_ids=tokens(), **ids).logits, compiled(input_ids=tokens()).logits)


def test_a_composite_does_without_what_must_be_asked_for() -> None:
    rule = next(each for each in peftc.rules() if each.name == "unipelt")
    assert not any(section.asked for section in rule.sections)
