"""The page of coverage: what was trained with other rules than attention's stands apart, with the reason."""

from __future__ import annotations

from benchmarks.coverage import TRAINED
from benchmarks.coverage_page import tables
from peftc.capture import UNREAD

ATTENTION, LINEARS, CONVOLUTIONS = TRAINED


def row(spec: str, **more: object) -> dict[str, object]:
    """A model that learned."""
    return {"verdict": "pass", "why": "", "spec": spec, **more}


def test_models_without_attention_stand_apart_with_the_reason() -> None:
    rows: dict[tuple[str, str], dict[str, object]] = {
        ("seeing", "causal"): row(ATTENTION, unread=[]),
        ("scanning", "causal"): row(LINEARS, unread=[]),
        ("sinking", "causal"): row(LINEARS, unread=[f"{UNREAD}softmax in layer.0: 0 sides are scores"]),
        ("older", "image"): row(LINEARS),
        ("folding", "image"): row(CONVOLUTIONS, unread=[]),
        ("broken", "image"): {"verdict": "no model", "why": "it does not run"},
    }
    told = "\n".join(tables(rows))
    assert "Of 5 models that run, 5 compile" in told
    assert f"1 with `{ATTENTION}`; 3 with `{LINEARS}`, where no attention was found; 1 with" in told
    assert "No softmax attention of linear maps is in 1: scanning (causal)." in told
    assert "- sinking (causal): softmax in layer.0: 0 sides are scores" in told
    assert "Measured before the reason was kept, 1: older (image)." in told
