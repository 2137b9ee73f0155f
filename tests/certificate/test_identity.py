"""The start of rules: each initialiser that does not give what its rule is there for is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

import peftc
from peftc.certificate.identity import identity_at_start
from tests.certificate.breaking import added, broken, is_not, named
from tests.models import llama, randomise

LIBRARY = Path(__file__).parent.parent.parent / "rules"
WRONG = {
    "noise for zeros": (
        "lora",
        'B = { axes = "d_out rank", init = "zeros"',
        'B = { axes = "d_out rank", init = "normal(std=0.1)"',
    ),
    "one map near 0": (
        "lora",
        'B = { axes = "d_out rank", init = "zeros"',
        'B = { axes = "d_out rank", init = "normal(std=0.001)"',
    ),
    "the other map's law": (
        "lora",
        'B = { axes = "d_out rank", init = "zeros"',
        'B = { axes = "d_out rank", init = "kaiming_uniform"',
    ),
    "no zeros between": ("adalora", 'init = "zeros", gate', 'init = "ones", gate'),
    "twos for ones": ("ia3", 'init = "ones" }', 'init = "constant(value=2)" }'),
    "another length": ("dora", "length(W, axis='d_in')", "2 * length(W, axis='d_in')"),
    "all of it kept": (
        "pissa",
        'B0 = { axes = "d_out rank", init = "B"',
        'B0 = { axes = "d_out rank", init = "zeros"',
    ),
    "a turn": ("oft", 'init = "zeros"', 'init = "normal(std=0.3)"'),
}


def wrong(tmp_path: Path, name: str, right: str, instead: str) -> str:
    """A rule file like that of the library but for one initial value."""
    text = (LIBRARY / f"{name}.toml").read_text()
    assert right in text
    file = tmp_path / f"{name}.toml"
    file.write_text(text.replace(right, instead, 1))
    return f"{file}{'(block=4)' if name == 'oft' else ''}"


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_initialiser_is_named(case: tuple[str, str, str], tmp_path: Path) -> None:
    compiled = peftc.compile(llama(num_hidden_layers=1), [wrong(tmp_path, *case)], defaults=False)
    finding = named(compiled, identity_at_start)
    assert finding.verdict == "fail"
    assert finding.figure > 1e-4
    assert case[0] in finding.detail


def test_what_acts_beside_it_does_not_hide_it(tmp_path: Path) -> None:
    spec = wrong(tmp_path, *WRONG["noise for zeros"])
    bad = peftc.compile(llama(num_hidden_layers=1), [spec, "prefix:3"], defaults=False)
    assert named(bad, identity_at_start).verdict == "fail"
    good = peftc.compile(llama(num_hidden_layers=1), ["lora:q,v", "prefix:3"], defaults=False)
    assert named(good, identity_at_start).verdict == "pass"


def test_a_trained_module_is_asked_how_it_started() -> None:
    compiled: Any = peftc.compile(llama(num_hidden_layers=1), ["pissa:q,v(rank=2)", "bitfit"], defaults=False)
    randomise(compiled)
    before = {name: value.clone() for name, value in compiled.state_dict().items()}
    assert named(compiled, identity_at_start).verdict == "pass"
    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())


def test_what_is_drawn_near_0_starts_near_the_model(tmp_path: Path) -> None:
    finding = named(
        peftc.compile(llama(num_hidden_layers=1), ["houlsby:4"], defaults=False), identity_at_start
    )
    assert finding.verdict == "pass"
    assert 1e-7 < finding.figure < finding.bound == 5e-3
    assert "near 0" in finding.detail
    case = (
        "bottleneck",
        'up_w   = { axes = "d_model size", init = "zeros" }',
        'up_w   = { axes = "d_model size", init = "normal(std=0.05)" }',
    )
    compiled = peftc.compile(llama(num_hidden_layers=1), [wrong(tmp_path, *case)], defaults=False)
    assert named(compiled, identity_at_start).verdict == "fail"


def test_a_prefix_promises_none() -> None:
    finding = named(
        peftc.compile(llama(num_hidden_layers=1), ["prefix:3"], defaults=False), identity_at_start
    )
    assert finding.verdict == "not applicable"
    assert "prefix puts something in front" in finding.detail


def test_an_identity_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(graph: fx.Graph) -> None:
        for node in added(graph, "add"):
            with graph.inserting_after(node):
                more = graph.call_function(torch.ops.aten.add.Tensor, (node, 0.5))
            more.meta = dict(node.meta)
            node.replace_all_uses_with(more, delete_user_cb=is_not(more))

    assert named(broken(monkeypatch, mend, ["lora:q,v"]), identity_at_start).verdict == "fail"
