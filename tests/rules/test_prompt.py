"""Rows in front of the input: against embedded tokens put behind them by hand, against HF PEFT, and in generation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import MatchError, NoMatchError, ProgramError
from peftc.graphs.printing import text
from tests.models import BATCH, LENGTH, WORDS, bert, llama, padding, randomise, tokens

ROWS = 5
START, END = 2, 3


def bart(**settings: Any) -> Any:
    """A tiny encoder and decoder whose embedded tokens are scaled."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=WORDS,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        max_position_embeddings=40,
        scale_embedding=True,
        init_std=0.2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
        **settings,
    )
    return BartForConditionalGeneration(config).eval()


def gpt2() -> Any:
    """A tiny decoder with a table of places."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config).eval()


MODELS: dict[str, Callable[[], Any]] = {"bert": bert, "llama": llama, "bart": bart, "gpt2": gpt2}


@cache
def made(name: str) -> tuple[Any, Any]:
    """A model, and the one compiled with rows in front; both are left as they are."""
    model = MODELS[name]()
    compiled: Any = peftc.compile(model, [f"prompt:{ROWS}"], defaults=False)
    randomise(compiled)
    return model, compiled


def rows(compiled: Any) -> nn.Parameter:
    """The trained rows [rows d]."""
    (path,) = [each.path for each in compiled.peftc_plan.new_tensors]
    found: nn.Parameter = compiled.get_parameter(path)
    return found


def in_front(number: float, tensor: Tensor, count: int = ROWS) -> Tensor:
    """A number so many times in front of each row of a tensor [batch seq]."""
    return torch.cat([tensor.new_full((tensor.shape[0], count), number), tensor], 1)


def by_hand(name: str, model: Any, front: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits at the tokens and the loss, of the embedded input with rows in front of it."""
    given = dict(given)
    ids, mask = given.pop("input_ids"), given.pop("attention_mask")
    embedded = torch.cat([front.expand(len(ids), -1, -1), model.get_input_embeddings()(ids)], 1)
    labels = given.pop("labels")
    if name in ("llama", "gpt2"):
        out = model(inputs_embeds=embedded, attention_mask=in_front(1, mask)).logits
        targets = in_front(-100, labels)
        loss = nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        return out[:, ROWS:], loss
    if name == "bert":
        out = model(inputs_embeds=embedded, attention_mask=in_front(1, mask)).logits
        return out, nn.functional.cross_entropy(out, labels)
    out = model(
        inputs_embeds=embedded, attention_mask=in_front(1, mask), decoder_input_ids=given["decoder_input_ids"]
    ).logits
    return out, nn.functional.cross_entropy(out.flatten(0, 1), labels.flatten())


def call(name: str) -> dict[str, Tensor]:
    """A padded batch with labels."""
    ids, mask = tokens(), padding()
    if name == "bert":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    if name != "bart":
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    said = tokens(seed=8, length=7)
    before = torch.cat([torch.full((BATCH, 1), START), said[:, :-1]], 1)
    return {"input_ids": ids, "attention_mask": mask, "labels": said, "decoder_input_ids": before}


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_golden_graph(name: str, golden: Callable[[str, str], None]) -> None:
    entry = made(name)[1]._peftc.entries[0]
    golden(f"prompt/{name}_tiny.graph.txt", text(entry.rewritten))


@pytest.mark.parametrize("name", MODELS)
def test_embedded_tokens_behind_rows_by_hand(name: str) -> None:
    model, compiled = made(name)
    given, front = call(name), rows(compiled)
    got = compiled(**given)
    want, loss = by_hand(name, model, front, given)
    assert got.logits.shape == want.shape
    real = given["attention_mask"].bool() if name in ("llama", "gpt2") else ...
    assert (got.logits[real] - want[real]).abs().max() <= 1e-5
    torch.testing.assert_close(got.loss, loss, atol=1e-6, rtol=1e-6)
    (ours,) = torch.autograd.grad(got.loss, front)
    (theirs,) = torch.autograd.grad(loss, front)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_labels_alone_make_the_decoders_tokens_as_ever() -> None:
    _, compiled = made("bart")
    given = call("bart")
    with torch.no_grad():
        want = compiled(**given)
        del given["decoder_input_ids"]
        got = compiled(**given)
    torch.testing.assert_close(got.logits, want.logits)
    torch.testing.assert_close(got.loss, want.loss)


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), "llama", "bart"])
def test_hf_peft_with_the_same_rows(name: str) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model, compiled = made(name)
    task = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM"}[name]
    settings: dict[str, Any] = {"num_transformer_submodules": 1} if name == "bart" else {}
    theirs: Any = get_peft_model(
        copy.deepcopy(model), PromptTuningConfig(task_type=task, num_virtual_tokens=ROWS, **settings)
    ).eval()
    embedding = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        embedding.copy_(rows(compiled))
    given = call(name)
    one, other = compiled(**given), theirs(**given)
    logits = other.logits[:, ROWS:] if name == "llama" else other.logits
    real = given["attention_mask"].bool() if name == "llama" else ...
    assert (one.logits[real] - logits[real]).abs().max() <= 1e-5
    torch.testing.assert_close(one.loss, other.loss, atol=1e-6, rtol=1e-6)
    (ours,) = torch.autograd.grad(one.loss, rows(compiled))
    (gradient,) = torch.autograd.grad(other.loss, embedding)
    assert (ours - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_every_output_is_as_long_as_the_input_and_the_cache_is_longer() -> None:
    _, compiled = made("llama")
    with torch.no_grad():
        out = compiled(tokens(), output_hidden_states=True, use_cache=True)
    assert [tuple(each.shape) for each in out.hidden_states] == [(BATCH, LENGTH, 24)] * 3
    assert out.past_key_values.get_seq_length() == ROWS + LENGTH


def test_a_call_with_embedded_tokens_is_the_call_with_their_ids() -> None:
    for name in ("llama", "bert"):
        model, compiled = made(name)
        ids = tokens()
        with torch.no_grad():
            got = compiled(inputs_embeds=model.get_input_embeddings()(ids)).logits
            assert torch.equal(got, compiled(ids).logits)


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "gpt2"])
def test_a_cache_gives_what_the_whole_text_does(name: str) -> None:
    _, compiled = made(name)
    ids = tokens()
    with torch.no_grad():
        whole = compiled(ids).logits
        out = compiled(ids[:, :6], use_cache=True)
        pieces = [out.logits]
        for at, to in ((6, 7), (7, 8), (8, LENGTH)):
            out = compiled(ids[:, at:to], past_key_values=out.past_key_values, use_cache=True)
            pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)


def greedy(compiled: Any, ids: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The most likely tokens one after the other, without a cache."""
    for _ in range(steps):
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = compiled(ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        mask = torch.cat([mask, mask[:, :1] * 0 + 1], 1)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_is_a_loop_without_a_cache(name: str) -> None:
    _, compiled = made(name)
    ids, mask = tokens(), padding(left=True)
    ids = ids * mask
    with torch.no_grad():
        got = compiled.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        assert torch.equal(got, greedy(compiled, ids, mask, 6))
        beams = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
        cached = compiled.generate(input_ids=ids, attention_mask=mask, **beams)
        whole = compiled.generate(input_ids=ids, attention_mask=mask, use_cache=False, **beams)
        assert torch.equal(cached, whole)
        alone = compiled.generate(input_ids=ids[2:, 4:], max_new_tokens=6, do_sample=False)
    assert torch.equal(alone[0], got[2, 4:]), "padding in front changes nothing"


def test_an_encoder_and_decoder_generate() -> None:
    model, compiled = made("bart")
    ids, mask = tokens(), padding()
    front = rows(compiled)
    said = torch.full((BATCH, 1), START)
    embedded = torch.cat([front.expand(BATCH, -1, -1), model.get_input_embeddings()(ids)], 1)
    with torch.no_grad():
        for _ in range(6):
            out = model(
                inputs_embeds=embedded, attention_mask=in_front(1, mask), decoder_input_ids=said
            ).logits
            said = torch.cat([said, out[:, -1:].argmax(-1)], 1)
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        got = compiled.generate(input_ids=ids, attention_mask=mask, **settings)
        encoded = compiled.get_encoder()(input_ids=ids, attention_mask=mask)
        assert encoded.last_hidden_state.shape == (BATCH, ROWS + LENGTH, 24)
        again = compiled.generate(encoder_outputs=encoded, attention_mask=mask, **settings)
    end = (said == END).cumsum(1) == 0
    assert torch.equal(got[end], said[end])
    assert torch.equal(again, got)


def test_the_decoders_input_by_its_scope() -> None:
    model = bart()
    compiled: Any = peftc.compile(model, [f"prompt:decoder.input(length={ROWS})"], defaults=False)
    randomise(compiled)
    given = call("bart")
    got = compiled(**given, output_hidden_states=True)
    assert got.logits.shape == (BATCH, 7, WORDS)
    assert got.encoder_last_hidden_state.shape == (BATCH, LENGTH, 24)
    embedded = torch.cat(
        [rows(compiled).expand(BATCH, -1, -1), model.get_input_embeddings()(given["decoder_input_ids"])], 1
    )
    want = model(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], decoder_inputs_embeds=embedded
    ).logits[:, ROWS:]
    assert (got.logits - want).abs().max() <= 1e-5
    del given["decoder_input_ids"]
    with pytest.raises(ProgramError, match="decoder_input_ids"):
        compiled(**given)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = llama(attention_dropout=0.2)
    compiled: Any = peftc.compile(model, [f"prompt:{ROWS}"], defaults=False)
    compiled.train()
    runs: list[list[Tensor]] = []
    for enabled in (False, True):
        if enabled:
            compiled.gradient_checkpointing_enable()
        torch.manual_seed(3)
        loss = compiled(**call("llama")).loss
        runs.append([loss.detach(), *torch.autograd.grad(loss, rows(compiled))])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_it_starts_from_the_vocabulary_a_text_or_a_range(tmp_path: Path) -> None:
    model = bart()
    table = 24**0.5 * model.get_input_embeddings().weight.detach()
    sampled = rows(peftc.compile(model, ["prompt:8"], defaults=False)).detach()
    found = (sampled[:, None] - table).abs().amax(-1)
    assert float(found.amin(1).max()) <= 1e-6
    assert len(set(found.argmin(1).tolist())) == 8
    text, mask = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 1]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    data = {"input_ids": text, "attention_mask": mask, "decoder_input_ids": text[:, :2]}
    compiled: Any = peftc.compile(model, ["prompt(length=7, init=text)"], defaults=False, data=data)
    torch.testing.assert_close(rows(compiled).detach(), table[[5, 6, 7, 8, 9, 5, 6]])
    del data["attention_mask"]
    whole: Any = peftc.compile(model, ["prompt(length=7, init=text)"], defaults=False, data=data)
    torch.testing.assert_close(rows(whole).detach(), table[[5, 6, 7, 1, 8, 9, 1]])
    wide = rows(peftc.compile(model, ["prompt(length=40, init=uniform)"], defaults=False)).detach()
    assert float(wide.abs().max()) <= 0.5
    assert float(wide.std()) > 0.2
    with pytest.raises(MatchError, match="data"):
        peftc.compile(model, ["prompt(length=7, init=text)"], defaults=False)
    compiled.save_pretrained(tmp_path)
    again = peftc.load(model, tmp_path)
    given = call("bart")
    with torch.no_grad():
        assert torch.equal(again(**given).logits, compiled(**given).logits)


def test_off_it_is_the_model_and_a_cache_of_the_model_goes_on_without_rows() -> None:
    model, compiled = made("llama")
    ids, mask = tokens(), torch.ones(BATCH, LENGTH, dtype=torch.long)
    with torch.no_grad():
        with compiled.disable_adapter():
            out = compiled(ids[:, :6], use_cache=True)
            assert torch.equal(out.logits, model(ids[:, :6]).logits)
        got = compiled(ids[:, 6:], past_key_values=out.past_key_values, attention_mask=mask).logits
        torch.testing.assert_close(got, model(ids, attention_mask=mask).logits[:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "other", ["lora:embedding,q(rank=4)", pytest.param("prefix:3", marks=pytest.mark.slow)]
)
def test_with_another_rule(other: str, first: bool) -> None:
    model, label = llama(), other.partition(":")[0]
    specs = [f"prompt:{ROWS}", other] if first else [other, f"prompt:{ROWS}"]
    both: Any = peftc.compile(model, specs, defaults=False)
    randomise(both)
    alone: Any = peftc.compile(model, [other], defaults=False)
    mask, real, tables = padding(), padding().bool(), dict[str, Tensor]()
    with torch.no_grad():
        for each in alone.peftc_plan.new_tensors:
            alone.get_parameter(each.path).copy_(both.get_parameter(each.path))
            if "embed_tokens" in each.path:
                tables[each.name] = both.get_parameter(each.path)
        (path,) = [each.path for each in both.peftc_plan.new_tensors if f".{label}." not in each.path]
        embedded = model.get_input_embeddings()(tokens())
        if tables:
            embedded = embedded + 4.0 * (tables["A"][tokens()] @ tables["B"])
        embedded = torch.cat([both.get_parameter(path).expand(BATCH, -1, -1), embedded], 1)
        got = both(input_ids=tokens(), attention_mask=mask).logits
        want = alone(inputs_embeds=embedded, attention_mask=in_front(1, mask)).logits[:, ROWS:]
    assert (got[real] - want[real]).abs().max() <= 2e-5


def test_rows_in_front_of_rows() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["prompt:2", "prompt(length=3, init=uniform)"], defaults=False)
    one, other = (compiled.get_parameter(each.path) for each in compiled.peftc_plan.new_tensors)
    embedded = model.get_input_embeddings()(tokens())
    with torch.no_grad():
        embedded = torch.cat([each.expand(BATCH, -1, -1) for each in (other, one)] + [embedded], 1)
        torch.testing.assert_close(
            compiled(tokens()).logits, model(inputs_embeds=embedded).logits[:, 5:], atol=1e-5, rtol=1e-5
        )


@pytest.mark.slow
def test_places_of_answers_move_with_the_text() -> None:
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    model = BertForQuestionAnswering(bert(num_labels=2).config).eval()
    compiled: Any = peftc.compile(model, [f"prompt:{ROWS}"], defaults=False)
    ids, start, end = tokens(), torch.tensor([1, 2, 3]), torch.tensor([4, 2, 6])
    got = compiled(ids, start_positions=start, end_positions=end)
    embedded = torch.cat([rows(compiled).expand(BATCH, -1, -1), model.get_input_embeddings()(ids)], 1)
    want = model(inputs_embeds=embedded)
    torch.testing.assert_close(got.start_logits, want.start_logits[:, ROWS:])
    entropies = [
        nn.functional.cross_entropy(logits, places + ROWS)
        for logits, places in ((want.start_logits, start), (want.end_logits, end))
    ]
    torch.testing.assert_close(got.loss, sum(entropies) / 2)


@pytest.mark.slow
def test_outputs_inside_outputs_and_a_text_that_is_told_by_its_end() -> None:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": WORDS, "max_position_embeddings": 30, "eos_token_id": END, "bos_token_id": 0}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **text, "pad_token_id": 1},
            vision_config={**sizes, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ).eval()
    ids = tokens().clamp(min=END + 1)
    ids[:, -1] = END
    front = ids[:1, :ROWS].expand(BATCH, -1) - 1 + (ids[:1, :ROWS] == END + 1).long()
    given = {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, 16, 16)}
    spec = f"prompt(length={ROWS}, init=text)"
    data = {**given, "input_ids": front}
    compiled: Any = peftc.compile(model, [spec], given, defaults=False, data=data)
    with torch.no_grad():
        got = compiled(**given)
        want = model(**{**given, "input_ids": torch.cat([front, ids], 1)})
    torch.testing.assert_close(got.logits_per_text, want.logits_per_text)
    states = got.text_model_output.last_hidden_state, want.text_model_output.last_hidden_state
    torch.testing.assert_close(states[0], states[1][:, ROWS:])


def test_too_many_tokens_for_the_table_of_places() -> None:
    _, compiled = made("gpt2")
    with torch.no_grad():
        assert compiled(tokens(length=24 - ROWS)).logits.shape == (BATCH, 24 - ROWS, WORDS)
        with pytest.raises(
            ProgramError, match="20 tokens, none in the cache and 5 rows in front need 25 places"
        ):
            compiled(tokens(length=25 - ROWS))


def test_a_cache_of_a_fixed_length_is_refused() -> None:
    _, compiled = made("llama")
    with pytest.raises(
        ProgramError, match=f"{ROWS} rows go in front .* StaticCache has room for the text alone"
    ):
        compiled.generate(input_ids=tokens(), max_new_tokens=2, cache_implementation="static")
    with compiled.disable_adapter():
        compiled.generate(input_ids=tokens(), max_new_tokens=2, cache_implementation="static")


def test_what_is_not_known_of_the_tokens_is_refused() -> None:
    class Tagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 3)

        def forward(self, input_ids: Tensor, weight: Tensor) -> Tensor:
            h = self.table(input_ids)
            out: Tensor = self.head(h.cumsum(1) * weight.unsqueeze(-1))
            return out

    given = {"input_ids": tokens(), "weight": torch.rand(BATCH, LENGTH)}
    compiled = peftc.compile(Tagged(), ["prompt:2"], given, defaults=False)
    with pytest.raises(ProgramError, match="'weight'"):
        compiled(**given)


def test_a_model_that_reads_no_tokens_has_no_such_site() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    with pytest.raises(NoMatchError, match="this model has no input"):
        peftc.plan(ViTForImageClassification(config), ["prompt:3"])
