"""Keeps what tracing says to itself, and what only matters when running off while tracing."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from torch import nn


class OtherThreads(io.TextIOBase):
    """A stream that lets go of what one thread writes."""

    def __init__(self, stream: TextIO, thread: int) -> None:
        self.stream, self.thread = stream, thread

    def write(self, text: str, /) -> int:
        """Write it, unless it is of that thread."""
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep what torch logs and prints about a trace in this thread to itself: the error says it."""
    thread = threading.get_ident()
    stream = sys.stderr

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch.export")]
    for logger in loggers:
        logger.addFilter(elsewhere)
    sys.stderr = OtherThreads(stream, thread)  # a failed export prints the graph it has so far
    try:
        yield
    finally:
        if isinstance(sys.stderr, OtherThreads):
            sys.stderr = stream
        for logger in loggers:
            logger.removeFilter(elsewhere)


@contextmanager
def quiet(root: nn.Module) -> Iterator[None]:
    """Gradient checkpointing off while tracing: recomputation is a matter of running, not of results."""
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
