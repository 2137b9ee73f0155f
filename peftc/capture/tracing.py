"""How a model's code runs while it is traced: what it asks of sizes, of data and of its modules is answered so that
one graph holds for every call. Reads no weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymInt, Tensor, nn
from torch.overrides import TorchFunctionMode

DATA: Any = Tensor.data.__get__  # type: ignore[attr-defined]  # a property of C
MOST_ROWS = 1024


class Tracing(TorchFunctionMode):
    """Answers torch's functions inside a traced forward.

    * `x.data` is `x.detach()`: tracing loses sight of the first.
    * `torch.div` of two sizes stays a size; as a tensor, its value would be data.
    * Rows of a fixed number that data picks (`for expert in hit.nonzero()`) are all gone through, if the trace fails
      without: a row that was not picked adds nothing wherever the code inside finds its tokens by it. That is an
      assumption, which `assumed` tells; who traces must check it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.assumed = self.saw_rows = False
        self.passed_over: set[tuple[int, int]] = set()
        self.current: tuple[int, int] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer a call, or let it through."""
        kwargs = kwargs or {}
        if func == DATA:
            return args[0].detach()
        if func is torch.div and of_sizes(args, kwargs):
            return args[0] // args[1]
        if func in (Tensor.nonzero, torch.nonzero) and is_row_of_flags(args) and not kwargs.get("as_tuple"):
            self.saw_rows = True
            if self.assumed:
                return self.rows(int(args[0].shape[0]))
        if func is Tensor.numel and self.assumed and is_unknown(args[0]):
            return SOME
        return func(*args, **kwargs)

    def rows(self, count: int) -> Iterator[Row]:
        """Every row that data may pick."""
        for number in range(count):
            if (count, number) not in self.passed_over:
                self.current = (count, number)
                yield Row([number])
        self.current = None

    def has_another_way(self, failure: Exception) -> bool:
        """Whether, after a failure, a trace may succeed that goes through all rows, or passes over the last one tried.

        A row by which the code picks what is not there fails in the model itself: no call that works has it.
        """
        if self.saw_rows and not self.assumed:
            self.assumed = True
            return True
        if isinstance(failure, IndexError) and self.current is not None and not self.passed_over:
            self.passed_over.add(self.current)
            return True
        return False


class Row(list[int]):
    """One number of a row that data may pick, as the model's code reads it of a tensor."""

    def item(self) -> int:
        """The number."""
        return self[0]


class Some:
    """How many elements there are of what data picks: taken to be some; nothing else is known of it."""

    def __eq__(self, other: object) -> bool:
        if other != 0:
            raise NotImplementedError("a number that data tells is compared to another than 0")
        return False

    def __gt__(self, other: int) -> bool:
        return self != other

    __hash__ = None  # type: ignore[assignment]


SOME = Some()


def of_sizes(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a division is one of a size by a number, without a remainder."""
    sizes = len(args) == 2 and all(isinstance(arg, (int, SymInt)) for arg in args)
    return sizes and isinstance(args[0], SymInt) and kwargs.get("rounding_mode") in ("trunc", "floor")


def is_row_of_flags(args: Sequence[Any]) -> bool:
    """Whether a tensor is one axis of a known, small size."""
    tensor = args[0]
    if not isinstance(tensor, Tensor) or tensor.dim() != 1:
        return False
    size = tensor.shape[0]
    return isinstance(size, int) and size <= MOST_ROWS


def is_unknown(tensor: Tensor) -> bool:
    """Whether only data tells how many elements a tensor has."""
    count = tensor.shape[0] if tensor.dim() == 1 else 0
    return isinstance(count, SymInt) and count.node.hint is None


@contextmanager
def modules_kept() -> Iterator[None]:
    """`module.to(...)` does nothing in this thread where there is nothing to do: it would touch every parameter."""
    thread, convert = threading.get_ident(), nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if threading.get_ident() == thread and is_already(module, args, kwargs):
            return module
        return convert(module, *args, **kwargs)

    nn.Module.to = to  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.to = convert  # type: ignore[method-assign]


def is_already(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a module is what a conversion would make it; False where that cannot be told."""
    wanted = [item for item in (*args, *kwargs.values()) if item is not None]
    if not all(isinstance(item, (torch.dtype, torch.device, str)) for item in wanted):
        return False
    dtypes = [item for item in wanted if isinstance(item, torch.dtype)]
    devices = [torch.device(item) for item in wanted if not isinstance(item, torch.dtype)]
    held = [*module.parameters(), *module.buffers()]
    return all(tensor.device in devices for tensor in held if devices) and all(
        tensor.dtype in dtypes for tensor in held if dtypes and tensor.is_floating_point()
    )
