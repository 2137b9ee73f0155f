"""Passes over graphs, and the pipeline that orders, verifies, times and records them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx

from peftc.errors import PassFailedError, PeftcError
from peftc.graphs.verifying import verify


class Pass(Protocol):
    """One change to a graph. Its class name is the pass's name; its fields are its options."""

    def run(self, graph: fx.Graph) -> int:
        """Edit `graph` in place and say how many places changed."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to one graph."""

    name: str
    changed: int
    seconds: float
    nodes: int


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Verifies the graph after each one that changed it."""

    passes: Sequence[Pass]
    watch: Callable[[PassRecord, fx.Graph], None] | None = field(default=None, compare=False)

    def run(self, graph: fx.Graph) -> tuple[PassRecord, ...]:
        """Run every pass on `graph`, in place.

        Raises:
            PassFailedError: a pass raised, or left a graph that does not verify.
        """
        records: list[PassRecord] = []
        for step in self.passes:
            name = type(step).__name__
            start = time.perf_counter()
            try:
                changed = step.run(graph)
                if changed:
                    verify(graph)
            except PeftcError:
                raise
            except Exception as error:
                before = ", ".join(record.name for record in records) or "none"
                raise PassFailedError(
                    f"pass {name} failed: {error}", detail=(f"passes that ran before it: {before}",)
                ) from error
            record = PassRecord(name, changed, time.perf_counter() - start, len(graph.nodes))
            records.append(record)
            if self.watch is not None:
                self.watch(record, graph)
        return tuple(records)
