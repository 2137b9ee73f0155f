"""A compiled module made ready to be examined: its plain twin, calls of several sizes, and numbers that show.

What is examined is put back as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from peftc.capture.arguments import kind_of
from peftc.capture.structures import UnknownStructureError, take_apart
from peftc.errors import CaptureError
from peftc.match.plan import HOME, Plan
from peftc.quantised import quantised_in
from peftc.runtime.merging import plain_model

Arguments = dict[str, Any]


@dataclass
class Subject:
    """What properties look at.

    Attributes:
        compiled: the module, its trainable parameters at random values.
        plain: the model as it came, of its own class.
        arguments: a call.
        tolerance: the largest relative error that rounding explains.
        words: how many words the model knows.
        learning: the call as the model itself can be trained by it, or why it cannot; None until that was tried.
    """

    compiled: Any
    plain: nn.Module
    arguments: Arguments
    tolerance: float
    words: int = field(default=50)
    learning: Arguments | str | None = field(default=None)

    @property
    def plan(self) -> Plan:
        """The module's plan."""
        plan: Plan = self.compiled.peftc_plan
        return plan

    def of_size(self, batch: int, length: int | None = None) -> Arguments:
        """A call of another size: rows are repeated or left out; so are tokens, of calls that have ids."""
        ids = in_step(self.arguments)
        return {
            name: resized(value, batch, length if name in ids else None)
            for name, value in self.arguments.items()
        }

    def draw(self, seed: int) -> None:
        """Move every trainable value, another way for every seed."""
        draw(self.compiled, seed)

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that the model's forward has."""
        return tuple(inspect.signature(self.plain.forward).parameters)

    def takes(self, name: str) -> bool:
        """Whether the model's forward has an argument."""
        return name in self.names


def draw(module: nn.Module, seed: int) -> None:
    """Move every trainable value, by chance, not far: what starts as the model's own must stay near it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(0.1 * noise * (1 + parameter.abs().mean()))


def varied(arguments: Mapping[str, Any], module: nn.Module, seed: int = 0) -> Arguments:
    """Arguments of the same form with content: tokens that differ, pixels and waves of noise.

    What is not 0 of whole numbers means something, such as the end of a text, and stays.
    """
    vocabulary = getattr(getattr(module, "config", None), "vocab_size", None)
    most = vocabulary if isinstance(vocabulary, int) else 50
    generator = torch.Generator().manual_seed(seed)

    def filled(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value)
        # The first ids of a vocabulary are often padding and marks of the ends.
        words = torch.randint(min(10, most // 2), most, value.shape, generator=generator).to(value)
        return torch.where(value == 0, words, value)

    return {name: filled(value) for name, value in arguments.items()}


def in_step(arguments: Mapping[str, Any]) -> set[str]:
    """Names of token ids and of what goes along with them, such as a mask: not of sizes, nor of masks of patches."""
    rows = {name: value for name, value in arguments.items() if is_rows(value)}
    others = [value for value in arguments.values() if isinstance(value, Tensor) and not is_rows(value)]
    beside = {
        length for value in others for length in value.shape[1:]
    }  # a mask of waves goes along with them
    texts = [name for name in rows if kind_of(name) == "ids"]
    texts = texts or [name for name in rows if rows[name].shape[1] not in beside]
    lengths = {rows[name].shape[1] for name in texts}
    return {name for name, value in rows.items() if value.shape[1] in lengths}


def is_rows(value: Any) -> bool:
    """Whether an argument is a batch of rows of whole numbers."""
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def resized(value: Any, batch: int, length: int | None) -> Any:
    """A tensor with other sizes of its first two axes, by repeating what it has; what is at its end stays there."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    rows = torch.arange(batch, device=value.device) % value.shape[0]
    value = value[rows]
    if length is None:
        return value
    places = torch.arange(length, device=value.device) % value.shape[1]
    places[-1:] = value.shape[1] - 1
    return value[:, places]


def main_output(output: Any) -> Tensor:
    """The value that a model is run for: its logits, or the first tensor of numbers that is no loss."""
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    for leaf in (*pytree.tree_leaves(output), *tensors_inside(output)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim():
            return leaf
    raise CaptureError(
        f"a {type(output).__name__} that a call gives has no tensor of numbers with an axis: nothing can be compared",
        hint="check a module that gives its logits too",
    )


def tensors_inside(output: Any) -> list[Any]:
    """The tensors of an object of a class that torch does not know as a structure."""
    found: list[Any] = []
    with suppress(UnknownStructureError):
        take_apart(output, found)
    return found


def run(module: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    """The main output of a call, without gradients."""
    with torch.no_grad():
        return main_output(called(module, arguments))


def error(one: Tensor, other: Tensor) -> float:
    """The largest difference of two outputs, over the largest number in the second."""
    if one.shape != other.shape:
        return float("inf")
    finite = torch.isfinite(other)
    if not bool((torch.isfinite(one) == finite).all()):
        return float("inf")
    scale = other[finite].abs().max().clamp(min=1e-6) if bool(finite.any()) else torch.ones(())
    return float(((one - other)[finite].abs().max() / scale) if bool(finite.any()) else 0.0)


class Buffers:
    """The buffers of an examined module: calls write into copies of them, which every call is given afresh."""

    def __init__(self, module: nn.Module) -> None:
        self.own = [
            (owner, name, tensor)
            for owner in module.modules()
            for name, tensor in owner._buffers.items()  # noqa: SLF001 - torch has no public way to put one in
            if tensor is not None
        ]
        self.given: dict[int, tuple[Tensor, int]] = {}

    def renew(self) -> None:
        """Put a copy in the place of each buffer that has none or whose copy was written to."""
        for owner, name, tensor in self.own:
            copied, version = self.given.get(id(tensor), (None, 0))
            if copied is None or copied._version != version:  # noqa: SLF001 - torch documents no other count
                copied = tensor.detach().clone()
                self.given[id(tensor)] = copied, copied._version  # noqa: SLF001
            owner._buffers[name] = copied  # noqa: SLF001

    def put_back(self) -> None:
        """Put the module's own in again."""
        for owner, name, tensor in self.own:
            owner._buffers[name] = tensor  # noqa: SLF001


BUFFERS: WeakKeyDictionary[nn.Module, Buffers] = WeakKeyDictionary()
"""Those of the modules that are being examined."""


def afresh(module: nn.Module) -> nn.Module:
    """A module as it was before its first call: of one that is being examined, buffers too are as they were."""
    if (buffers := BUFFERS.get(module)) is not None:
        buffers.renew()
    return module


def called(module: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """What a module gives for a call; neither its buffers nor the tensors of the call remember earlier ones."""
    own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return afresh(module)(**own)


@contextmanager
def examined(compiled: Any, arguments: Mapping[str, Any], seed: int = 0) -> Iterator[Subject]:
    """A module in evaluation mode with random trainable values, put back as it was behind, its buffers too."""
    modes = {module: module.training for module in compiled.modules()}
    held = {p: p.detach().clone() for p in compiled.parameters() if p.requires_grad}
    gradients = {p: p.grad for p in compiled.parameters()}
    first = next((p for p in compiled.parameters() if p.is_floating_point()), torch.empty(0))
    state = torch.random.get_rng_state()
    try:
        compiled.eval()
        draw(compiled, seed)
        computed = {held.compute for held in quantised_in(compiled).values()} | {first.dtype}
        half = computed & {torch.float16, torch.bfloat16}
        tolerance = 3e-2 if half else 1e-5
        BUFFERS[compiled] = Buffers(compiled)
        plain = plain_model(afresh(compiled)).eval()
        BUFFERS[plain] = Buffers(plain)
        config = getattr(plain, "config", None)
        words = getattr(config, "vocab_size", None)
        subject = Subject(compiled, plain, dict(arguments), tolerance)
        subject.words = words if isinstance(words, int) else 50
        yield subject
    finally:
        if (buffers := BUFFERS.pop(compiled, None)) is not None:
            buffers.put_back()
        with torch.no_grad():
            for parameter, before in held.items():
                parameter.copy_(before)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
        torch.random.set_rng_state(state)


@contextmanager
def kept(module: nn.Module) -> Any:
    """Put what trains, and what rules added that does not, back behind."""
    before = {
        parameter: parameter.detach().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad or HOME in name.split(".")
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)


@contextmanager
def wanting_gradients(parameters: list[nn.Parameter]) -> Any:
    """Let parameters want gradients inside."""
    before = [(p, p.requires_grad) for p in parameters if p.is_floating_point()]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
