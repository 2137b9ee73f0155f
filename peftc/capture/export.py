"""From a module and a call to a raw graph, by `torch.export`. Normalises nothing."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from peftc.capture.structures import structure_maker
from peftc.errors import CaptureError
from peftc.graph.program import Program
from peftc.graph.reading import MODULES, STATE, is_parameter

CONSTANTS = "peftc_constants"  # the model's submodule that holds tensors a trace lifted out of the code


def export_call(
    root: nn.Module, arguments: Mapping[str, Any], path: str = ""
) -> tuple[Program, dict[str, Tensor]]:
    """Capture one call of `root`, which lies at `path` of its model.

    Returns:
        The raw program, and the constant tensors that tracing lifted out of the model's code, by path.

    Raises:
        CaptureError: the model cannot be captured; shows the model's own source line.
    """
    with quiet(root):
        exported = in_thread(lambda: trace(root, arguments))
    constants: dict[str, Tensor] = {}
    graph, inputs = Reader(exported, root, path, constants).read(arguments)
    fixed = tuple(
        (position, dimension, int(size))
        for position, node in enumerate(node for node in graph.nodes if node.op == "placeholder")
        for dimension, size in enumerate(node.meta["val"].shape)
        if not isinstance(size, torch.SymInt)
    )
    return Program(graph, path, inputs, fixed, training=root.training), constants


def trace(root: nn.Module, arguments: Mapping[str, Any]) -> ExportedProgram:
    """Export with every dimension general that can be; first all dimensions, then only batch and length."""
    failure: Exception | None = None
    for limit in (None, 2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # export warns about its own internals; users can do nothing there
                with constants_baked_in(root, arguments) as inputs:
                    return export(root, (), inputs, dynamic_shapes=general(inputs, limit), strict=False)
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise CaptureError(
        f"{type(root).__name__} cannot be captured: {first_line(failure)}",
        detail=tuple(source_lines(failure)),
    ) from failure


@contextmanager
def constants_baked_in(root: nn.Module, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give `root` a forward that takes only the arguments with tensors in them, by name; yields those.

    Export would have the other arguments as inputs too, and cannot say of those behind a `**` which they are.
    """
    inputs = {name: value for name, value in arguments.items() if takes_part(value)}
    constants = {name: value for name, value in arguments.items() if name not in inputs}
    original = root.forward

    def forward(**kwargs: Any) -> Any:
        return original(**kwargs, **constants)

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs]
    forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    own = vars(root).get("forward")
    object.__setattr__(root, "forward", forward)
    try:
        yield inputs
    finally:
        if own is None:
            object.__delattr__(root, "forward")
        else:
            object.__setattr__(root, "forward", own)


def takes_part(value: Any) -> bool:
    """Whether a value is a tensor, or a structure that export must take apart."""
    return not isinstance(value, (bool, int, float, str, type(None)))


def general(value: Any, limit: int | None) -> Any:
    """The `dynamic_shapes` of a value: every dimension below `limit` of every tensor may vary."""
    if isinstance(value, Tensor):
        axes = range(value.dim() if limit is None else min(limit, value.dim()))
        return {
            axis: Dim.AUTO for axis in axes if value.shape[axis] != 1
        }  # a size of 1 is always specialised
    if type(value) in (list, tuple):
        return type(value)(general(item, limit) for item in value)
    if type(value) is dict:
        return {name: general(item, limit) for name, item in value.items()}
    if type(value) in pytree.SUPPORTED_NODES:
        children, _ = pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)
        return [general(child, limit) for child in children]
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def source_lines(error: BaseException) -> Iterator[str]:
    """Where in the model's own code a capture failed: the innermost frames that are not torch's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename
        and not frame.filename.startswith("<")
        and "/peftc/" not in frame.filename
    ]
    for frame in frames[-2:]:
        if frame.name != "run" or "threading" not in frame.filename:
            yield f"{frame.filename}:{frame.lineno} in {frame.name}"
            yield f"    {frame.line}"


def in_thread(work: Any) -> Any:
    """Run `work` in a thread of its own.

    Tracing modes live in thread-local state: so a capture works in the midst of another trace, as when
    `torch.compile` meets a call that has no program yet.
    """
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["result"] = work()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=run, name="peftc-capture")
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    return box["result"]


@contextmanager
def quiet(root: nn.Module) -> Iterator[None]:
    """Gradient checkpointing off while tracing: recomputation is a matter of running, not of what is computed."""
    switched = [
        module for module in root.modules() if getattr(module, "gradient_checkpointing", False) is True
    ]
    for module in switched:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True  # type: ignore[assignment]


class Reader:
    """Copies an exported graph into one whose state is read by path and whose output is the model's own object."""

    def __init__(
        self, exported: ExportedProgram, root: nn.Module, path: str, constants: dict[str, Tensor]
    ) -> None:
        self.exported, self.root, self.path, self.constants = exported, root, path, constants
        self.graph = fx.Graph()
        self.first: dict[int, str] = {}
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            self.first.setdefault(id(tensor), name)

    def read(self, arguments: Mapping[str, Any]) -> tuple[fx.Graph, tuple[str, ...]]:
        """The copied graph, and the name of each placeholder."""
        env: dict[fx.Node, Any] = {}
        names: list[str] = []
        in_spec = self.exported.call_spec.in_spec
        assert in_spec is not None
        order = in_spec.children()[1].context  # export has its own order of keyword arguments
        leaf_names = list(self.leaf_names({name: arguments[name] for name in order}))
        user_inputs = 0
        placeholders = [node for node in self.exported.graph.nodes if node.op == "placeholder"]
        state: list[tuple[fx.Node, str, str]] = []
        for node, spec in zip(placeholders, self.exported.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                name = leaf_names[user_inputs]
                user_inputs += 1
                if isinstance(spec.arg, ConstantArgument):
                    env[node] = spec.arg.value
                    continue
                env[node] = self.graph.placeholder(name.replace(".", "_"))
                env[node].meta = dict(node.meta)
                names.append(name)
            else:
                state.append((node, self.state_path(spec), spec.kind.name.lower()))
        made: dict[str, fx.Node] = {}
        for node, target, kind in state:
            if target not in made:
                made[target] = self.graph.get_attr(target)
                made[target].meta = dict(node.meta) | {STATE: kind}
            env[node] = made[target]
        output = self.copy(self.exported.graph_module, env)
        self.write_output(list(output))
        return self.graph, tuple(names)

    def leaf_names(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """Names of the call's leaves in the order in which export flattened them."""
        for name, value in arguments.items():
            leaves = pytree.tree_leaves(value)
            if isinstance(value, Tensor) or (len(leaves) == 1 and leaves[0] is value):
                yield name
            else:
                yield from (f"{name}.{position}" for position in range(len(leaves)))

    def state_path(self, spec: Any) -> str:
        """Full path of a parameter, buffer or constant; tied ones have the path of the first."""
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensor = dict_lookup(self.root, spec.target)
            name = self.first.get(id(tensor), spec.target)
            return f"{self.path}.{name}" if self.path else name
        tensor = self.exported.constants[spec.target]
        name = spec.target.replace(".", "_")
        name = f"{self.path.replace('.', '_')}_{name}" if self.path else name
        self.constants[name] = tensor
        return f"{CONSTANTS}.{name}"

    def copy(self, module: fx.GraphModule, env: dict[fx.Node, Any]) -> Any:
        """Copy the calls of one graph, going into the bodies of mode-switching operators; returns its output."""
        result: Any = None
        for node in module.graph.nodes:
            if node.op in ("placeholder", "get_attr") and node in env:
                continue
            if node.op == "get_attr":
                inner = (
                    module.get_submodule(node.target)
                    if not hasattr(module, node.target)
                    else getattr(module, node.target)
                )
                env[node] = inner
                if isinstance(inner, Tensor):
                    self.constants[node.target] = inner
                    env[node] = self.graph.get_attr(f"{CONSTANTS}.{node.target}")
                    env[node].meta = dict(node.meta)
                continue
            if node.op == "output":
                result = fx.map_arg(node.args[0], lambda source: env[source])
                continue
            if node.op != "call_function":
                raise CaptureError(f"tracing left a {node.op} node, {node.name}, which peftc does not know")
            if node.target is operator.getitem and isinstance(env.get(node.args[0]), (tuple, list)):
                env[node] = env[node.args[0]][node.args[1]]
                continue
            name = getattr(node.target, "__name__", str(node.target))
            if name.startswith("wrap_with_"):
                env[node] = self.inline(
                    node, env, grad=name != "wrap_with_set_grad_enabled" or bool(node.args[0])
                )
                continue
            copied = self.graph.create_node(
                "call_function",
                node.target,
                fx.map_arg(node.args, lambda source: env[source]),
                fx.map_arg(node.kwargs, lambda source: env[source]),
                name=node.name,
            )
            copied.meta = dict(node.meta) | {MODULES: self.modules(node)}
            env[node] = copied
        return result

    def modules(self, node: fx.Node) -> tuple[tuple[str, str], ...]:
        """(path, call) of the modules around a node, outermost first, by their paths in the whole model.

        A module that is called several times has one path; its later calls carry another `call`.
        """
        stack = node.meta.get("nn_module_stack") or {}
        found = []
        for key, (path, _) in stack.items():
            inner = path.partition("@")[0].removeprefix("L['self'].").removeprefix("L['self']")
            whole = ".".join(part for part in (self.path, inner) if part)
            found.append((whole, key.rpartition("@")[2] if "@" in key else "0"))
        return tuple(found)

    def inline(self, node: fx.Node, env: dict[fx.Node, Any], grad: bool) -> Any:
        """The body of a mode-switching operator, in place of the operator.

        Where gradients were off and the body could have carried some, its results are detached.
        """
        position = next(
            i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"
        )
        body: fx.GraphModule = env[node.args[position]]
        actual = [env[arg] if isinstance(arg, fx.Node) else arg for arg in node.args[position + 1 :]]
        inner = [inside for inside in body.graph.nodes if inside.op == "placeholder"]
        outputs = self.copy(body, dict(zip(inner, actual, strict=True)))
        if grad or not any(carries_gradient(source) for source in actual):
            return outputs
        return type(outputs)(self.detached(value) if carries_gradient(value) else value for value in outputs)

    def detached(self, node: fx.Node) -> fx.Node:
        """A node's value without its history."""
        cut = self.graph.call_function(torch.ops.aten.detach.default, (node,))
        cut.meta = dict(node.meta)
        return cut

    def write_output(self, leaves: list[Any]) -> None:
        """Rebuild the model's own output object from the exported leaves, as nodes of the graph."""
        spec = self.exported.call_spec.out_spec
        assert spec is not None
        self.graph.output(self.build(spec, iter(leaves)))

    def build(self, spec: Any, leaves: Iterator[Any]) -> Any:
        """One level of the output's structure."""
        if spec.is_leaf():
            return next(leaves)
        children = [self.build(child, leaves) for child in spec.children()]
        if spec.type in (tuple, list):
            return spec.type(children)
        if spec.type is dict:
            return dict(zip(spec.context, children, strict=True))
        if dataclasses.is_dataclass(spec.type) and isinstance(spec.context, list):
            return self.graph.call_function(spec.type, (), dict(zip(spec.context, children, strict=True)))
        return self.graph.call_function(structure_maker(spec.type, spec.context, len(children)), (children,))


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
        stack.extend(source for source in current.all_input_nodes if source not in seen)
    return False


def dict_lookup(root: nn.Module, path: str) -> Any:
    """The tensor at a path."""
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


__all__ = ["CONSTANTS", "export_call", "in_thread"]
