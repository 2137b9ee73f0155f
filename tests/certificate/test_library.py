"""Every rule of the library, on a decoder, an encoder and both: all of the certificate but what costs most."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.captured import Captured, fill
from peftc.certificate.gradients import captured_gradients, checkpointing
from peftc.certificate.properties import PROPERTIES, traced
from peftc.certificate.subject import examined
from peftc.errors import NoMatchError
from peftc.lang import default_library
from tests.models import bert, llama, padding, tokens
from tests.zoo import entry, inputs

pytestmark = pytest.mark.slow
COSTLY = (captured_gradients, checkpointing, traced)
NOT_CAUSAL = {("decoder", "unipelt"), ("both", "unipelt")}
"""Gates of these are computed from all tokens, as plans say."""


@cache
def captured(kind: str) -> Captured:
    """One of each kind."""
    if kind == "both":
        model = entry("t5").model()
        return Captured(model, inputs(model))
    model = llama() if kind == "decoder" else bert()
    return Captured(model, {"input_ids": tokens(), "attention_mask": padding()})


@pytest.mark.parametrize("name", default_library().names())
@pytest.mark.parametrize("kind", ["decoder", "encoder", "both"])
def test_every_rule_has_its_certificate(kind: str, name: str) -> None:
    if name == "head" and kind != "encoder":  # the others make words
        with pytest.raises(NoMatchError):
            captured(kind).compiled([name])
        return
    compiled = fill(captured(kind).compiled([name]))
    with examined(compiled, captured(kind).given) as subject:
        found = [examine(subject) for examine in PROPERTIES if examine not in COSTLY]
    wrong = {each.name: each.detail for each in found if each.verdict == "fail"}
    expected = {"visibility", "cached decoding"} if (kind, name) in NOT_CAUSAL else set()
    assert wrong.keys() == expected, wrong
