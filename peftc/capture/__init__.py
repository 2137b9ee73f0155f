"""Model and call → normalised graph. Knows nothing of roles or rules."""

from collections.abc import Iterable

from torch import Tensor, fx, nn

from peftc.capture.export import export_call
from peftc.capture.normalise import normalise
from peftc.capture.scores import ReadScores, is_softmax_of_scores
from peftc.capture.signature import Call
from peftc.graphs.program import Program
from peftc.graphs.shared_modules import SharedModules
from peftc.passes import AS_MADE, PassRecord, PassSettings, name_of

UNREAD = "not read as attention: "
"""How a line begins that says why a softmax was not read."""


def capture(
    root: nn.Module,
    call: Call,
    path: str = "",
    *,
    shared: SharedModules | None = None,
    exact: bool = False,
    answers: tuple[bool, ...] = (),
    settings: PassSettings = AS_MADE,
) -> tuple[Program, dict[str, Tensor], tuple[PassRecord, ...]]:
    """Capture one call of `root`, at `path` of its model, and normalise it.

    Args:
        shared: the modules of the model that have several paths, where that is not `root` itself.
        exact: for these sizes only.
        answers: which way to go at the first branches that the code takes by what data says.
        settings: how its passes run.

    Returns:
        The program, the constants that tracing lifted out of the model's code, and what each pass did.

    Raises:
        CaptureError: the model cannot be captured.
    """
    raw, constants = export_call(root, call, path, shared=shared, exact=exact, answers=answers)
    program, records = normalise(raw, settings)
    return program, constants, records


def unread_attention(records: Iterable[PassRecord], graph: fx.Graph | None = None) -> tuple[str, ...]:
    """A line for each softmax that was not read as attention, with its module and the reason, from what the passes did.

    Args:
        graph: what they made; then only those of which it shows that they are over scores are told.
    """
    names = None if graph is None else {node.name for node in graph.nodes if is_softmax_of_scores(node)}
    return tuple(
        f"{UNREAD}{miss}"
        for record in records
        if record.name == name_of(ReadScores)
        for miss in record.misses
        if names is None or miss.partition(" ")[0] in names
    )


__all__ = ["UNREAD", "capture", "unread_attention"]
