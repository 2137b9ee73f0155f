"""Weights that a product reads in a form that no site has: each is named, with what reads it, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import peftc
from peftc import api
from peftc.errors import NoMatchError, UnknownPartError
from tests.models import bert, llama

WIDTH, STACK, OUT = 8, 3, 12
ROWS = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
Step = Callable[[Tensor, Tensor], Tensor]


class Weighted(nn.Module):
    """A linear map, and behind it a step with a weight of its own."""

    def __init__(self, step: Step, *sizes: int) -> None:
        super().__init__()
        self.inner, self.step = nn.Linear(WIDTH, WIDTH), step
        self.w = nn.Parameter(torch.randn(*sizes))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.inner(x), self.w)


class Behind(nn.Module):
    """A linear map, and behind it another module."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(WIDTH, WIDTH), last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.inner(x))


def told(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Path of each weight that is overlooked → what is said of it."""
    return {site.weights["W"]: site.evidence for site in api.analysis(model, {"x": x}).overlooked}


READ = {
    "over axes by number": (
        lambda x, w: torch.tensordot(x, w, dims=([1], [0])),
        (WIDTH, OUT),
        ROWS,
        "its weight goes into tensordot in a form that is no site",
    ),
    "by angles": (
        lambda x, w: functional.cosine_similarity(x[:, None], w, dim=-1),
        (OUT, WIDTH),
        ROWS,
        "its weight goes into cosine_similarity in a form that is no site",
    ),
    "multiplied and averaged": (
        lambda x, w: (x[:, None] * w).mean(-1),
        (OUT, WIDTH),
        ROWS,
        "its weight goes into mul and sum in a form that is no site",
    ),
    "keys that are a parameter": (
        lambda x, w: functional.scaled_dot_product_attention(x[:, None], w.expand(2, 1, -1, -1), x[:, None]),
        (5, WIDTH),
        TOKENS,
        "its weight goes into scaled_dot_product_attention in a form that is no site",
    ),
    "one of two, as data say": (
        lambda x, w: x @ torch.where(x.mean() > 0, w[0], w[1]),
        (2, WIDTH, OUT),
        ROWS,
        "its weight goes into matmul in a form that is no site",
    ),
    "all experts, of rows": (
        lambda x, w: torch.einsum("nd,edf->nef", x, w),
        (STACK, WIDTH, OUT),
        ROWS,
        "its weight goes into linear in a form that is no site",
    ),
    "all experts, of tokens": (
        lambda x, w: torch.einsum("bsd,edf->bsef", x, w),
        (STACK, WIDTH, OUT),
        TOKENS,
        "its weight goes into linear in a form that is no site",
    ),
    "rows broadcast over experts": (
        lambda x, w: x[:, None, None, :] @ w,
        (STACK, WIDTH, OUT),
        ROWS,
        "its weight goes into matmul in a form that is no site",
    ),
    "multiplied and summed": (
        lambda x, w: (x[:, :, None] * w).sum(1),
        (WIDTH, OUT),
        ROWS,
        "its weight goes into mul and sum in a form that is no site",
    ),
    "picked for each row": (
        lambda x, w: (w[x[:, :STACK].argmax(-1)] * x[:, None]).sum(-1),
        (STACK, OUT, WIDTH),
        ROWS,
        "its weight goes into mul and sum in a form that is no site",
    ),
    "squared first": (
        lambda x, w: functional.linear(x, w * w),
        (OUT, WIDTH),
        ROWS,
        "its weight is part of one that mul computes, which goes into linear",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_weight_is_named_with_what_reads_it(name: str) -> None:
    step, sizes, x, said = READ[name]
    assert told(Weighted(step, *sizes), x) == {"w": said}


def test_a_weight_that_is_computed_is_named_by_what_it_is_computed_of() -> None:
    said = "its weight is part of one that weight_norm computes, which goes into {}"
    model = Behind(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))
    parts = [f"last.parametrizations.weight.original{number}" for number in (0, 1)]
    assert told(model, ROWS) == dict.fromkeys(parts, said.format("linear"))


@pytest.mark.parametrize(("kind", "name"), [(nn.LSTM, "lstm"), (nn.GRU, "gru"), (nn.RNN, "rnn_tanh")])
def test_recurrences(kind: Any, name: str) -> None:
    said = f"its weight goes into {name}, a recurrence"
    model = Behind(kind(WIDTH, WIDTH, batch_first=True))
    assert told(model, TOKENS) == {"last.weight_ih_l0": said, "last.weight_hh_l0": said}


NOT_MEANT = {
    "a table of positions": (lambda x, w: x + w[: x.shape[1]], (9, WIDTH)),
    "a scale": (lambda x, w: (x * w).mean(1), (1, WIDTH)),
    "a scale, summed over tokens": (lambda x, w: (x * w).sum(1), (1, WIDTH)),
    "a token of the model's own": (
        lambda x, w: torch.cat([w.expand(x.shape[0], 1, WIDTH), x], 1) @ x.transpose(1, 2),
        (1, WIDTH),
    ),
    "bias of a product": (
        lambda x, w: torch.baddbmm(w, x[:, :, :1], x[:, :1]),
        (5, WIDTH),
    ),
    "a scale that is no product's": (lambda x, w: torch.exp(x * w) @ x.transpose(1, 2), (1, WIDTH)),
}


@pytest.mark.parametrize("name", NOT_MEANT)
def test_what_is_added_or_multiplied_by_number_is_not_meant(name: str) -> None:
    step, sizes = NOT_MEANT[name]
    assert told(Weighted(step, *sizes), TOKENS) == {}


class Latent(nn.Module):
    """Rows of the model's own, through a linear map, that attend to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.q, self.k = (
            nn.Parameter(torch.randn(6, WIDTH)),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.q(self.rows) @ self.k(x).transpose(1, 2)  # type: ignore[no-any-return]


def test_what_a_linear_map_reads_is_no_weight() -> None:
    assert told(Latent(), TOKENS) == {}


def test_whole_models_have_none() -> None:
    assert api.analysis(bert()).overlooked == api.analysis(llama()).overlooked == ()


def test_a_plan_says_what_a_rule_for_all_linear_maps_leaves_out() -> None:
    model = Behind(nn.LSTM(WIDTH, WIDTH, batch_first=True))
    plan = peftc.plan(model, ["lora:all-linear(rank=2)"], {"x": TOKENS}, defaults=False)
    assert [(skip.site.id, skip.reason) for skip in plan.skips] == [
        (f"last.{name}:other", "its weight goes into lstm, a recurrence")
        for name in ("weight_ih_l0", "weight_hh_l0")
    ]
    assert "2 × its weight goes into lstm, a recurrence: last.weight_ih_l0:other" in str(peftc.explain(plan))


@pytest.mark.parametrize("spec", ["lora:conv(rank=1)", "lora:path=1.inner(rank=2)"])
def test_a_rule_that_asks_for_others_says_nothing_of_them(spec: str) -> None:
    model = nn.Sequential(nn.Conv1d(5, 5, 1), Behind(nn.LSTM(WIDTH, WIDTH, batch_first=True)))
    plan = peftc.plan(model, [spec], {"input": TOKENS}, defaults=False)
    assert not [skip for skip in plan.skips if skip.site.path == "1.last"]


def test_a_kernel_that_is_computed_is_left_out_by_rules_for_convolutions() -> None:
    kernel = parametrizations.weight_norm(nn.Conv1d(WIDTH, WIDTH, 3))
    model = nn.Sequential(nn.Conv1d(5, WIDTH, 1), kernel)
    for spec, count in (("lora:conv(rank=1)", 2), ("lora:path=0(rank=1)", 0)):
        plan = peftc.plan(model, [spec], {"input": TOKENS}, defaults=False)
        said = [skip.reason for skip in plan.skips if skip.site.path.startswith("1.")]
        assert said == count * ["its weight is part of one that weight_norm computes, which goes into conv1d"]


@pytest.mark.parametrize("spec", ["lora:all-linear(rank=2)", "lora:path=0(rank=2)"])
def test_a_rule_that_matches_nothing_else_names_them(spec: str) -> None:
    model = nn.Sequential(nn.LSTM(WIDTH, WIDTH, batch_first=True))
    with pytest.raises(NoMatchError, match=r"weight_hh_l0:other: its weight goes into lstm"):
        peftc.plan(model, [spec], {"input": TOKENS}, defaults=False)


def test_they_are_named_where_a_part_is_missing() -> None:
    model = Behind(nn.LSTM(WIDTH, WIDTH, batch_first=True))
    with pytest.raises(UnknownPartError, match=r"weight_hh_l0:other: its weight goes into lstm") as error:
        peftc.plan(model, ["lora:q"], {"x": TOKENS})
    assert error.value.hint == "it has: other"
