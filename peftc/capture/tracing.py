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

from peftc.errors import CaptureError
from peftc.graphs.branches import BRANCH, MARK

DATA: Any = Tensor.data.__get__  # type: ignore[attr-defined]  # a property of C
MOST_ROWS = 1024
MOST_BRANCHES = 64


class Tracing(TorchFunctionMode):
    """Answers torch's functions inside a traced forward.

    * `x.data` is `x.detach()`: tracing loses sight of the first.
    * `torch.div` of two sizes stays a size; as a tensor, its value would be data.

    Two answers are given only after a trace has failed without them:

    * A truth value that only data tells (`if mask.any():`) is taken to be False, or as `answers` say, and the graph
      checks it in every call.
    * Rows of a fixed number that data picks (`for expert in hit.nonzero()`) are all gone through (`all_rows`): one
      that was not picked adds nothing where the code finds its tokens by it. Who traces must check that.
    """

    def __init__(self, answers: Sequence[bool] = ()) -> None:
        super().__init__()
        self.answers, self.asked, self.answering = list(answers), 0, bool(answers)
        self.all_rows = self.saw_question = self.saw_rows = False
        self.passed_over: set[tuple[int, int]] = set()
        self.current: tuple[int, int] | None = None

    def __enter__(self) -> Tracing:
        """Begin a trace."""
        self.asked, self.current = 0, None
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @property
    def answered(self) -> tuple[bool, ...]:
        """The answers that the last trace was given."""
        return tuple(self.answers[: self.asked])

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer a call, or let it through."""
        kwargs = kwargs or {}
        if func == DATA:
            return args[0].detach()
        if func is torch.div and of_sizes(args, kwargs):
            return args[0] // args[1]
        if asks(func, args):
            self.saw_question = True
            if self.answering:
                return self.answer(args[0])
        if func in (Tensor.nonzero, torch.nonzero) and is_row_of_flags(args) and not kwargs.get("as_tuple"):
            self.saw_rows = True
            if self.all_rows:
                return Rows(self, int(args[0].shape[0]))
        if func is Tensor.numel and self.all_rows and is_unknown(args[0]):
            return SOME
        return func(*args, **kwargs)

    def answer(self, flag: Tensor) -> bool:
        """What data is taken to say, with a mark in the graph by which calls check it."""
        number = self.asked
        if number == MOST_BRANCHES:
            raise CaptureError(f"its code asks data more than {MOST_BRANCHES} times which way to go")
        self.asked += 1
        if number == len(self.answers):
            self.answers.append(False)
        truth = flag.reshape(()) != 0
        holds = truth if self.answers[number] else truth.logical_not()
        MARK(holds, f"{BRANCH}{number}")
        return self.answers[number]

    def rows(self, count: int) -> Iterator[Row]:
        """Every row that data may pick."""
        for number in range(count):
            if (count, number) not in self.passed_over:
                self.current = (count, number)
                yield Row([number])
        self.current = None

    def has_another_way(self, failure: Exception) -> bool:
        """Whether a trace may yet succeed, in another way than those that failed; the next one is that."""
        if isinstance(failure, IndexError) and self.current is not None and not self.passed_over:
            # By this row the code picks what is not there: so it does in the model, and no call that works has it.
            self.passed_over.add(self.current)
            return True
        if self.saw_question and not self.answering:
            self.answering = True
            return True
        if self.saw_rows and not self.all_rows:
            self.all_rows = True
            return True
        given = self.answered
        if given and not given[-1] and not isinstance(failure, CaptureError):
            self.answers = [*given[:-1], True]  # what comes after a False may be an error of the model's
            return True
        return False


class Rows:
    """Rows that data picks, as the model's code goes through them one by one; nothing else can be told of them."""

    def __init__(self, tracing: Tracing, count: int) -> None:
        self.tracing, self.count = tracing, count

    def __iter__(self) -> Iterator[Row]:
        return self.tracing.rows(self.count)

    def __getattr__(self, name: str) -> Any:
        """Refuse what a tensor would answer."""
        raise NotImplementedError(f"which rows data picks is not known, and the code asks for their `{name}`")


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


def asks(func: Any, args: Sequence[Any]) -> bool:
    """Whether a call asks a tensor for one truth value."""
    if func is Tensor.__bool__:
        return True
    return func is Tensor.item and args[0].dtype == torch.bool


def of_sizes(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a division is one of a size by a number, without a remainder."""
    sizes = [arg for arg in args if isinstance(arg, (int, SymInt))]
    whole = kwargs.get("rounding_mode") in ("trunc", "floor")
    return whole and len(sizes) == len(args) == 2 and isinstance(args[0], SymInt)


def is_row_of_flags(args: Sequence[Any]) -> bool:
    """Whether a tensor is one axis of a known, small size."""
    tensor = args[0]
    if not isinstance(tensor, Tensor) or tensor.dim() != 1:
        return False
    size: Any = tensor.shape[0]  # a symbol where a trace keeps it general
    return isinstance(size, int) and size <= MOST_ROWS


def is_unknown(tensor: Tensor) -> bool:
    """Whether only data tells how many elements a tensor has."""
    count: Any = tensor.shape[0] if tensor.dim() == 1 else 0
    return isinstance(count, SymInt) and count.node.hint is None


@contextmanager
def modules_kept() -> Iterator[None]:
    """`module.to(...)` does nothing in this thread where there is nothing to do: it would touch every parameter."""
    thread, convert = threading.get_ident(), nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if threading.get_ident() == thread and is_already(module, args, kwargs):
            return module
        return convert(module, *args, **kwargs)

    nn.Module.to = to  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.to = convert  # type: ignore[method-assign]


@contextmanager
def seeds_refused() -> Iterator[None]:
    """A forward that sets torch's seed in this thread is an error: a graph would draw other numbers than it."""
    thread, seed = threading.get_ident(), torch.manual_seed

    def manual_seed(number: int) -> torch.Generator:
        if threading.get_ident() == thread:
            raise CaptureError("it sets torch's seed, which no graph can hold")
        return seed(number)

    torch.manual_seed = manual_seed  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.manual_seed = seed


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
