"""Sizes of axes as products and quotients of names and numbers: `d_in/blocks`. Reckons with them by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import gcd

_FACTOR = r"(?:[a-z][a-z0-9_]{0,40}|[1-9][0-9]{0,8})"
SIZE = re.compile(rf"{_FACTOR}(?:[*/]{_FACTOR}){{0,7}}\Z")
"""How a size is written; a name may be that of an option or of an axis."""

_PIECE = re.compile(r"(^|[*/])([^*/]+)")


@lru_cache(maxsize=512)
def factors(size: str) -> tuple[tuple[str, bool], ...]:
    """The factors of a size in order, each with whether it divides."""
    return tuple((word, sign == "/") for sign, word in _PIECE.findall(size))


def names_of(size: str | int) -> tuple[str, ...]:
    """The names in a size."""
    return tuple(word for word, _ in factors(str(size)) if not word.isdigit())


def renamed_size(size: str | int, rename: Callable[[str], str]) -> str:
    """The size with its names replaced."""
    told = [(word if word.isdigit() else rename(word), divides) for word, divides in factors(str(size))]
    return "".join(("/" if divides else "*") * (at > 0) + word for at, (word, divides) in enumerate(told))


def size_at(size: str | int, known: Mapping[str, object]) -> int | None:
    """The size as a number; None where it is not whole or not above 0. Raises KeyError for an unknown name."""
    above, below = 1, 1
    for word, divides in factors(str(size)):
        number = int(word) if word.isdigit() else int(str(known[word]))
        above, below = (above, below * number) if divides else (above * number, below)
    return above // below if below and above > 0 and above % below == 0 else None


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
