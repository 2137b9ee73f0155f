"""Adapter folders: what they hold, the way back, and that no failure leaves half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from peftc import api
from peftc.errors import OutputExistsError
from peftc.lang import Source, check, read_mapping
from tests.models import bert, llama, randomise, tokens

RULES = ["lora:q,v", "prefix:5"]
FILES = ["adapter.json", "adapter.safetensors"]


def compiled(model: nn.Module, rules: Any = RULES) -> Any:
    made = api.compile(model, rules)
    randomise(made)
    return made


@pytest.fixture(scope="module")
def encoder() -> Any:
    """A compiled encoder with a trained head; tests do not change it."""
    made = compiled(bert())
    with torch.no_grad():
        made.classifier.weight.add_(0.5)
    return made


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens()).logits
    return found


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("make", [bert, llama])
def test_the_way_back_gives_the_same_bits(make: Any, tmp_path: Path) -> None:
    before = compiled(make())
    before.save_pretrained(tmp_path / "adapter")
    after = api.load(make(), tmp_path / "adapter")
    assert torch.equal(logits(after), logits(before))
    assert not any(parameter.requires_grad for parameter in after.parameters())
    assert before.peftc_plan.digest == after.peftc_plan.digest  # type: ignore[union-attr]


def test_a_loaded_adapter_can_train(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "adapter")
    after = api.load(bert(), tmp_path / "adapter", trainable=True)
    trainable = [name for name, parameter in after.named_parameters() if parameter.requires_grad]
    assert trainable == [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]


def test_defaults_that_were_off_stay_off(tmp_path: Path) -> None:
    before = api.compile(bert(), "lora:q", defaults=False)
    before.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    after: Any = api.load(bert(), tmp_path / "adapter")
    assert [bound.label for bound in after.peftc_plan.rules] == ["lora"]


def test_rules_are_the_stored_ones(tmp_path: Path) -> None:
    stored = {
        **next(rule for rule in api.rules() if rule.name == "lora").content,
        "let": {"scale": "alpha / rank", "delta": "3 * scale * (dropout(x, p=drop) @ A @ B)"},
    }
    before = compiled(bert(), [check(read_mapping(stored, Source("mine")))])
    before.save_pretrained(tmp_path / "adapter")
    after = api.load(bert(), tmp_path / "adapter")
    assert torch.equal(logits(after), logits(before))
    library = compiled(bert(), ["lora:q,v"])
    assert not torch.allclose(logits(after), logits(library))


def test_the_folder_holds_the_adapter_and_nothing_else(encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "adapter"
    encoder.save_pretrained(folder)
    assert names(folder) == FILES
    assert names(folder.parent) == ["adapter"]
    plan = encoder.peftc_plan
    tensors = load_file(folder / "adapter.safetensors")
    assert set(tensors) == {parameter.path for parameter in plan.new_parameters} | set(plan.trained)
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "peftc_format": "1", "peftc_plan": plan.digest}
    said = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    assert (said["format"], said["plan"], said["made_for"]) == (
        1,
        plan.digest,
        "BertForSequenceClassification",
    )
    assert [rule["label"] for rule in said["rules"]] == ["lora", "prefix", "head"]


def test_frozen_new_parameters_and_tied_ones_are_stored_once(tmp_path: Path) -> None:
    before = api.compile(llama(), "full")
    before.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    tensors = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    after = api.load(llama(1), tmp_path / "adapter")
    assert torch.equal(logits(after), logits(before))


def test_resuming_reads_into_the_module(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "adapter")
    other: Any = api.compile(bert(), RULES)
    assert not torch.equal(logits(other), logits(encoder))
    other.load_adapter_weights(tmp_path / "adapter")
    assert torch.equal(logits(other), logits(encoder))
    assert other.classifier.weight.requires_grad


def test_a_backbone_of_another_dtype_casts(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "adapter")
    after = api.load(bert().double(), tmp_path / "adapter")
    assert {parameter.dtype for parameter in after.parameters()} == {torch.float64}
    torch.testing.assert_close(logits(after).float(), logits(encoder), atol=1e-4, rtol=1e-4)


def test_an_output_is_replaced_only_when_asked(encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    encoder.save_pretrained(folder)  # empty: nothing to lose
    with pytest.raises(OutputExistsError, match=r"holds adapter\.json, adapter\.safetensors already"):
        encoder.save_pretrained(folder)
    encoder.save_pretrained(folder, overwrite=True)
    assert names(folder) == FILES
    assert names(tmp_path) == ["adapter"]
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="is a file"):
        encoder.save_pretrained(tmp_path / "file", overwrite=True)


def test_other_files_stay(encoder: Any, tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_text("state", encoding="utf-8")
    with pytest.raises(OutputExistsError):
        encoder.save_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path, overwrite=True)
    encoder.save_pretrained(tmp_path, overwrite=True)
    assert names(tmp_path) == [*FILES, "optimizer.pt"]
    assert (tmp_path / "optimizer.pt").read_text(encoding="utf-8") == "state"
    assert names(tmp_path.parent).count(tmp_path.name) == 1


@pytest.mark.parametrize("failing", [1, 2])
def test_an_interrupted_save_leaves_what_was_there(
    encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = tmp_path / "adapter"
    encoder.save_pretrained(folder)
    before = {name: (folder / name).read_bytes() for name in FILES}
    replace, calls = os.replace, iter(range(1, 9))

    def failing_replace(source: Any, target: Any) -> None:
        if next(calls) == failing:
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing_replace)
    with pytest.raises(OSError, match="no space"):
        encoder.save_pretrained(folder, overwrite=True)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert names(tmp_path) == ["adapter"]


def test_a_save_that_fails_while_writing_leaves_nothing(
    encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        encoder.save_pretrained(tmp_path / "adapter")
    assert names(tmp_path) == []
