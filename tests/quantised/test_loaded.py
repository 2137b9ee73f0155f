"""Models that transformers loaded with bitsandbytes: taken over without a copy, and given back as they were."""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.errors import QuantiseError
from peftc.quantised import quantised_in, taken_over
from peftc.runtime.merging import plain_model
from peftc.runtime.twin import twin
from tests.models import tokens
from tests.quantised.loading import FP4, INT8, NF4, loaded, pair, relative, wide

IDS = tokens()


@pytest.fixture(scope="module", params=[NF4, FP4, INT8], ids=["nf4", "fp4", "int8"])
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A loaded model, and what `pair` makes of it; nothing of them is changed by a test."""
    model = loaded(wide(num_hidden_layers=1), tmp_path_factory.mktemp("model"), request.param)
    before = {name: held.clone() for name, held in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    compiled, theirs, names = pair(model)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())
    return model, compiled, theirs, names


def test_a_twin_shares_the_packed_weights(trio: Any) -> None:
    model, compiled, _, _ = trio
    held = quantised_in(compiled)
    assert len(held) == 7
    for path, each in held.items():
        assert compiled.get_parameter(path).data_ptr() == model.get_parameter(path).data_ptr(), path
        module = model.get_submodule(path.rpartition(".")[0])
        state = getattr(module.weight, "quant_state", None)
        scales = state.absmax if state is not None else next(
            each for each in (module.weight.SCB, module.state.SCB) if each is not None
        )  # fmt: skip
        assert each.get_buffer("scales").data_ptr() == scales.data_ptr(), path
    for name, tensor in compiled.named_parameters():
        assert type(tensor) is nn.Parameter, name
    assert model.is_quantized
    assert not hasattr(compiled, "is_loaded_in_4bit")
    assert not hasattr(compiled, "is_loaded_in_8bit")


def test_outputs_and_gradients_are_those_of_hf_peft(trio: Any) -> None:
    _, compiled, theirs, names = trio
    ours, other = compiled(input_ids=IDS, labels=IDS), theirs(input_ids=IDS, labels=IDS)
    assert relative(ours.logits, other.logits) <= 1e-5
    ours.loss.backward()
    other.loss.backward()
    for name, their_name in names.items():
        assert relative(compiled.get_parameter(name).grad, theirs.get_parameter(their_name).grad) <= 1e-5, (
            name
        )


def test_what_comes_quantised_goes_back_so(trio: Any, tmp_path: Path) -> None:
    model, compiled, _, _ = trio
    back: Any = plain_model(compiled, requantise=True)
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    want = model.state_dict()
    assert back.state_dict().keys() == want.keys()
    assert all(torch.equal(held, want[name]) for name, held in back.state_dict().items())
    assert torch.equal(back.train()(IDS).logits, model.train()(IDS).logits)
    assert back.is_quantized
    back.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again").train()
    assert torch.equal(again(IDS).logits, model.train()(IDS).logits)


def test_a_module_that_is_the_child_of_two_goes_back_to_both(tmp_path: Path) -> None:
    model = loaded(wide(num_hidden_layers=2), tmp_path, NF4)
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj  # one module, after loading
    compiled: Any = peftc.compile(model, ["lora:q"])
    back: Any = plain_model(compiled, requantise=True)
    first, second = back.model.layers
    assert type(first.mlp.up_proj) is type(model.model.layers[0].mlp.up_proj)
    assert second.mlp.up_proj is first.mlp.up_proj
    assert second.mlp.gate_proj is not first.mlp.gate_proj
    assert torch.equal(back.train()(IDS).logits, model.train()(IDS).logits)


def test_merging_is_that_of_hf_peft(trio: Any) -> None:
    _, compiled, theirs, _ = trio
    with pytest.warns(UserWarning, match="7 merged weights were in") as told:
        merged: Any = compiled.merge_and_unload(requantise=True)
    with pytest.warns(UserWarning, match="rounding errors"):
        other = copy.deepcopy(theirs).merge_and_unload()
    for path in quantised_in(compiled):
        assert torch.equal(merged.get_parameter(path).data, other.get_parameter(path).data), path
    assert torch.equal(merged.train()(IDS).logits, other.train()(IDS).logits)
    lost = compiled.requantising_loss()
    assert str(lost) == str(told[0].message)
    with pytest.warns(UserWarning, match="merged weights"):
        whole: Any = compiled.merge_and_unload()
    assert {type(module) for module in whole.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert relative(whole(IDS).logits, compiled(IDS).logits) <= 5e-5
    assert not hasattr(whole.config, "quantization_config")
    again = twin(merged)
    for each in lost.weights:
        unpacked, path = whole.get_parameter(each.path), each.path
        error = (
            quantised_in(again)[path].read(again.get_parameter(path)) - unpacked
        ).norm() / unpacked.norm()
        assert each.error == pytest.approx(float(error.detach()), rel=1e-3)
        assert 0.001 < each.error < 0.2
        before = quantised_in(compiled)[path].read(compiled.get_parameter(path))
        change = (unpacked - before).norm() / unpacked.norm()
        assert each.change == pytest.approx(float(change.detach()), rel=1e-3)


def test_int8_does_not_round_what_is_multiplied(tmp_path: Path) -> None:
    """In training bitsandbytes does not either, on CPUs; in evaluation it does, and the error is of that rounding."""
    model = loaded(wide(num_hidden_layers=1), tmp_path, INT8)
    compiled: Any = peftc.compile(model, ["lora:q"]).eval()
    assert "no outlier is set apart" in " ".join(compiled.peftc_plan.notes)
    trained, ours = model.train()(IDS).logits, compiled(IDS).logits
    assert relative(ours, trained) <= 1e-6
    evaluated = model.eval()(IDS).logits
    assert 1e-4 < relative(ours, evaluated) < 5e-2


def test_a_model_that_ran_in_evaluation_has_its_codes_in_another_order(tmp_path: Path) -> None:
    """bitsandbytes reorders the codes on CPUs with its fast kernel, and rounds the scales to half precision."""
    model = loaded(wide(num_hidden_layers=1), tmp_path, NF4)
    fresh: Any = peftc.compile(model, ["lora:q"])
    with torch.no_grad():
        model.eval()(IDS)
    before = model.model.layers[0].mlp.up_proj.weight.data.clone()
    compiled: Any = peftc.compile(model, ["lora:q"])
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight.data, before)
    for path, held in quantised_in(compiled).items():
        assert torch.equal(compiled.get_parameter(path), fresh.get_parameter(path)), path
        whole = quantised_in(fresh)[path].read(fresh.get_parameter(path))
        assert relative(held.read(compiled.get_parameter(path)), whole) <= 2**-8
    assert relative(compiled(IDS).logits, fresh(IDS).logits) <= 0.05


def test_what_is_not_quantised_yet_or_oddly_is_refused() -> None:
    packed: Any = importlib.import_module("bitsandbytes").nn

    four = packed.Linear4bit(64, 64, bias=False)
    with pytest.raises(QuantiseError, match="not quantised yet"):
        taken_over(four, torch.float32)
    with pytest.raises(QuantiseError, match="not kept in 8 bits"):
        taken_over(packed.Linear8bitLt(64, 64), torch.float32)
    four = packed.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    four.weight.quant_state.state2.blocksize = 128
    with pytest.raises(QuantiseError, match="not known"):
        taken_over(four, torch.float32)
    assert taken_over(nn.Linear(3, 3), torch.float32) is None


@pytest.mark.parametrize("compute", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_computed_in_the_modules_own_number_format(
    dtype: torch.dtype, compute: torch.dtype | None
) -> None:
    packed: Any = importlib.import_module("bitsandbytes").nn

    four = packed.Linear4bit(64, 48, compute_dtype=compute, quant_type="nf4").to(dtype).to("cpu").train()
    model = nn.Sequential(nn.LayerNorm(64, dtype=dtype), copy.deepcopy(four)).train()
    compiled: Any = peftc.compile(model, "full", {"input": torch.zeros(3, 64, dtype=dtype)})
    x = torch.randn(5, 64, dtype=dtype)
    assert torch.equal(compiled[1](x), four(x)), "called alone"
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_was_prepared_for_training(checkpointing: bool, tmp_path: Path) -> None:
    """Norms, tables and the head in single precision, embeddings told to want gradients for reentrant checkpointing."""
    from peft import prepare_model_for_kbit_training

    half = {**NF4, "bnb_4bit_compute_dtype": torch.bfloat16}
    model = loaded(wide(num_hidden_layers=1), tmp_path, half, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # HF PEFT calls a method by its former name
        prepared = prepare_model_for_kbit_training(model, checkpointing, {"use_reentrant": True})
    compiled, theirs, names = pair(prepared)
    assert compiled.model.layers[0].self_attn.q_proj.peftc.default.lora.q.A.dtype == torch.float32
    assert bool(prepared.model.embed_tokens._forward_hooks) is checkpointing
    ours, other = compiled(input_ids=IDS, labels=IDS), theirs(input_ids=IDS, labels=IDS)
    assert relative(ours.loss, other.loss) <= 1e-6
    ours.loss.backward()
    other.loss.backward()
    for name, their_name in names.items():
        assert relative(compiled.get_parameter(name).grad, theirs.get_parameter(their_name).grad) <= 1e-5, (
            name
        )


def test_a_trainer_takes_it(tmp_path: Path) -> None:
    """transformers refuses to train a model that it knows as quantised, but for adapters of its own library."""
    from transformers import Trainer, TrainingArguments

    model = loaded(wide(num_hidden_layers=1), tmp_path, NF4)
    compiled: Any = peftc.compile(model, ["lora:q,v"])
    before = {name: held.clone() for name, held in compiled.state_dict().items()}
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=3, learning_rate=0.1,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, optim="adamw_bnb_8bit",
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    Trainer(model=compiled, args=args, train_dataset=rows).train()
    changed = {name for name, held in compiled.state_dict().items() if not torch.equal(held, before[name])}
    assert changed == {parameter.path for parameter in compiled.peftc_plan.new_parameters}


def test_matrices_that_were_stored_turned_are_not_any_more(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61, n_layer=1, n_head=4, n_embd=64, n_positions=32, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    whole = GPT2LMHeadModel(config)
    model = loaded(whole, tmp_path, NF4)
    compiled: Any = peftc.compile(model, ["lora:q,v"])
    assert relative(compiled.train()(IDS).logits, model.train()(IDS).logits) <= 1e-5
    ruled: Any = peftc.compile(whole, ["nf4", "lora:q,v"])
    for path in quantised_in(compiled):
        assert torch.equal(ruled.get_parameter(path), compiled.get_parameter(path)), path
    assert torch.equal(ruled(IDS).logits, compiled(IDS).logits)
