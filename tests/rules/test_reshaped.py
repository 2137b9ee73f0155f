"""Rules that split and join axes and take Kronecker products, against their papers' equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import NoMatchError, RuleError
from peftc.lang import check, read_text
from tests.models import randomise

LOKR = """
format = 1
name = "lokr"
summary = "An update that is a Kronecker product."
paper = "https://arxiv.org/abs/2309.14859"
[options]
factor = { default = 4, min = 1 }
[match]
role = "linear"
values = { x = "* d_in", W = "d_out d_in", y = "* d_out" }
[parameters]
C = { axes = "c_out=factor c_in=factor", init = "normal(std=0.1)" }
D = { axes = "o=d_out/factor i=d_in/factor", init = "normal(std=0.1)" }
[let]
update = "kron(C, D, rows='d_out', columns='d_in')"
[rewrite]
y = "y + x @ update"
[merge]
W = "W + update"
"""
OFT = """
format = 1
name = "oft"
summary = "A rotation of blocks of the input."
paper = "https://arxiv.org/abs/2306.07280"
[options]
blocks = { default = 4, min = 1 }
[match]
role = "linear"
values = { x = "* d_in" }
[parameters]
S = { axes = "blocks a=d_in/blocks b=d_in/blocks", init = "zeros" }
[rewrite]
x = "join(rename(split(x, blocks, axis='d_in', outer='blocks', inner='a') @ cayley(S), axis='b', to='a'), outer='blocks', inner='a', to='d_in')"
"""  # noqa: E501


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(16, 8)


X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def compiled_with(text: str, name: str) -> tuple[nn.Linear, Any, dict[str, Tensor]]:
    plain = model()
    compiled: Any = peftc.compile(plain, read_text(text, f"{name}.toml"), {"input": X}, defaults=False)
    randomise(compiled, scale=0.3)
    made = {each.name: compiled.get_parameter(each.path) for each in compiled.peftc_plan.new_parameters}
    return plain, compiled, made


def test_a_kronecker_update() -> None:
    plain, compiled, made = compiled_with(LOKR, "lokr")
    assert made["C"].shape == (4, 4)
    assert made["D"].shape == (2, 4)
    weight = plain.weight + torch.kron(made["C"], made["D"])
    assert torch.allclose(compiled(X), X @ weight.T + plain.bias, atol=1e-5)


def test_a_rotation_of_blocks() -> None:
    plain, compiled, made = compiled_with(OFT, "oft")
    one = torch.eye(4)
    blocks = []
    for seed in made["S"]:
        skew = (seed - seed.T) / 2
        blocks.append(torch.linalg.inv(one - skew) @ (one + skew))
    turned = X @ torch.block_diag(*blocks)
    assert torch.allclose(compiled(X), turned @ plain.weight.T + plain.bias, atol=1e-5)
    assert torch.allclose(turned.norm(dim=-1), X.norm(dim=-1), atol=1e-4)


def test_a_size_that_is_no_whole_number_leaves_a_site_out() -> None:
    text = LOKR.replace("default = 4", "default = 3")
    with pytest.raises(NoMatchError) as caught:
        peftc.compile(model(), read_text(text, "lokr.toml"), {"input": X}, defaults=False)
    assert "the size d_out/factor of D is no whole number above 0 here (d_out = 8, factor = 3)" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("i=d_in/factor", "i=d_in/2", "the axis 'd_in' is d_in long on one side, d_in*factor/2 on the other"),
        (
            "o=d_out/factor",
            "o=d_out",
            "the axis 'd_out' is d_out long on one side, d_out*factor on the other",
        ),
        ("i=d_in/factor", "i=d_in//factor", "'d_in//factor' is no size"),
        ("i=d_in/factor", "i=d_in/fctor", "'fctor' is neither an option nor an axis of a value"),
        ("i=d_in/factor", "i=d_in/factor/0", "'d_in/factor/0' is no size"),
        ("i=d_in/factor", "i=factor/d_in*d_in", "the axis 'd_in' is"),
    ],
)
def test_lengths_are_reckoned_by_name(old: str, new: str, said: str) -> None:
    with pytest.raises(RuleError) as caught:
        check(read_text(LOKR.replace(old, new), "lokr.toml"))
    assert said in str(caught.value)


def test_the_order_of_factors_means_nothing() -> None:
    for same in ("1*d_in/factor", "2*d_in/factor/2", "d_in*factor/factor/factor"):
        text = LOKR.replace("i=d_in/factor", f"i={same}")
        assert compiled_with(text, "lokr")[2]["D"].shape == (2, 4)
