"""Rebuilds what a model returns (a cache, say) from tensors, in steps that torch.compile can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Slot:
    """Stands for one tensor of the structure, by position."""

    position: int


@dataclass(frozen=True)
class ObjectOf:
    """An object of a class with these attributes, each a recipe itself."""

    kind: type
    attributes: tuple[tuple[str, Any], ...]


def structure_maker(kind: type, context: Any, count: int) -> Callable[[list[Any]], Any]:
    """A function that makes an object of a registered pytree class from its `count` children."""
    example = pytree.SUPPORTED_NODES[kind].unflatten_fn(
        [Slot(position) for position in range(count)], context
    )
    recipe = recipe_of(example)

    def make(children: list[Any]) -> Any:
        return follow(recipe, children)

    make.__name__ = make.__qualname__ = f"make_{kind.__name__}"
    return make


def has_slot(value: Any) -> bool:
    """Whether a tensor's place is anywhere in a value."""
    if isinstance(value, Slot):
        return True
    if isinstance(value, Mapping):
        return any(map(has_slot, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_slot, value))
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type)
        and any(map(has_slot, vars(value).values()))
    )


def recipe_of(value: Any) -> Any:
    """How to make a value: constants as they are, containers and objects with tensors piece by piece."""
    if isinstance(value, list):
        return [recipe_of(item) for item in value]
    if isinstance(value, dict):
        return {key: recipe_of(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(recipe_of(item) for item in value)
    if isinstance(value, Slot) or not has_slot(value):
        return value
    return ObjectOf(type(value), tuple((name, recipe_of(item)) for name, item in vars(value).items()))


def follow(recipe: Any, children: Sequence[Any]) -> Any:
    """Make a value by its recipe."""
    if isinstance(recipe, Slot):
        return children[recipe.position]
    if isinstance(recipe, ObjectOf):
        made: Any = object.__new__(recipe.kind)
        for name, item in recipe.attributes:
            setattr(made, name, follow(item, children))
        return made
    if isinstance(recipe, list):
        return [follow(item, children) for item in recipe]
    if isinstance(recipe, dict):
        return {key: follow(item, children) for key, item in recipe.items()}
    if isinstance(recipe, tuple):
        return tuple([follow(item, children) for item in recipe])
    return recipe
