"""Mix and match: a prefix and a scaled bottleneck beside, against both equations written out at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from peftc.errors import NoMatchError, UnknownOptionError
from tests.match.test_matching import OneForBoth
from tests.models import bert, llama, randomise
from tests.rules.composites import check_equal, check_saved

SPEC = "mam(prefix_length=5, bottleneck_size=8)"


@pytest.mark.parametrize(
    ("make", "kind"),
    [pytest.param(bert, "bert", id="bert"), pytest.param(llama, "llama", id="llama", marks=pytest.mark.slow)],
)
def test_both_equations_at_once(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled = peftc.compile(model, [SPEC], defaults=False)
    randomise(compiled, scale=0.1)
    check_equal(model, kind, compiled, scale=4.0, parallel=True)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = bert()
    compiled = peftc.compile(model, [SPEC], defaults=False)
    randomise(compiled)
    check_saved(compiled, model, tmp_path / "adapter")


def test_the_papers_numbers_are_the_defaults() -> None:
    options = peftc.plan(bert(), ["mam"], defaults=False).bound("mam").options
    assert (options["prefix_length"], options["bottleneck_size"], options["bottleneck_scale"]) == (
        30,
        512,
        4.0,
    )


def test_an_option_is_known_by_its_label() -> None:
    with pytest.raises(UnknownOptionError, match="prefix_length"):
        peftc.plan(bert(), ["mam(length=3)"])


def test_both_halves_must_find_their_place() -> None:
    given = {"x": torch.randn(2, 5, 16)}
    with pytest.raises(NoMatchError, match="section 4 of mam matches nothing: this model has no ffn"):
        peftc.plan(OneForBoth(), ["mam"], given)
