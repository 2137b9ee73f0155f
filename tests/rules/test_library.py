"""Every rule of the library by being there: how it starts, what trains, the way back from a folder, and merging."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.lang import default_library
from peftc.runtime.merging import unmergeable
from tests.models import bert, padding, randomise, tokens

NAMES = default_library().names()
OPTIONS = {
    "adalora": "(rank=4, target=2)",
    "oft": "(block=4)",
    "compacter": "(reduction=3)",
    "prompt": ":5",
    "p_tuning": "(length=5, hidden=8)",
}
"""Where the defaults do not fit a tiny model."""
BESIDE = {"nf4": ["lora:q,v"]}
"""Rules that train nothing by themselves, with others that do."""
SAVED = {"adapter_fusion": "bottleneck:8"}
"""Rules over adapters that were saved before, and what these are of."""
OTHER_AT_START = {
    "p_tuning": "its rows are made of what is drawn at random",
    "adapter_fusion": "the adapters that it fuses were trained",
    "nf4": "four bits leave something else of the weights",
    "prompt": "its rows are drawn from the vocabulary",
    "prefix": "its keys are drawn at random",
    "prefix_mlp": "so are the keys that its network makes",
    "p_tuning_v2": "it is a prefix",
    "mam": "it has a prefix",
    "unipelt": "it has a prefix, and gates of it",
    "compacter": "all of its matrices are drawn at random, near 0",
    "houlsby": "both maps of its bottlenecks are drawn at random, near 0",
}
"""Rules that do not start as the model they are put into, and why."""


@cache
def made(name: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """A plain model, the compiled one as it starts, and a batch with labels and padding."""
    model = bert(num_hidden_layers=1)
    given = {"input_ids": tokens(), "attention_mask": padding(), "labels": torch.tensor([0, 1, 1])}
    data = {"input_ids": tokens(), "attention_mask": padding()}
    rules = [f"{name}{OPTIONS.get(name, '')}", *BESIDE.get(name, [])]
    with TemporaryDirectory() as folder:
        saved: dict[str, Path] = {}
        for which in ("one", "two") if name in SAVED else ():
            before: Any = peftc.compile(model, SAVED[name], given, defaults=False)
            randomise(before)
            before.save_pretrained(saved.setdefault(which, Path(folder) / which))
        compiled = peftc.compile(model, rules, given, defaults=False, data=data, saved=saved or None)
    return model, compiled.eval(), given


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_model(name: str) -> None:
    model, compiled, given = made(name)
    with torch.no_grad():
        far = (compiled(**given).logits - model(**given).logits).abs().max()
    assert bool(far <= 1e-6) == (name not in OTHER_AT_START), float(far)


@pytest.mark.filterwarnings("ignore:.* merged weights were in")
@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_train_and_nothing_else(name: str, tmp_path: Path) -> None:
    model, compiled, given = made(name)
    randomise(compiled, scale=0.1)
    plan = compiled.peftc_plan
    planned = {each.path for each in plan.new_tensors if each.trainable} | set(plan.trained)
    assert planned == {path for path, each in compiled.named_parameters() if each.requires_grad}
    compiled(**given).loss.backward()
    reached = {path for path, each in compiled.named_parameters() if each.grad is not None}
    assert reached == planned
    new = [each.path for each in plan.new_tensors if each.trainable]
    assert not [path for path in new if not bool(compiled.get_parameter(path).grad.abs().max() > 0)]
    compiled.zero_grad()

    compiled.save_pretrained(tmp_path / "adapter")
    # Trainable as it was: torch chooses by that how it computes some products, with other roundings.
    again: Any = peftc.load(model, tmp_path / "adapter", given, trainable=True).eval()
    with torch.no_grad():
        out = compiled(**given).logits
        assert torch.equal(again(**given).logits, out)
        if not unmergeable(plan):
            merged = compiled.merge_and_unload()(**given).logits
            assert (merged - out).abs().max() <= 1e-5 * max(1.0, float(out.abs().max()))


def test_exceptions_are_of_rules_that_there_are() -> None:
    assert {*OPTIONS, *BESIDE, *SAVED, *OTHER_AT_START} <= set(NAMES)
