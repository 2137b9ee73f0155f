"""Edits of what blocks leave in a subspace of low rank, at the ends of texts, against the equation written out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.zoo import entry, inputs

FIRST, LAST = 2, 1


def edited(h: Tensor, held: dict[str, Tensor], real: Tensor, first: int = FIRST, last: int = LAST) -> Tensor:
    """h + Rᵀ (W h + b − R h) at the ends of each row's real tokens; the rows of R span those of Pᵀ."""
    q, r = torch.linalg.qr(held["P"])
    rows = (q * r.diagonal().sign()).T
    out = h.clone()
    for row, kept in enumerate(real.bool()):
        places = kept.nonzero().flatten().tolist()
        for place in sorted({*places[:first], *places[len(places) - last :]}):
            x = h[row, place]
            out[row, place] = x + rows.T @ (held["W"].T @ x + held["b"] - rows @ x)
    return out


def by_hand(
    model: Any,
    compiled: Any,
    real: Callable[[], Tensor],
    ends: Mapping[str, tuple[int, int]] | None = None,
) -> Any:
    """A copy of the model whose blocks' outputs are edited, by each use of the rule at ends of its own."""
    made = copy.deepcopy(model)
    for application in compiled.peftc_plan.applications:
        of = (ends or {}).get(application.rule, (FIRST, LAST))
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}

        def edit(
            _: nn.Module, __: Any, out: Any, held: dict[str, Tensor] = held, of: tuple[int, int] = of
        ) -> Any:
            if isinstance(out, tuple):
                return (edited(out[0], held, real(), *of), *out[1:])
            return edited(out, held, real(), *of)

        made.get_submodule(application.site.path).register_forward_hook(edit)
    return made


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("make", [bert, llama])
def test_the_equation(make: Callable[[], Any], left: bool) -> None:
    model = make().double()
    given = {"input_ids": tokens(), "attention_mask": padding(left=left)}
    spec = f"loreft:3(first={FIRST}, last={LAST})"
    compiled: Any = peftc.compile(model, [spec], given, defaults=False)
    real = padding(left=left).bool() if make is llama else torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        out = model(**given).logits
        torch.testing.assert_close(compiled(**given).logits, out, atol=1e-5, rtol=1e-5)
    randomise(compiled)
    want_of = by_hand(model, compiled, lambda: padding(left=left))
    got, want = compiled(**given).logits[real], want_of(**given).logits[real]
    assert (got - out[real]).abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    own = {name: each for name, each in compiled.named_parameters() if each.requires_grad}
    weights = torch.randn_like(want)
    ours = torch.autograd.grad((got * weights).sum(), list(own.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(own.values()))
    for name, one, other in zip(own, ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-7 * max(float(other.abs().max()), 1e-6), name


def test_ends_may_have_a_subspace_each() -> None:
    """The paper's untied form: one rule for the first tokens, one for the last."""
    model = llama().double()
    given = {"input_ids": tokens(), "attention_mask": padding()}
    specs = [f"loreft:3(first={FIRST}, last=0)", f"loreft:3(first=0, last={LAST})"]
    compiled: Any = peftc.compile(model, specs, given, defaults=False)
    randomise(compiled)
    real, ends = padding().bool(), {"loreft": (FIRST, 0), "loreft_2": (0, LAST)}
    want = by_hand(model, compiled, padding, ends)(**given).logits[real]
    torch.testing.assert_close(compiled(**given).logits[real], want, atol=1e-9, rtol=1e-9)


def test_two_sequences_have_ends_each() -> None:
    model = entry("t5").model().double()
    given = inputs(model)
    compiled: Any = peftc.compile(model, [f"loreft:3(first={FIRST}, last={LAST})"], given, defaults=False)
    randomise(compiled)
    assert len(compiled.peftc_plan.applications) == 4
    assert given["input_ids"].shape == given["decoder_input_ids"].shape
    want_of = by_hand(model, compiled, lambda: torch.ones_like(given["input_ids"]))
    torch.testing.assert_close(compiled(**given).logits, want_of(**given).logits, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cache", ["dynamic", pytest.param("static", marks=pytest.mark.slow)])
def test_tokens_that_are_generated_are_not_edited(cache: str) -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["loreft:3"], defaults=False)
    randomise(compiled)
    hidden = padding(left=True) if cache == "dynamic" else torch.ones_like(tokens())
    call, new = {"input_ids": tokens(), "attention_mask": hidden}, 4
    told: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "cache_implementation": cache}
    made = compiled.generate(**call, **told)
    text, mask = tokens(), hidden
    want_of = copy.deepcopy(model)
    for application in compiled.peftc_plan.applications:
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}

        def edit(_: nn.Module, __: Any, out: Any, held: dict[str, Tensor] = held) -> Any:
            length = mask.shape[1]  # of what was given: what follows stays as it is
            return torch.cat([edited(out[:, :length], held, mask, first=1), out[:, length:]], 1)

        want_of.get_submodule(application.site.path).register_forward_hook(edit)
    whole = mask
    with torch.no_grad():
        for _ in range(new):
            ids = (whole.cumsum(1) - 1).clamp(min=0)
            logits = want_of(text, attention_mask=whole, position_ids=ids, use_cache=False).logits[:, -1]
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
            whole = torch.cat([whole, torch.ones_like(whole[:, :1])], 1)
    assert torch.equal(made, text)
    assert not torch.equal(made, model.generate(**call, **told))


def test_the_first_token_is_behind_rows_put_in_front() -> None:
    model = llama().double()
    mask, front = padding(), 5
    given = {"input_ids": tokens(), "attention_mask": mask}
    specs = [f"prompt(length={front}, init=uniform)", f"loreft:3(first={FIRST}, last={LAST})"]
    compiled: Any = peftc.compile(model, specs, given, defaults=False)
    randomise(compiled)
    plan = compiled.peftc_plan
    (rows,) = [each for each in plan.applications if each.rule == "prompt"]
    edits = dataclasses.replace(
        plan, applications=tuple(each for each in plan.applications if each.rule == "loreft")
    )
    kept = SimpleNamespace(peftc_plan=edits, get_parameter=compiled.get_parameter)
    text = torch.cat([torch.zeros_like(mask[:, :1]).expand(-1, front), mask], 1)
    written = by_hand(model, kept, lambda: text)
    table = model.get_input_embeddings()(given["input_ids"])
    start = compiled.get_parameter(rows.parameters[0].path)
    with torch.no_grad():
        want = written(
            inputs_embeds=torch.cat([start.expand(len(table), -1, -1), table], 1),
            attention_mask=torch.cat([torch.ones_like(text[:, :front]), mask], 1),
        ).logits[:, front:]
        got = compiled(**given).logits
    real = mask.bool()
    torch.testing.assert_close(got[real], want[real], atol=1e-9, rtol=1e-9)


def test_it_is_saved_folded_and_loaded(tmp_path: Path) -> None:
    model = bert(num_hidden_layers=1)
    compiled: Any = peftc.compile(model, ["loreft:3"], defaults=False).eval()
    randomise(compiled)
    compiled.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, compiled(tokens()).logits)


def test_layers_can_be_chosen() -> None:
    plan = peftc.plan(bert(), ["loreft@1"], defaults=False)
    assert [each.site.layer for each in plan.applications] == [1]
