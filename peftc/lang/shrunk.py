"""What was taken out of a rule at its sites because its gates were 0 there: part of a Bound, stored with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peftc.errors import SpecError
from peftc.lang.axes import AXIS


@dataclass(frozen=True)
class Shrunk:
    """One section at one site: how much is left of axes; or nothing of the section.

    Attributes:
        site, section: id of the site, and number of the section.
        sizes: axis → what is left of it.
        gone: whether the section is taken out there as a whole.
    """

    site: str
    section: int
    sizes: Mapping[str, int] = field(hash=False, default_factory=dict)
    gone: bool = False


def as_data(shrunk: Sequence[Shrunk]) -> list[list[object]]:
    """As JSON can hold it."""
    return [[each.site, each.section, None if each.gone else dict(each.sizes)] for each in shrunk]


def from_data(data: object) -> tuple[Shrunk, ...]:
    """What `as_data` made. Raises SpecError."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise _unread(data)
    return tuple(map(_one, data))


def _one(data: object) -> Shrunk:
    match data:
        case [str(site), int(section), None]:
            return Shrunk(site, section, gone=True)
        case [str(site), int(section), Mapping() as sizes] if sizes and all(
            isinstance(axis, str) and AXIS.match(axis) and type(size) is int and size > 0
            for axis, size in sizes.items()
        ):
            return Shrunk(site, section, dict(sizes))
    raise _unread(data)


def _unread(data: object) -> SpecError:
    return SpecError(f"what was taken out of a stored rule cannot be read: {str(data)[:80]}")
