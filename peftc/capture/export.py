"""From a module and a call to a raw program, by `torch.export`. Normalises nothing."""

from __future__ import annotations

import inspect
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from peftc.capture.assumption import check_rows
from peftc.capture.backwards import backwards_noted
from peftc.capture.flat_call import FlatCall
from peftc.capture.graph_reader import GraphReader
from peftc.capture.signature import Call
from peftc.capture.silence import quiet, unlogged
from peftc.capture.size_reader import size_conditions
from peftc.capture.tracing import Tracing, modules_kept, seeds_refused
from peftc.errors import CaptureError
from peftc.graphs.program import Program
from peftc.graphs.shared_modules import SharedModules
from peftc.quantised import standing_in

CHANNELS, PIXELS = 4, 16  # an image has at most so many channels, and at least so many pixels a side


def export_call(
    root: nn.Module,
    call: Call,
    path: str = "",
    *,
    shared: SharedModules | None = None,
    exact: bool = False,
    answers: tuple[bool, ...] = (),
) -> tuple[Program, dict[str, Tensor]]:
    """Capture one call of `root`, which lies at `path` of its model.

    Args:
        shared: the modules of the model that have several paths; those of `root` where that is the model.
        exact: for these sizes only.
        answers: which way to go at the first branches on data; at others it is False, if that leads anywhere.

    Returns:
        The raw program, and the constant tensors that tracing lifted out of the model's code, by path.

    Raises:
        CaptureError: the model cannot be captured; shows the model's own source line.
    """
    drawn = numbers_state()
    with quiet(root), standing_in(root):
        flat = FlatCall(call)
        own_backwards: dict[type, str] = {}

        def traced() -> tuple[ExportedProgram, tuple[bool, ...]]:
            with backwards_noted(own_backwards):
                return trace(root, flat, (0,) if exact else (None, 2), answers)

        exported, answered = in_thread(traced)
    for kind, line in own_backwards.items():
        warnings.warn(
            f"{kind.__qualname__}, which {type(root).__name__} calls at {line}, has a backward of its own. No captured "
            "graph has it: gradients are those of what its forward computes",
            stacklevel=2,
        )
    if numbers_state() != drawn:
        raise CaptureError(
            f"{type(root).__name__} draws numbers from numpy: captured, they would be the same in every call",
            hint="turn off in the model's config what it draws in this mode (augmentation, dropping of layers)",
        )
    constants: dict[str, Tensor] = {}
    reader = GraphReader(exported, root, path, constants, shared or SharedModules(root))
    graph = reader.read(flat)
    inputs = [node for node in graph.nodes if node.op == "placeholder"][: len(call.tensors)]
    program = Program(
        graph,
        path,
        call.names,
        size_conditions(inputs),
        training=root.training,
        mixed=any(module.training != root.training for module in root.modules()),
        answers=answered,
        given=reader.given,
        lengths=flat.lengths,
    )
    return program, constants


def numbers_state() -> tuple[bytes, int]:
    """The state of numpy's generator, from which a model's own code may draw."""
    state: Any = np.random.get_state()  # noqa: NPY002 - models use the old generator
    return state[1].tobytes(), state[2]


def trace(
    root: nn.Module,
    flat: FlatCall,
    limits: Sequence[int | None],
    answers: tuple[bool, ...] = (),
) -> tuple[ExportedProgram, tuple[bool, ...]]:
    """Export with every dimension general that can be, below the first limit that works; None is no limit.

    Returns:
        What was exported, and which way it goes at each of its branches on data; the first of them are `answers`.
    """
    failure: Exception | None = None
    for limit in limits:
        tracing = Tracing(answers)
        while True:
            try:
                exported = attempt(root, flat, limit, tracing)
            except Exception as error:  # noqa: BLE001 - the model's code may raise anything; it is told below
                if not tracing.has_another_way(error):
                    failure = failure or error
                    break
            else:
                if tracing.all_rows:
                    check_rows(root, flat, exported)
                return exported, tracing.answered
    assert failure is not None
    raise CaptureError(
        f"{type(root).__name__} cannot be captured: {reason(failure)}",
        detail=tuple(source_lines(failure)),
    ) from failure


def attempt(root: nn.Module, flat: FlatCall, limit: int | None, tracing: Tracing) -> ExportedProgram:
    """Export once."""
    with warnings.catch_warnings():
        # export warns about its own internals, and logs whole graphs; users can do nothing there
        warnings.simplefilter("ignore")
        with (
            unlogged(),
            modules_kept(),
            seeds_refused(),
            flattened(root, flat, tracing),
        ):
            shapes = general_in(flat, limit)
            return export(root, (), flat.inputs, dynamic_shapes=shapes, strict=False)


def reason(failure: Exception) -> str:
    """Why an export failed: the first line of its error that says something, or what torch says at length."""
    if isinstance(failure, GuardOnDataDependentSymNode):
        return "what it does, or the size of what it makes, depends on data"
    return next((line.strip() for line in str(failure).splitlines() if line.strip()), type(failure).__name__)


@contextmanager
def flattened(root: nn.Module, flat: FlatCall, tracing: Tracing) -> Iterator[None]:
    """Give `root` a forward that takes and returns tensors only: export cannot take every structure apart.

    It runs under `tracing`, which only code inside the trace can enter.
    """
    original = root.forward

    def forward(**inputs: Any) -> list[Any]:
        with tracing:
            return flat.run(original, inputs)

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in flat.inputs]
    forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    own = vars(root).get("forward")
    object.__setattr__(root, "forward", forward)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(root, "forward")
        else:
            object.__setattr__(root, "forward", own)


def general_in(flat: FlatCall, limit: int | None) -> dict[str, Any]:
    """The `dynamic_shapes` of a call. Of images, height and width stay as they are.

    Almost every model of images asks for one size of them, and patches of a size that is a symbol make expressions
    that take minutes to simplify. Calls with other sizes are captured on their own.
    """
    alone = {name for name, shape in flat.call.key if shape[0] is Tensor}
    return {
        name: general(value, 1 if name in alone and is_image(name, value) else limit)
        for name, value in flat.inputs.items()
    }


def is_image(name: str, value: Tensor) -> bool:
    """Whether an argument is a batch of images [batch channels height width], or of videos, which have frames too."""
    if value.dim() not in (4, 5) or not value.is_floating_point():
        return False
    return "mask" not in name and value.shape[-3] <= CHANNELS and min(value.shape[-2:]) >= PIXELS


def general(value: Tensor, limit: int | None) -> dict[int, Any]:
    """The `dynamic_shapes` of a tensor: every dimension below `limit` may vary."""
    axes = range(value.dim() if limit is None else min(limit, value.dim()))
    return {axis: Dim.AUTO for axis in axes if value.shape[axis] > 1}  # 0 and 1 are always specialised


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
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            box["error"] = error

    thread = threading.Thread(target=run, name="peftc-capture")
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    return box["result"]


__all__ = ["export_call", "in_thread"]
