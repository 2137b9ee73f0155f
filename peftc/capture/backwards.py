"""Operators of a model's code that bring their own backward: noted while a trace loses it, and held against autograd."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from peftc.graphs.reading import hint

BASE: Any = torch.autograd.Function
MOST = 10_000_000  # numbers that are drawn to compare gradients


@contextmanager
def backwards_noted(found: dict[type, str]) -> Iterator[None]:
    """Note each class of operators in this thread whose own backward is another than autograd's, with the line that calls it.

    A trace goes through its forward, and has the gradients of what that computes.
    """
    thread, seen = threading.get_ident(), dict[type, tuple[str, tuple[Any, ...]]]()
    apply = BASE.apply.__func__

    def noted(kind: Any, *args: Any, **kwargs: Any) -> Any:
        own = kind.backward is not BASE.backward or kind.vjp is not BASE.vjp
        if threading.get_ident() == thread and own and not kind.__module__.startswith("torch."):
            seen.setdefault(kind, (line_around(), tuple(map(like, args))))
        return apply(kind, *args, **kwargs)

    BASE.apply = classmethod(noted)
    try:
        yield
    finally:
        BASE.apply = classmethod(apply)
        found.update({kind: line for kind, (line, args) in seen.items() if not is_derivative(kind, args)})


def line_around() -> str:
    """The line of the model's own code that is running."""
    for frame in reversed(traceback.extract_stack()):
        if not any(part in frame.filename for part in ("/torch/", "/peftc/capture/", "<")):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown line"


def like(value: Any) -> Any:
    """What `drawn` makes a value like a traced one of: nothing of a trace may be held behind it."""
    return (tuple(map(hint, value.shape)), value.dtype) if isinstance(value, Tensor) else value


def drawn(value: Any, generator: torch.Generator) -> Any:
    """A tensor of numbers drawn in a shape and dtype; anything else is itself."""
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype)):
        return value
    shape, dtype = value
    if not dtype.is_floating_point:
        return torch.ones(shape, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def is_derivative(kind: Any, shapes: Sequence[Any]) -> bool:
    """Whether an own backward is that of the forward, on drawn numbers; False where that cannot be told."""
    sizes = [torch.Size(each[0]).numel() for each in shapes if isinstance(each, tuple) and each]
    if sum(sizes) > MOST:
        return False
    generator = torch.Generator().manual_seed(0)
    args = [drawn(each, generator) for each in shapes]
    wanted = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
    by_itself = kind.setup_context is not BASE.setup_context
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            ours = gradients(lambda: kind.forward(*(() if by_itself else (Context(),)), *args), wanted)
            theirs = gradients(lambda: kind.apply(*args), wanted)
    except Exception:  # noqa: BLE001 - whatever it asks of its inputs, such as a device
        return False
    return all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in zip(ours, theirs, strict=True)
    )


class Context:
    """Takes what a forward keeps for its backward."""

    def __getattr__(self, name: str) -> Any:
        """Any method, which does nothing."""
        return lambda *_, **__: None


def gradients(made: Callable[[], Any], wanted: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a number that depends on all that is made."""
    torch.manual_seed(0)
    outputs = [
        each for each in pytree.tree_leaves(made()) if isinstance(each, Tensor) and each.is_floating_point()
    ]
    total = torch.stack([(each.float() * each.detach().float().cos()).sum() for each in outputs]).sum()
    return torch.autograd.grad(total, list(wanted), allow_unused=True, materialize_grads=True)
