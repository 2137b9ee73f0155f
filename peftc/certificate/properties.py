"""The properties that prove a compiled module right, each a function from a subject to a finding.

One property says one thing that users rely on; where the model as it came does not have it, it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from peftc.certificate.findings import Finding, none, within
from peftc.certificate.gradients import captured_gradients, checkpointing, gradients_reach
from peftc.certificate.identity import identity_at_start
from peftc.certificate.invariances import batch, decoding, padding
from peftc.certificate.subject import Subject, error, run
from peftc.certificate.visibility import keys_in_front, visibility
from peftc.errors import MergeError, PeftcError
from peftc.runtime.merging import merged_weights, plain_model, unmergeable

Property = Callable[[Subject], Finding]


def adapters_off(subject: Subject) -> Finding:
    """With adapters off, the module computes what the model did, at the call's sizes and at others."""
    worst, sizes = 0.0, 0
    for arguments in (subject.arguments, subject.of_size(3, 9), subject.of_size(1, 5)):
        try:
            want = run(subject.plain, arguments)
        except Exception:  # noqa: BLE001 - the model itself does not take this size
            continue
        sizes += 1
        with subject.compiled.disable_adapter():
            worst = max(worst, error(run(subject.compiled, arguments), want))
    return within(
        "adapters off",
        worst,
        subject.tolerance,
        f"largest relative difference to the model, in calls of {sizes} sizes",
    )


def merged(subject: Subject) -> Finding:
    """The plain model with the adapters in its weights computes what the module does."""
    name = "merged"
    if kept := unmergeable(subject.plan):
        return none(name, f"{', '.join(kept)}: no change of weights")
    try:
        weights = merged_weights(subject.compiled, subject.plan)
    except MergeError as why:
        return none(name, why.message)
    model = plain_model(subject.compiled, weights).eval()
    figure = error(run(model, subject.arguments), run(subject.compiled, subject.arguments))
    return within(name, figure, 5 * subject.tolerance, "largest relative difference, merged to beside")


def traced(subject: Subject) -> Finding:
    """Under `torch.compile` in one graph, the module computes the same."""
    arguments = subject.arguments
    want = run(subject.compiled, arguments)
    torch._dynamo.reset()  # noqa: SLF001 - torch documents no other way to forget traces
    try:
        figure = error(run(torch.compile(subject.compiled, backend="eager", fullgraph=True), arguments), want)  # type: ignore[arg-type]
    except PeftcError:
        raise
    except Exception as why:  # noqa: BLE001 - the tracer may raise anything: that is the finding
        return Finding("torch.compile", "fail", detail=str(why).splitlines()[0][:120])
    finally:
        torch._dynamo.reset()  # noqa: SLF001
    return within(
        "torch.compile", figure, subject.tolerance, "one graph, largest relative difference to eager"
    )


PROPERTIES: tuple[Property, ...] = (
    adapters_off,
    identity_at_start,
    gradients_reach,
    captured_gradients,
    merged,
    visibility,
    keys_in_front,
    padding,
    batch,
    checkpointing,
    decoding,
    traced,
)
"""Every property, in the order in which they are examined."""
