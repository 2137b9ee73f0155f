"""Small tools for tests of graphs: capture a module, run a graph, count its operators."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, fx, nn

from peftc.capture import capture
from peftc.capture.graph_reader import CONSTANTS
from peftc.capture.signature import call_with
from peftc.emit import Templates, emit
from peftc.graphs.program import Program
from peftc.graphs.reading import operator_name
from peftc.graphs.shared_modules import SharedModules


def captured(module: nn.Module, *, train: bool = False, **inputs: Any) -> Program:
    """The normalised program of one call, its constants put into the module."""
    module.train(train)
    program, constants, _ = capture(module, call_with(inputs))
    if constants and not hasattr(module, CONSTANTS):
        module.add_module(CONSTANTS, nn.Module())
    for name, tensor in constants.items():
        module.get_submodule(CONSTANTS).register_buffer(name, tensor, persistent=False)
    return program


def run(program: Program, module: nn.Module, *tensors: Tensor) -> Any:
    """What a program computes for a call's tensors, in the order of its inputs."""
    return emit(program.graph, {}, Templates(), SharedModules(module)).function(module, *tensors)


def operators(program: Program) -> Counter[str]:
    """How often each operator is called."""
    return Counter(operator_name(node) for node in program.graph.nodes if node.op == "call_function")


def calls(program: Program, name: str) -> list[fx.Node]:
    """The calls of one operator, in order."""
    return [node for node in program.graph.nodes if operator_name(node) == name]
