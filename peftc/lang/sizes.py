"""Sizes of axes as products and quotients of names, numbers and functions of these: `d_in/blocks`, `pairs(block)`.

Reckons with them by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, isqrt
from types import MappingProxyType

_PLAIN = r"(?:[a-z][a-z0-9_]{0,40}|[1-9][0-9]{0,8})"
_FACTOR = rf"(?:[a-z]+\({_PLAIN}(?:,{_PLAIN}){{0,2}}\)|{_PLAIN})"
SIZE = re.compile(rf"{_FACTOR}(?:[*/]{_FACTOR}){{0,7}}\Z")
"""How a size is written; a name may be that of an option or of an axis."""
PRODUCT = re.compile(rf"{_FACTOR}(?:[*/]{_FACTOR})*\Z")
"""How a size is called that came out of others."""

_PIECE = re.compile(r"(^|[*/])([^*/]+)")
_LARGEST = 2**40  # of a number whose divisors are looked for, one after the other

WIDEST = "widest"
"""The one function of a size that no site alone can tell."""


@dataclass(frozen=True)
class SizeFunction:
    """A whole number that is reckoned from others."""

    doc: str
    takes: tuple[str, ...]
    run: Callable[..., int] | None = None


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _divisor(number: int, most: int) -> int:
    if number >= _LARGEST:
        raise ValueError(f"{number} is too large to look for its divisors")
    return next((each for each in range(min(isqrt(max(number, 0)), most), 0, -1) if number % each == 0), 0)


FUNCTIONS: Mapping[str, SizeFunction] = MappingProxyType(
    {
        "divisor": SizeFunction(
            "The largest divisor of a number that is neither above its root nor above `most`.",
            ("number", "most"),
            _divisor,
        ),
        "pairs": SizeFunction(
            "The number of pairs among so many: count · (count − 1) / 2.", ("count",), _pairs
        ),
        WIDEST: SizeFunction(
            "The largest that an axis is among the sites that share the parameter; each takes the `first` of it.",
            ("axis",),
        ),
    }
)


@lru_cache(maxsize=512)
def factors(size: str) -> tuple[tuple[str, bool], ...]:
    """The factors of a size in order, each with whether it divides."""
    return tuple((word, sign == "/") for sign, word in _PIECE.findall(size))


def calls(size: str | int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The functions in a size, each with the words that it takes."""
    found = (_call(word) for word, _ in factors(str(size)))
    return tuple((name, words) for name, words in found if name)


def _call(word: str) -> tuple[str, tuple[str, ...]]:
    """A factor as a function and what it takes; a plain word takes itself under no name."""
    name, bracket, inner = word.partition("(")
    return (name, tuple(inner.rstrip(")").split(","))) if bracket else ("", (word,))


def names_of(size: str | int) -> tuple[str, ...]:
    """The names in a size."""
    words = (each for word, _ in factors(str(size)) for each in _call(word)[1])
    return tuple(word for word in words if not word.isdigit())


def renamed_size(size: str | int, rename: Callable[[str], str]) -> str:
    """The size with its names replaced."""

    def renamed(word: str) -> str:
        name, words = _call(word)
        inner = ",".join(each if each.isdigit() else rename(each) for each in words)
        return f"{name}({inner})" if name else inner

    told = [(renamed(word), divides) for word, divides in factors(str(size))]
    return "".join(("/" if divides else "*") * (at > 0) + word for at, (word, divides) in enumerate(told))


def size_at(size: str | int, known: Mapping[str, object]) -> int | None:
    """The size as a number; None where it is not whole or not above 0. Raises KeyError for an unknown name.

    Where `known` has no `widest(axis)`, the axis is as wide as anywhere.
    """
    above, below = 1, 1
    for word, divides in factors(str(size)):
        number = _number_at(word, known)
        above, below = (above, below * number) if divides else (above * number, below)
    return above // below if below and above > 0 and above % below == 0 else None


def _number_at(word: str, known: Mapping[str, object]) -> int:
    if word in known:
        return int(str(known[word]))
    name, words = _call(word)
    numbers = [int(each) if each.isdigit() else int(str(known[each])) for each in words]
    run = FUNCTIONS[name].run if name else None
    return run(*numbers) if run else numbers[0]


@lru_cache(maxsize=512)
def canonical(size: str) -> str:
    """The one way to write a size: what stands above and below is cancelled, and names are sorted."""
    if "+" in size:  # the length of what was joined: a name as a whole
        return size
    names: Counter[str] = Counter()
    above, below = 1, 1
    for word, divides in factors(size):
        if word.isdigit():
            above, below = (above, below * int(word)) if divides else (above * int(word), below)
        else:
            names[word] += -1 if divides else 1
    shared = gcd(above, below) or 1
    above, below = above // shared, below // shared
    over = [*([str(above)] if above != 1 else []), *sorted((+names).elements())]
    under = [*([str(below)] if below != 1 else []), *sorted((-names).elements())]
    return "/".join(["*".join(over) or "1", *under])


def times(one: str, other: str) -> str:
    """The product of two lengths; one that was joined has no product."""
    if "+" in one or "+" in other:
        return f"({one})*({other})"
    return canonical(f"{one}*{other}")


def over(one: str, other: str) -> str:
    """The quotient of two lengths."""
    if "+" in one or "+" in other:
        return f"({one})/({other})"
    inverse = "".join(("*" if divides else "/") + word for word, divides in factors(other))
    return canonical(f"{one}{inverse}")
