"""The bottleneck beside a feed-forward network under a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import peftc
from tests.models import bert, llama, randomise
from tests.rules.composites import check_equal


@pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])
def test_the_equation(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled = peftc.compile(model, ["parallel:8(scale=2)"], defaults=False)
    randomise(compiled, scale=0.1)
    check_equal(model, kind, compiled, scale=2.0, parallel=True)


def test_its_options_are_its_own() -> None:
    options = peftc.plan(bert(), ["parallel"], defaults=False).bound("parallel").options
    assert options == {"size": 512, "scale": 4.0, "act": "relu"}
    assert peftc.plan(bert(), ["parallel:1"], defaults=False).trainable_count == 2 * (3 * 24 + 1)
