"""Sizes of axes: products, quotients and functions of names; what they come to at a site, and what is refused."""

from __future__ import annotations

import pytest

from peftc.errors import RuleError
from peftc.lang import check, read_text
from peftc.lang.sizes import calls, canonical, names_of, over, renamed_size, size_at, times

HEAD = """
format = 1
name = "sized"
summary = "Sizes."
[options]
block = { default = 4, min = 1 }
[match]
role = "linear"
"""
SKEW = f"""{HEAD}
[parameters]
v = {{ axes = "n=d_in/block pairs=pairs(block)", init = "zeros" }}
[let]
pieces = "split(x, d_in / block, axis='d_in', outer='n', inner='a')"
R = "skew(v, block, rows='a', columns='b')"
turned = "rename(pieces @ R, axis='b', to='a')"
[rewrite]
x = "join(turned, outer='n', inner='a', to='d_in')"
"""
KRONECKER = f"""{HEAD}
[parameters]
C = {{ axes = "c_out=divisor(d_out,block) c_in=divisor(d_in,block)", init = "zeros" }}
D = {{ axes = "o=d_out/divisor(d_out,block) i=d_in/divisor(d_in,block)", init = "zeros" }}
[let]
pieces = "split(x, divisor(d_in, block), axis='d_in', outer='c_in', inner='i')"
dense = "x @ kron(C, D, rows='d_out', columns='d_in')"
[rewrite]
y = "y + dense + join(dot(dot(pieces, C, axis='c_in'), D, axis='i'), outer='c_out', inner='o', to='d_out')"
"""
PLAIN = f"""{HEAD}
[parameters]
C = {{ axes = "c_out=block c_in=block", init = "zeros" }}
D = {{ axes = "o=d_out/block i=d_in/block", init = "zeros" }}
[rewrite]
y = "y + x @ kron(C, D, rows='d_out', columns='d_in')"
"""
SHARED = f"""{HEAD}
[parameters]
A = {{ axes = "block all_in=widest(d_in)", init = "zeros", share = "model" }}
[let]
own = "rename(first(A, d_in, axis='all_in'), axis='all_in', to='d_in')"
[rewrite]
x = "x + x @ own @ own"
"""


def test_functions_at_a_site() -> None:
    known = {"d": 48, "most": 100, "block": 5}
    assert size_at("divisor(d,most)", known) == 6
    assert size_at("divisor(d,4)", known) == 4
    assert size_at("divisor(d,5)", known) == 4
    assert size_at("d/divisor(d,most)", known) == 8
    assert size_at("divisor(127,most)", known) == 1
    assert size_at("pairs(block)", known) == 10
    assert size_at("pairs(1)", known) is None
    assert size_at("2*widest(d)", known) == 96
    assert size_at("2*widest(d)", {**known, "widest(d)": 50}) == 100


def test_names_and_what_cancels() -> None:
    size = "d_out/divisor(d_out,most)*2"
    assert names_of(size) == ("d_out", "d_out", "most")
    assert calls(size) == (("divisor", ("d_out", "most")),)
    assert renamed_size(size, {"d_out": "d", "most": "x_most"}.__getitem__) == "d/divisor(d,x_most)*2"
    assert times("divisor(d_out,most)", size) == canonical("2*d_out")
    assert over("d_out", "d_out/divisor(d_out,most)") == "divisor(d_out,most)"


@pytest.mark.parametrize("text", [SKEW, KRONECKER, PLAIN, SHARED])
def test_lengths_add_up(text: str) -> None:
    check(read_text(text, "sized.toml"))


@pytest.mark.parametrize("same", ["1*d_in/block", "2*d_in/block/2", "d_in*block/block/block"])
def test_the_order_of_factors_means_nothing(same: str) -> None:
    check(read_text(PLAIN.replace("i=d_in/block", f"i={same}"), "sized.toml"))


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (SKEW, "=pairs(block)", "=pairs(d_in)", "[n pairs] ends in pairs(d_in) numbers, a skew matrix of block has"),
        (SKEW, "=pairs(block)", "=block", "ends in block numbers, a skew matrix of block has pairs(block)"),
        (SKEW, "skew(v, block", "skew(v, 5", "a skew matrix of 5 has 10"),
        (SKEW, "x, d_in / block", "x, d_in - block", "the axis 'n' is ? long on one side, d_in/block on the other"),
        (SKEW, "x, d_in / block", "x, block", "the axis 'n' is block long on one side, d_in/block on the other"),
        (SKEW, "=pairs(block)", "=pair(block)", "there is no size pair(…); there is: divisor, pairs, widest"),
        (SKEW, "=pairs(block)", "=pairs(block,2)", "it is pairs(count)"),
        (SKEW, "=pairs(block)", "=pairs(pairs(block))", "'pairs(pairs(block))' is no size"),
        (SKEW, "=pairs(block)", "=pairs(blok)", "'blok' is neither an option nor an axis of a value"),
        (SKEW, "=pairs(block)", "=pairs(seq)", "the length of 'seq' changes from call to call"),
        (KRONECKER, "divisor(d_in, block)", "divisor(d_in, 3)", "the axis 'c_in' is divisor(d_in,3) long"),
        (KRONECKER, "i=d_in/divisor(d_in,block)", "i=d_in/block", "the axis 'd_in' is d_in long on one side"),
        (PLAIN, "i=d_in/block", "i=d_in/2", "the axis 'd_in' is d_in long on one side, block*d_in/2 on the other"),
        (PLAIN, "o=d_out/block", "o=d_out", "the axis 'd_out' is d_out long on one side, block*d_out on the other"),
        (PLAIN, "i=d_in/block", "i=d_in//block", "'d_in//block' is no size"),
        (PLAIN, "i=d_in/block", "i=d_in/blok", "'blok' is neither an option nor an axis of a value"),
        (PLAIN, "i=d_in/block", "i=d_in/block/0", "'d_in/block/0' is no size"),
        (PLAIN, "i=d_in/block", "i=block/d_in*d_in", "the axis 'd_in' is"),
        (SHARED, ', share = "model"', "", "'widest' is a size among sites that share a parameter"),
        (SHARED, "widest(d_in)", "widest(block)", "'widest' takes an axis of a value, and 'block' is none"),
        (SHARED, "widest(d_in)", "widest(7)", "'widest' takes an axis of a value, and '7' is none"),
        (SHARED, "first(A, d_in,", "first(A, d_out,", "the axis 'd_in' is d_in long on one side, d_out on the other"),
        (SHARED, "first(A, d_in, axis='all_in')", "A", "d_in long on one side, widest(d_in) on the other"),
        (SHARED, "first(A, d_in,", "first(A, widest(d_in),", "there is no operation 'widest'"),
    ],
)  # fmt: skip
def test_lengths_that_do_not_are_refused(text: str, old: str, new: str, said: str) -> None:
    assert old in text
    changed = text.replace(old, new)
    if "seq" in new:
        changed = changed.replace(
            'role = "linear"', 'role = "linear"\nvalues = { x = "batch seq d_in", y = "* d_out" }'
        )
    with pytest.raises(RuleError) as caught:
        check(read_text(changed, "sized.toml"))
    assert said in str(caught.value)


def test_a_number_whose_divisors_would_take_long() -> None:
    with pytest.raises(ValueError, match="too large to look for its divisors"):
        size_at("divisor(d,d)", {"d": 2**62})
