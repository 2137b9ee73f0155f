"""Rows in front of the input of any architecture: rows that are embedded tokens do what these tokens would have done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import peftc
from peftc.certificate.subject import error, main_output
from peftc.errors import NoMatchError
from tests.zoo import THE_57, entry, inputs

ROWS = 4
NO_TOKENS = {"vit", "dinov2", "clip_vision_model", "beit", "swin", "wav2vec2"}
NO_SOURCE = {"whisper"}  # what it reads first is sound


# One whose embedded tokens are scaled is quick in tests/rules/test_prompt.py.
@pytest.mark.slow
@pytest.mark.parametrize("model_type", THE_57)
def test_rows_that_are_tokens(model_type: str) -> None:
    model = entry(model_type).model()
    given = inputs(model)
    name, spec = "input_ids", f"prompt({{}}length={ROWS}, init=text)"
    if model_type in NO_TOKENS | NO_SOURCE:
        with pytest.raises(NoMatchError, match="input"):
            peftc.plan(model, [spec.format("")], given, defaults=False)
    if model_type in NO_TOKENS:
        return
    if model_type in NO_SOURCE:
        name, spec = "decoder_input_ids", f"prompt:decoder.input(length={ROWS}, init=text)"
    front = (given[name][:1, :ROWS] + 7) % 40 + 5
    data = {**given, name: front.expand(2, -1)}
    compiled: Any = peftc.compile(model, [spec.format("")], given, defaults=False, data=data)
    longer = {**given, name: torch.cat([front.expand(2, -1), given[name]], 1)}
    with torch.no_grad():
        want = main_output(model(**longer))
    if name == "decoder_input_ids" or "decoder_input_ids" not in given:
        want = want[:, ROWS:]
    got = main_output(compiled(**given))
    far = error(got.detach(), want)
    assert far <= 1e-5, f"differs by {far:.2g}"
    (path,) = [each.path for each in compiled.peftc_plan.new_tensors]
    (gradient,) = torch.autograd.grad(got.pow(2).sum(), compiled.get_parameter(path))
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient.abs().amax(1) > 0).all())
    if callable(getattr(model, "prepare_inputs_for_generation", None)) and model.can_generate():
        check_generation(compiled, model, given, longer)


def check_generation(compiled: Any, model: Any, given: dict[str, Any], longer: dict[str, Any]) -> None:
    """The model itself, going on from the longer text, says the same."""
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        got = compiled.generate(**given, **settings)
        want = model.generate(**longer, **settings)
    assert torch.equal(got[:, -4:], want[:, -4:])
