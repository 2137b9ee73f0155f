"""From a model and bound rules to a compiled module: capture once, plan, build. Looks no rule up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from peftc.analyse import Analysis, analyse
from peftc.capture import capture, unread_attention
from peftc.capture.examples import example_arguments, explain
from peftc.capture.signature import Call, Key, Parameters, example_call, mode_key, read_call
from peftc.errors import CaptureError, NoMatchError, PeftcError, UnknownPartError, first_line
from peftc.graphs.branches import expect
from peftc.graphs.program import Program
from peftc.lang import Bound
from peftc.match import Plan, make_plan
from peftc.passes import AS_MADE, PassRecord, PassSettings
from peftc.runtime.build import build
from peftc.runtime.compiled import CompiledModule
from peftc.runtime.engine import Engine
from peftc.runtime.stacked import SavedTensors, refuse_foreign
from peftc.runtime.starting import Starting, record, run
from peftc.runtime.twin import INPUTS_WANTED

Captured: TypeAlias = tuple[Program, dict[str, Tensor], tuple[PassRecord, ...]]
"""What `capture` gives: a program, constants out of the model's code, and what each pass did."""


@dataclass(frozen=True)
class Look:
    """One capture of a model, and what the rules make of it. Nothing of the model has changed yet.

    Attributes:
        call: the call whose signature was captured.
        mode: what the model's mode was before the capture.
        constants: tensors that tracing lifted out of the model's code.
        passes: how captures are normalised.
    """

    analysis: Analysis
    plan: Plan
    program: Program
    call: Call
    mode: Key
    constants: Mapping[str, Tensor] = field(hash=False)
    records: tuple[PassRecord, ...]
    passes: PassSettings = AS_MADE


def capture_example(
    model: nn.Module, example_inputs: Mapping[str, Any] | None = None, passes: PassSettings = AS_MADE
) -> tuple[Call, Key, Captured]:
    """An example call of a model, the mode the model was in, and what `capture` makes of the call.

    Where the model's code branches on data, the way is captured that the data of the call take; a call that was made for
    the model says nothing of that.
    """
    # As the engine reads any call: the program will serve calls with these arguments in any order.
    arguments = example_arguments(model, example_inputs)
    call = read_call(Parameters.of(model.forward), (), arguments)
    mode = mode_key(model, list(model.modules()))
    try:
        captured = capture(model, example_call(call), settings=passes)
        tried: set[tuple[bool, ...]] = set()  # where chance decides, no way may be the last one
        while example_inputs is not None:
            answers = other_way(model, captured, call)
            if answers is None or answers in tried:
                break
            tried.add(answers)
            captured = capture(model, example_call(call), answers=answers, settings=passes)
        return call, mode, captured
    except CaptureError as error:
        if example_inputs is None:
            explain(error, model, arguments)
        raise


def other_way(model: nn.Module, captured: Captured, call: Call) -> tuple[bool, ...] | None:
    """What the data of a call say at the first branches of a program, if that is another way than it was captured for."""
    program, constants, _ = captured
    held = {node.args[1]: node.args[0] for node in program.graph.nodes if node.target is expect}
    if not held or not program.sizes.hold(call.tensors):
        return None
    try:
        values = run(model, program, constants, tuple(held.values()), call.tensors)
    except (PeftcError, TimeoutError):
        raise
    except Exception as why:
        raise CaptureError(
            f"{type(model).__name__} raises {type(why).__name__} in the example call: {first_line(why)}",
            hint="give example inputs that the model takes, such as ids of its vocabulary",
        ) from why
    for number, holds in sorted(zip(held, values, strict=True)):
        if not bool(holds):
            return (*program.answers[:number], not program.answers[number])
    return None


def look(
    model: nn.Module,
    bounds: Sequence[Bound],
    example_inputs: Mapping[str, Any] | None = None,
    defaults: Iterable[Bound] = (),
    budget: int | None = None,
    passes: PassSettings = AS_MADE,
) -> Look:
    """Capture a model once, find its sites and match the rules.

    Raises:
        MatchError: the rules do not fit the model. CaptureError: the model cannot be captured.
    """
    call, mode, (program, constants, records) = capture_example(model, example_inputs, passes)
    analysis = analyse(program.graph, model)
    try:
        unread = unread_attention(records, program.graph)
        plan = make_plan(bounds, analysis, model, defaults, budget, unread)
    except (UnknownPartError, NoMatchError) as error:
        if all(site.role != "attention" for site in analysis.sites):
            error.detail += unread_attention(records)
        raise
    return Look(analysis, plan, program, call, mode, constants, records, passes)


def start_from(
    looked: Look,
    copied: nn.Module,
    data: Mapping[str, Any] | None = None,
    saved: Mapping[str, SavedTensors] | None = None,
) -> Starting:
    """What computes the initial values of a plan from a `twin`, and from data and saved adapters where they need any.

    Raises:
        MatchError: they need data or saved adapters, and there are none.
        SavedAdapterError: the adapters are of another model.
    """
    refuse_foreign(looked.plan, saved or {})
    return Starting(copied, looked.plan, record(copied, looked.plan, data, looked.passes), saved or {})


def carry_out(
    looked: Look,
    copied: nn.Module,
    kind: type[CompiledModule] = CompiledModule,
    starting: Starting | None = None,
) -> nn.Module:
    """Compile a `twin`, in place, as its look says; the program of the look serves its first call.

    Args:
        looked: what `look` found in `copied`.
        kind: the class that the compiled module's methods come from.
        starting: what computes initial values; without it those stay 0.
    """
    engine = Engine(copied, looked.plan, looked.analysis.blocks, looked.passes)
    engine.inputs_require_grads = bool(vars(copied).pop(INPUTS_WANTED, False))
    compiled = build(copied, looked.plan, engine, kind, starting)
    engine.install(
        looked.program, looked.analysis, looked.constants, looked.records, looked.call, looked.mode
    )
    return compiled
