"""From what `torch.export` made to a graph with state read by path and the model's own output object."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from peftc.capture.batching import write_out_batching
from peftc.capture.flat_call import FlatCall
from peftc.capture.recipes import (
    KEPT,
    Change,
    Given,
    Made,
    Slot,
    change,
    given_in,
    maker,
    numbered,
    slots_in,
    updater,
)
from peftc.errors import CaptureError
from peftc.graphs.autocasting import Region
from peftc.graphs.branches import BRANCH, MARK, expect
from peftc.graphs.reading import (
    AUTOCAST,
    CONSTANT,
    MODULES,
    STATE,
    is_parameter,
    is_write,
    operator_name,
    storage,
)
from peftc.graphs.shared_modules import SharedModules, joined

SMALL = 64  # elements: constants up to this many are kept at their node for analyses to read
CONSTANTS = "peftc_constants"  # the model's submodule that holds tensors a trace lifted out of the code


class GraphReader:
    """Copies an exported graph into one that reads state by path and makes the model's own output object."""

    def __init__(
        self,
        exported: ExportedProgram,
        root: nn.Module,
        path: str,
        constants: dict[str, Tensor],
        shared: SharedModules,
    ) -> None:
        self.exported, self.root, self.path, self.constants = exported, root, path, constants
        self.shared = shared
        self.graph = fx.Graph()
        self.changes: dict[str, Change] = {}
        self.given: tuple[str, ...] = ()
        self.outside: frozenset[int | None] = frozenset()  # where gradients are off: memory made before
        self.regions: tuple[Region, ...] = ()  # of autocast, around the calls that are being copied
        self.paths = {name for name, _ in root.named_modules(remove_duplicate=False)}
        self.first: dict[int, str] = {}
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            self.first.setdefault(id(tensor), name)

    def read(self, flat: FlatCall) -> fx.Graph:
        """The copied graph: its placeholders are the call's tensors, then the structures that it changes."""
        env: dict[fx.Node, Any] = {}
        in_spec = self.exported.call_spec.in_spec
        assert in_spec is not None
        order = iter(in_spec.children()[1].context)  # export has its own order of keyword arguments
        placeholders = [node for node in self.exported.graph.nodes if node.op == "placeholder"]
        inputs: dict[str, fx.Node] = {}
        state: list[tuple[fx.Node, str, str]] = []
        for node, spec in zip(placeholders, self.exported.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                inputs[next(order)] = node
            else:
                state.append((node, self.state_path(spec), spec.kind.name.lower()))
        for name in flat.inputs:
            env[inputs[name]] = self.graph.placeholder(name)
            env[inputs[name]].meta = dict(inputs[name].meta)
        self.changes = changes_of(flat, [inputs[name] for name in flat.inputs], self.exported.graph)
        returned = given_in(flat.result)
        self.given = tuple(name for name in flat.passed if name in self.changes or name in returned)
        given = {name: self.graph.placeholder(name) for name in self.given}
        made: dict[str, fx.Node] = {}
        for node, target, kind in state:
            if target not in made:
                made[target] = self.graph.get_attr(target)
                made[target].meta = dict(node.meta) | {STATE: kind}
                held = self.constants.get(target.removeprefix(f"{CONSTANTS}."))
                if held is not None and held.numel() <= SMALL and target.startswith(CONSTANTS):
                    made[target].meta[CONSTANT] = held
            env[node] = made[target]
        for module in self.exported.graph_module.modules():
            if isinstance(module, fx.GraphModule):
                write_out_batching(module)
        output = self.copy(self.exported.graph_module, env)
        self.write_output(list(output), flat, given)
        return self.graph

    def state_path(self, spec: Any) -> str:
        """Full path of a parameter, buffer or constant; tied ones, and those of shared modules, have the first of theirs."""
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensor = dict_lookup(self.root, spec.target)
            name = self.first.get(id(tensor), spec.target)
            return self.shared.first(joined(self.path, name))
        tensor = self.exported.constants[spec.target]
        name = spec.target.replace(".", "_")
        name = f"{self.path.replace('.', '_')}_{name}" if self.path else name
        self.constants[name] = tensor
        return f"{CONSTANTS}.{name}"

    def copy(self, module: fx.GraphModule, env: dict[fx.Node, Any]) -> Any:
        """Copy the calls of one graph, and of the bodies of mode-switching operators; returns its output."""
        result: Any = None
        for node in module.graph.nodes:
            if node.op == "output":
                result = fx.map_arg(node.args[0], lambda source: env[source])
            elif node.op == "call_function":
                env[node] = self.call(node, env)
            elif node in env:
                continue
            elif node.op == "get_attr":
                env[node] = self.attribute(module, node)
            else:
                raise CaptureError(f"tracing left a {node.op} node, {node.name}, which peftc does not know")
        return result

    def attribute(self, module: fx.GraphModule, node: fx.Node) -> Any:
        """What a graph reads of its module: the body of an operator, or a tensor as a constant."""
        target = str(node.target)
        held = getattr(module, target) if hasattr(module, target) else module.get_submodule(target)
        if not isinstance(held, Tensor):
            return held
        self.constants[target] = held
        constant = self.graph.get_attr(f"{CONSTANTS}.{target}")
        constant.meta = dict(node.meta)
        return constant

    def call(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """One call; of a mode-switching operator its body, and of an item of known ones that item."""
        args, kwargs = node.args, node.kwargs
        if node.target is operator.getitem and isinstance(source := args[0], fx.Node):
            known: Any = env.get(source)
            if isinstance(known, (tuple, list)):
                return known[args[1]]  # type: ignore[index]  # tracing picks items by number
        if node.target is MARK and str(args[1]).startswith(BRANCH):
            holds: Any = args[0]
            return self.graph.call_function(expect, (env[holds], int(str(args[1]).removeprefix(BRANCH))))
        name = getattr(node.target, "__name__", str(node.target))
        if name.startswith("wrap_with_"):
            return self.inline(node, env, grad=name != "wrap_with_set_grad_enabled" or bool(args[0]))
        args, kwargs = fx.map_arg((args, kwargs), lambda source: env[source])
        target = args[0] if self.outside and is_write(node) else None
        written = target if isinstance(target, fx.Node) and storage(target) in self.outside else None
        if written is not None:
            args, kwargs = fx.map_arg((args, kwargs), self.detached)
        copied = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        copied.meta = dict(node.meta) | {MODULES: self.modules(node)}
        if self.regions:
            copied.meta[AUTOCAST] = self.regions
        # A tensor that is written to while gradients are off keeps its history: it is what has it that is read later.
        return copied if written is None or not carries_gradient(written) else written

    def modules(self, node: fx.Node) -> tuple[tuple[str, str], ...]:
        """(path, call) of the modules around a node, outermost first, by their paths in the whole model.

        A module that is called several times has one path; its later calls carry another `call`.
        """
        stack = node.meta.get("nn_module_stack") or {}
        found: list[tuple[str, str]] = []
        for key, (path, _) in stack.items():
            inner = path.partition("@")[0].removeprefix("L['self'].").removeprefix("L['self']")
            whole = self.whole_path(inner, [around for around, _ in found])
            found.append((whole, key.rpartition("@")[2] if "@" in key else "0"))
        return tuple((joined(self.path, path), call) for path, call in found)

    def whole_path(self, path: str, around: list[str]) -> str:
        """The path of a module, seen from the captured one, by what torch says of it and of those around it.

        Where a model has modules with several parents, torch may leave out the path of one that is around it.
        """
        if not around or path.startswith(f"{around[-1]}."):
            return path
        inside = (joined(each, path) for each in reversed(around))
        return next((each for each in inside if each in self.paths), path)

    def inline(self, node: fx.Node, env: dict[fx.Node, Any], grad: bool) -> Any:
        """The body of a mode-switching operator, in place of the operator.

        Where gradients were off and the body could have carried some, its results are detached, and so is what it
        writes into tensors from outside.
        """
        position, held = next(
            (i, arg) for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"
        )
        body: fx.GraphModule = env[held]
        actual = [env[arg] if isinstance(arg, fx.Node) else arg for arg in node.args[position + 1 :]]
        inner = [inside for inside in body.graph.nodes if inside.op == "placeholder"]
        around = self.outside, self.regions
        if is_autocast(node):
            region: Any = node.args[:3]
            self.regions = (*self.regions, region)
        if not grad:
            self.outside |= {storage(source) for source in actual if isinstance(source, fx.Node)}
        outputs = self.copy(body, dict(zip(inner, actual, strict=True)))
        self.outside, self.regions = around
        if grad:
            return outputs
        return type(outputs)(value if value in actual else self.detached(value) for value in outputs)

    def detached(self, node: Any) -> Any:
        """A node's value without its history, if it may have one."""
        if not carries_gradient(node):
            return node
        cut = self.graph.call_function(torch.ops.aten.detach.default, (node,))
        cut.meta = dict(node.meta)
        return cut

    def write_output(self, found: list[Any], flat: FlatCall, given: dict[str, fx.Node]) -> None:
        """Carry over what the call changes, and rebuild the model's own output object, as nodes of the graph."""
        for name, changed in self.changes.items():
            slots = slots_in(changed)
            carry = updater(numbered(changed, slots), flat.passed[name].kind)
            given[name] = self.graph.call_function(
                carry, (given[name], [found[slot.position] for slot in slots])
            )
        self.graph.output(self.build(flat.result, found, given))

    def build(self, recipe: Any, found: list[Any], given: Mapping[str, fx.Node]) -> Any:
        """One level of the output's structure."""
        if isinstance(recipe, Slot):
            return found[recipe.position]
        if isinstance(recipe, Given):
            return given[recipe.name]
        if isinstance(recipe, dict):
            return {key: self.build(item, found, given) for key, item in recipe.items()}
        if isinstance(recipe, (list, tuple)):
            items = [self.build(item, found, given) for item in recipe]
            return type(recipe)(*items) if hasattr(recipe, "_fields") else type(recipe)(items)
        if not isinstance(recipe, Made):
            return recipe
        kind: Any = recipe.kind
        if issubclass(kind, dict) and dataclasses.is_dataclass(recipe.kind):
            items = [self.build(item, found, given) for item in recipe.items]
            return self.graph.call_function(kind, (), dict(zip(recipe.names, items, strict=True)))
        slots = slots_in(recipe)
        make = maker(numbered(recipe, slots))
        return self.graph.call_function(make, ([found[slot.position] for slot in slots],))


def changes_of(flat: FlatCall, inputs: list[fx.Node], graph: fx.Graph) -> dict[str, Change]:
    """What an exported call changes in each structure that it was given, of those in which it changes anything."""
    outputs: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]

    def same(before: Slot, after: Slot) -> bool:
        return outputs[after.position] is inputs[before.position]

    found = {name: change(each.before, each.after, same) for name, each in flat.passed.items()}
    return {name: changed for name, changed in found.items() if changed is not KEPT}


def carries_gradient(node: Any) -> bool:
    """Whether a node's value may have a gradient: a float that depends on a parameter or on a float input."""
    if not isinstance(node, fx.Node):
        return False
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        seen.add(current)
        val = current.meta.get("val")
        if not isinstance(val, Tensor) or not val.dtype.is_floating_point:
            continue
        if current.op == "placeholder" or is_parameter(current):
            return True
        if operator_name(current) == "detach":
            continue
        stack.extend(source for source in current.all_input_nodes if source not in seen)
    return False


def is_autocast(node: fx.Node) -> bool:
    """Whether a node calls a body in a region of `torch.autocast`."""
    return getattr(node.target, "__name__", "") == "wrap_with_autocast"


def dict_lookup(root: nn.Module, path: str) -> Any:
    """The tensor at a path."""
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)
