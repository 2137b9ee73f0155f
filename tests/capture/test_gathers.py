"""Rows of a parameter that are looked up by indexing: what becomes an embedding, equal, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.graphs import calls, captured, run

IDS = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(0))
Read = Callable[[Tensor, Tensor], Tensor]


class Looked(nn.Module):
    """Rows of a bare parameter, which `read` takes by ids."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = read
        self.rows, self.out = nn.Parameter(torch.randn(40, 6)), nn.Linear(6, 40)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.read(self.rows, ids))  # type: ignore[no-any-return]


def by_sides(rows: Tensor, ids: Tensor) -> Tensor:
    return torch.index_select(rows, 0, ids.flatten()).view(*ids.shape, -1)


@pytest.mark.parametrize(
    "read", [lambda rows, ids: rows[ids], by_sides, lambda rows, ids: rows[(ids + 1).clamp(max=39)]]
)
def test_rows_by_ids_are_an_embedding(read: Read) -> None:
    model = Looked(read)
    program = captured(model, ids=IDS)
    assert len(calls(program, "embedding")) == 1
    assert torch.equal(run(program, model, IDS), model(IDS))
    (table,) = [site for site in peftc.sites(model, {"ids": IDS}) if site.role == "embedding"]
    assert (table.part, table.weights["W"], dict(table.sizes)) == (
        "embedding",
        "rows",
        {"vocab": 40, "d_model": 6},
    )


@pytest.mark.parametrize(
    "read",
    [
        lambda rows, ids: rows[ids - 1],  # a row from the end, where an id is 0
        lambda rows, ids: rows[-1 * ids],
        lambda rows, ids: rows[rows[:, 0].argsort()][ids],
        lambda rows, ids: rows[torch.tensor([3, 1, 2])][ids.clamp(max=2)],
    ],
)
def test_other_rows_are_left(read: Read) -> None:
    model = Looked(read)
    program = captured(model, ids=IDS)
    assert not calls(program, "embedding")
    assert torch.equal(run(program, model, IDS), model(IDS))


def test_rules_for_tables_meet_a_bare_parameter() -> None:
    model = Looked(lambda rows, ids: rows[ids])
    compiled: Any = peftc.compile(model, ["lora:embedding(rank=2)"], {"ids": IDS}, defaults=False)
    assert [each.site.path for each in compiled.peftc_plan.applications] == [""]
    assert torch.equal(compiled(IDS), model(IDS))
    (longer,) = [
        each.site for each in peftc.plan(model, ["prompt:3"], {"ids": IDS}, defaults=False).applications
    ]
    assert (longer.role, longer.weights["W"]) == ("input", "rows")
