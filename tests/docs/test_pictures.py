"""Pictures of where rules attach: what is in them comes from the rewritten graph, and a person can read them."""

from __future__ import annotations

from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import pytest

from docs.making.anatomy import Anatomy, anatomy
from docs.making.picture import LANE, Box, picture, placed, routes


@pytest.fixture(scope="module", params=["lora", "prefix", "unipelt", "bitfit"])
def drawn(request: pytest.FixtureRequest) -> Anatomy:
    """What is drawn of a rule."""
    return anatomy(request.param)


def test_a_picture_is_well_formed_and_the_same_each_time(drawn: Anatomy) -> None:
    text = picture(drawn)
    assert ET.fromstring(text).tag.endswith("svg")
    assert picture(drawn) == text


def test_boxes_are_apart_and_lines_go_around_them(drawn: Anatomy) -> None:
    boxes = placed(drawn)
    for one, other in combinations(boxes.values(), 2):
        beside = abs(one.x - other.x) >= (one.width + other.width) / 2
        assert beside or one.bottom <= other.y or other.bottom <= one.y, (one.lines, other.lines)
    for route in routes(drawn, boxes):
        for (x, y), (to_x, to_y) in pairwise(route.points):
            assert abs(x - to_x) > 0.5 or not [box for box in boxes.values() if crosses(box, x, y, to_y)]


def crosses(box: Box, x: float, top: float, bottom: float) -> bool:
    """Whether a vertical line goes through the inside of a box."""
    return box.covers(x, -LANE / 4) and box.y + 1 < bottom and top + 1 < box.bottom


def test_what_a_rule_puts_in_reads_and_is_read_as_the_graph_has_it() -> None:
    found = anatomy("lora")
    words = {key: part.lines[0] for key, part in found.parts.items()}
    reads = {(words[one], words[other]) for one, other in found.reads}
    assert {
        ("q", "lora"),
        ("norm", "lora"),
        ("v", "lora"),
        ("lora", "attention"),
        ("k", "attention"),
    } <= reads
    assert ("q", "attention") not in reads
    assert ("v", "attention") not in reads
    assert {part.lines for part in found.parts.values() if part.kind == "rule"} == {
        ("lora", "y = y + delta", "trains A, B")
    }


def test_what_trains_of_the_model_is_said_at_its_place() -> None:
    found = anatomy("head")
    assert found.model == "encoder"
    assert [part.lines for part in found.parts.values() if part.trains] == [("head", "trains W, b")]
