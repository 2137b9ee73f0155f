"""A call as a trace sees it: tensors go in by name, tensors and numbers come out in a row. Traces nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from peftc.capture.recipes import follow, recipe_of
from peftc.capture.signature import Call
from peftc.capture.structures import Shape, is_structure, lengths_in, take_apart


@dataclass(frozen=True)
class Passed:
    """A structure that a call was given.

    Attributes:
        kind: its class.
        before: its recipe, slots counted among all inputs of the call.
        after: its recipe when the call has returned, slots counted among all outputs.
    """

    kind: type
    before: Any
    after: Any


class FlatCall:
    """Makes a module's arguments of a call's tensors, and keeps what in its result is no tensor.

    Attributes:
        inputs: the tensors, by names that a function's arguments can have.
        result: recipe of what the module returned; slots are counted among the outputs.
        passed: the structures that it was given, by name of the argument.
        lengths: attributes of what it returned or was given that it left as symbols.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        names = [name.replace(".", "_") for name in call.names]
        self.inputs: dict[str, Tensor] = dict(zip(names, call.tensors, strict=True))
        self.result: Any = None
        self.passed: dict[str, Passed] = {}
        self.lengths: dict[type, frozenset[str]] = {}

    def run(self, forward: Callable[..., Any], inputs: Mapping[str, Tensor]) -> list[Any]:
        """Call a module's forward with tensors by the names of `inputs`.

        Returns:
            The outputs: what is found in its result, and then in each structure that it was given, as it is now.
        """
        recipes = self.recipes()
        told = zip([inputs[name] for name in self.inputs], self.call.is_length(), strict=True)
        found = [tensor.shape[0] if is_length else tensor for tensor, is_length in told]
        arguments = {name: follow(recipe, found) for name, recipe in recipes.items()}
        structures = [name for name, shape in self.call.key if is_structure(shape)]
        returned = forward(**arguments)
        outputs: list[Any] = []
        positions = count()
        shape = take_apart(returned, outputs, known={id(arguments[name]): name for name in structures})
        self.result, self.lengths, self.passed = recipe_of(shape, positions), {}, {}
        self.learn(shape)
        for name in structures:
            shape = take_apart(arguments[name], outputs)
            self.learn(shape)
            self.passed[name] = Passed(type(arguments[name]), recipes[name], recipe_of(shape, positions))
        return outputs

    def recipes(self) -> dict[str, Any]:
        """How each argument is made."""
        positions = count()
        return {name: recipe_of(shape, positions) for name, shape in self.call.key}

    def learn(self, shape: Shape) -> None:
        """Keep which attributes of a structure are symbols."""
        for kind, name in lengths_in(shape):
            self.lengths[kind] = self.lengths.get(kind, frozenset()) | {name}
