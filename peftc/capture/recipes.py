"""Makes structures from what was found in them, and carries changes over, in steps that torch.compile can follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from torch import Tensor

from peftc.capture.structures import GIVEN, LENGTH, NUMBER, Shape, is_constant

WRITES = "peftc_writes"  # attribute of functions that write into their arguments


@dataclass(frozen=True)
class Slot:
    """Stands for something found in a structure, by position."""

    position: int


@dataclass(frozen=True)
class Given:
    """Stands for the object that an argument of the call is."""

    name: str


@dataclass(frozen=True)
class Made:
    """An object or mapping of a class with these attributes or entries, each a recipe itself."""

    kind: type
    names: tuple[Any, ...]
    items: tuple[Any, ...]


def recipe_of(shape: Shape, positions: Iterator[int]) -> Any:
    """How to make a structure: constants and built-in containers as they are, the rest piece by piece."""
    kind = shape[0]
    if kind is Tensor or kind in (LENGTH, NUMBER):
        return Slot(next(positions))
    if kind == GIVEN:
        return Given(shape[1])
    if is_constant(shape):
        return shape[1]
    items = [recipe_of(item, positions) for item in shape[2:]]
    if kind is list:
        return items
    if issubclass(kind, tuple):
        return tuple(items) if kind is tuple else kind(*items)
    if kind is dict:
        return dict(zip(shape[1], items, strict=True))
    return Made(kind, shape[1], tuple(items))


def follow(recipe: Any, found: Any) -> Any:
    """Make a value by its recipe, with what was found in its structure."""
    if isinstance(recipe, Slot):
        return found[recipe.position]
    if isinstance(recipe, Made):
        return make(recipe.kind, recipe.names, [follow(item, found) for item in recipe.items])
    if isinstance(recipe, list):
        return [follow(item, found) for item in recipe]
    if isinstance(recipe, dict):
        return {key: follow(item, found) for key, item in recipe.items()}
    if isinstance(recipe, tuple):
        items = [follow(item, found) for item in recipe]
        return type(recipe)(*items) if hasattr(recipe, "_fields") else tuple(items)
    return recipe


def make(kind: Any, names: tuple[Any, ...], items: list[Any]) -> Any:
    """An object of a class with these attributes, or a mapping with these entries."""
    if issubclass(kind, dict):
        pairs = zip(names, items, strict=True)
        fields_are_entries = is_dataclass(kind)  # asked first: mypy takes the class for an instance after it
        return kind(**dict(pairs)) if fields_are_entries else kind(pairs)
    made = object.__new__(kind)
    for name, item in zip(names, items, strict=True):
        object.__setattr__(made, name, item)
    return made


def given_in(recipe: Any) -> frozenset[str]:
    """The arguments whose objects are part of a recipe."""
    if isinstance(recipe, Given):
        return frozenset((recipe.name,))
    if isinstance(recipe, Made):
        return frozenset().union(*map(given_in, recipe.items))
    if isinstance(recipe, dict):
        return frozenset().union(*map(given_in, recipe.values()))
    if isinstance(recipe, (list, tuple)):
        return frozenset().union(*map(given_in, recipe))
    return frozenset()


KEPT = object()
"""Stands for a part of a structure that a call does not change."""


@dataclass(frozen=True)
class Change:
    """What a call changes in a structure: new values by attribute, key or place, or changes within.

    Attributes:
        entries: whether the names are keys or places; else they are attributes.
    """

    entries: bool
    names: tuple[Any, ...]
    items: tuple[Any, ...]


def change(before: Any, after: Any, same: Callable[[Slot, Slot], bool]) -> Any:
    """What leads from one recipe to another: a `Change`, the new recipe as a whole, or `KEPT`.

    Args:
        before: recipe of the structure that is changed.
        after: recipe of what it becomes.
        same: whether what is found at a slot of both is the same tensor.
    """
    if isinstance(before, Slot) and isinstance(after, Slot):
        return KEPT if same(before, after) else after
    if type(before) is list and type(after) is list and len(before) != len(after):
        return Change(True, (slice(None),), (after,))
    parts = parts_of(before, after)
    if parts is None:
        return after if type(after) is not type(before) or after != before or slots_in(after) else KEPT
    entries, old, new = parts
    changed = {name: change(old[name], item, same) if name in old else item for name, item in new.items()}
    changed = {name: part for name, part in changed.items() if part is not KEPT}
    if type(after) is tuple and not all(isinstance(part, Change) for part in changed.values()):
        return after
    return Change(entries, tuple(changed), tuple(changed.values())) if changed else KEPT


def parts_of(before: Any, after: Any) -> tuple[bool, dict[Any, Any], dict[Any, Any]] | None:
    """Two states of a structure by attributes or entries, and whether they are entries; None where it is replaced."""
    if isinstance(after, Made) and isinstance(before, Made) and before.kind is after.kind:
        old, new = (dict(zip(state.names, state.items, strict=True)) for state in (before, after))
        return False, old, new
    if isinstance(after, dict) and isinstance(before, dict):
        return True, before, after
    if type(after) in (list, tuple) and type(after) is type(before) and len(after) == len(before):
        return True, dict(enumerate(before)), dict(enumerate(after))
    return None


def placed(recipe: Any, place: Callable[[Slot], Slot]) -> Any:
    """A recipe or change with other slots."""
    if isinstance(recipe, Slot):
        return place(recipe)
    if isinstance(recipe, (Made, Change)):
        return replace(recipe, items=tuple(placed(item, place) for item in recipe.items))
    if isinstance(recipe, dict):
        return {key: placed(item, place) for key, item in recipe.items()}
    if isinstance(recipe, (list, tuple)):
        items = [placed(item, place) for item in recipe]
        return type(recipe)(*items) if hasattr(recipe, "_fields") else type(recipe)(items)
    return recipe


def slots_in(recipe: Any) -> list[Slot]:
    """The slots of a recipe or change, in order."""
    slots: list[Slot] = []

    def keep(slot: Slot) -> Slot:
        slots.append(slot)
        return slot

    placed(recipe, keep)
    return slots


def numbered(recipe: Any, slots: Sequence[Slot]) -> Any:
    """A recipe or change with its slots numbered in order."""
    numbers = {slot: Slot(position) for position, slot in enumerate(slots)}
    return placed(recipe, numbers.__getitem__)


def carry_over(target: Any, changed: Change, found: Any) -> None:
    """Change a structure."""
    for name, item in zip(changed.names, changed.items, strict=True):
        if isinstance(item, Change):
            carry_over(target[name] if changed.entries else getattr(target, name), item, found)
        elif changed.entries:
            target[name] = follow(item, found)
        else:
            setattr(target, name, follow(item, found))


def maker(recipe: Made) -> Callable[[list[Any]], Any]:
    """A function that makes an object from what is found in it."""

    def make_it(found: list[Any]) -> Any:
        return follow(recipe, found)

    make_it.__name__ = make_it.__qualname__ = f"make_{recipe.kind.__name__}"
    return make_it


def updater(changed: Change, kind: type) -> Callable[[Any, list[Any]], Any]:
    """A function that carries a change over to an object that a call was given, and returns the object."""

    def update_it(given: Any, found: list[Any]) -> Any:
        carry_over(given, changed, found)
        return given

    update_it.__name__ = update_it.__qualname__ = f"update_{kind.__name__}"
    setattr(update_it, WRITES, True)
    return update_it
