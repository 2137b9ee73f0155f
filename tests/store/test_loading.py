"""Damaged and foreign adapters: refused, with the reason, and nothing of the model changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftc import api
from peftc.errors import CorruptAdapterError, ForeignAdapterError, StoreError
from tests.models import bert, llama, randomise


@pytest.fixture(scope="module")
def encoder() -> Any:
    made = api.compile(bert(), "lora:q,v")
    randomise(made)
    return made


@pytest.fixture
def folder(encoder: Any, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(encoder: Any, folder: Path) -> str:
    """The message with which both ways of reading refuse a damaged folder; the module stays as it was."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(CorruptAdapterError) as resumed:
        encoder.load_adapter_weights(folder)
    with pytest.raises(CorruptAdapterError) as loaded:
        api.load(bert(), folder)
    assert str(loaded.value) == str(resumed.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    return str(loaded.value)


@pytest.mark.parametrize("tenth", range(10))
def test_truncated_tensors(encoder: Any, folder: Path, tenth: int) -> None:
    path = folder / "adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenth // 10])
    assert "adapter.safetensors" in refused(encoder, folder)


@pytest.mark.parametrize("place", [-1, -1000, 300])
def test_a_flipped_bit(encoder: Any, folder: Path, place: int) -> None:
    path = folder / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    refused(encoder, folder)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_a_missing_file(encoder: Any, folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"the folder has no {name}" in refused(encoder, folder)


def test_a_missing_folder(encoder: Any, tmp_path: Path) -> None:
    assert "no such folder" in refused(encoder, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "valid dictionary"),
        ('{"format": 1}', "Field required"),
        ('{"format": "1"}', "format"),
    ],
)
def test_a_record_that_cannot_be_read(encoder: Any, folder: Path, text: str, said: str) -> None:
    (folder / "adapter.json").write_text(text, encoding="utf-8")
    assert said in refused(encoder, folder)


def test_a_record_that_is_not_text(encoder: Any, folder: Path) -> None:
    (folder / "adapter.json").write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in refused(encoder, folder)


def change_options(said: dict[str, Any]) -> None:
    said["rules"][0]["options"]["rank"] = 9


def change_sizes(said: dict[str, Any]) -> None:
    said["applications"][0]["sizes"]["d_in"] += 1


def change_rule(said: dict[str, Any]) -> None:
    said["rules"][0]["rule"]["rewrite"]["y"] = "y - delta"


def break_rule(said: dict[str, Any]) -> None:
    said["rules"][0]["rule"]["rewrite"]["y"] = "y + nothing"


def add_key(said: dict[str, Any]) -> None:
    said["run"] = "import os"


def drop_application(said: dict[str, Any]) -> None:
    del said["applications"][0]


def change_dtype(said: dict[str, Any]) -> None:
    next(iter(said["applications"][0]["parameters"].values()))["dtype"] = "float16"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_options, "not those that were saved"),
        (change_sizes, "not those that were saved"),
        (change_rule, "not those that were saved"),
        (break_rule, "a stored rule is wrong"),
        (add_key, "Extra inputs are not permitted"),
        (drop_application, "not those that were saved"),
        (change_dtype, "is float32 [8 24], not float16 [8, 24]"),
    ],
)
def test_a_changed_record(
    encoder: Any, folder: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    path = folder / "adapter.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    change(said)
    path.write_text(json.dumps(said), encoding="utf-8")
    assert reason.replace("[8 24]", "[8, 24]") in refused(encoder, folder)


def test_tensors_of_another_save(encoder: Any, folder: Path) -> None:
    path = folder / "adapter.safetensors"
    about = {"format": "pt", "peftc_format": "1", "peftc_plan": encoder.peftc_plan.digest}
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata=about)
    assert "is not what adapter.json says was saved" in refused(encoder, folder)
    save_file(load_file(path), path)
    assert "not the file that adapter.json belongs to" in refused(encoder, folder)


def test_a_later_format(encoder: Any, folder: Path) -> None:
    path = folder / "adapter.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, "format": 2, "peftc": "9.0"}), encoding="utf-8")
    with pytest.raises(StoreError, match=r"format 2 by peftc 9\.0"):
        api.load(bert(), folder)


def test_infinities_are_values(encoder: Any, tmp_path: Path) -> None:
    made: Any = api.compile(bert(), "lora:q,v")
    path = made.peftc_plan.new_parameters[0].path
    with torch.no_grad():
        made.get_parameter(path).fill_(float("nan"))
    made.save_pretrained(tmp_path / "adapter")
    assert api.load(bert(), tmp_path / "adapter").get_parameter(path).isnan().all()


def test_another_width(encoder: Any, folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = bert().config.to_dict() | {"hidden_size": 32}
    wider = BertForSequenceClassification(BertConfig(**config))
    with pytest.raises(ForeignAdapterError) as caught:
        api.load(wider, folder)
    assert str(caught.value) == (
        f"{folder}\n"
        "  made for a BertForSequenceClassification; this BertForSequenceClassification differs at "
        "bert.encoder.layer.0.attention.self.query:q, where lora acts\n"
        "    stored:     d_in 24, d_out 24, A [8, 24], B [24, 8]\n"
        "    this model: d_in 32, d_out 32, A [8, 32], B [32, 8]\n"
        "  and at 4 others"
    )


def test_another_depth(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = bert().config.to_dict() | {"num_hidden_layers": 1}
    with pytest.raises(ForeignAdapterError, match="this model: no such site"):
        api.load(BertForSequenceClassification(BertConfig(**config)), folder)


def test_another_architecture(folder: Path) -> None:
    with pytest.raises(ForeignAdapterError, match="made for a BertForSequenceClassification"):
        api.load(llama(), folder)


def test_a_module_with_other_rules(encoder: Any, folder: Path, tmp_path: Path) -> None:
    other: Any = api.compile(bert(), "lora:q,v(alpha=3)")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ForeignAdapterError, match="other rules, options or another order") as caught:
        other.load_adapter_weights(folder)
    assert "stored:     lora:q,v, head\n" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    shutil.rmtree(folder)
    other.save_pretrained(folder)
    with pytest.raises(ForeignAdapterError):
        encoder.load_adapter_weights(folder)
