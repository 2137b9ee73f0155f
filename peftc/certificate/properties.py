"""The properties that prove a compiled module right, each a function from a subject to a finding.

One property says one thing that users rely on; where the model as it came does not have it, it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftc.certificate.findings import Finding, counted, none, said_by, within
from peftc.certificate.gradients import captured_gradients, checkpointing, gradients_reach
from peftc.certificate.identity import identity_at_start
from peftc.certificate.invariances import batch, decoding, padding
from peftc.certificate.outputs import Outputs, difference, run_whole
from peftc.certificate.sizes import Size, calls_of_sizes, size_of
from peftc.certificate.subject import Arguments, Subject, afresh
from peftc.certificate.visibility import keys_in_front, visibility
from peftc.errors import MergeError, PeftcError
from peftc.runtime.merging import merged_weights, plain_model, unmergeable

Property = Callable[[Subject], Finding]


def adapters_off(subject: Subject) -> Finding:
    """With adapters off, the module computes what the model did, at the call's sizes and at others."""
    name = "adapters off"
    worst, sizes, names, refused = 0.0, set[Size](), set[str](), ""
    for arguments in calls_of_sizes(subject):
        try:
            want = run_whole(subject.plain, arguments)
        except TimeoutError:
            raise
        except Exception as why:  # noqa: BLE001 - the model itself does not take this size
            refused = refused or said_by(why)
            continue
        sizes.add(size_of(arguments))
        names.update(want)
        with subject.compiled.disable_adapter():
            worst = max(worst, difference(run_whole(subject.compiled, arguments), want))
    if not sizes:
        return Finding(name, "fail", detail=f"the model itself takes no such call: {refused}")
    rows, lengths = {size[0] for size in sizes}, {size[1:] for size in sizes}
    outputs = f" of {len(names)} outputs" if len(names) > 1 else ""
    detail = (
        f"largest relative difference to the model{outputs}, in calls of {counted(len(rows), 'batch size')}"
    )
    return within(name, worst, subject.tolerance, f"{detail} and {counted(len(lengths), 'length')}")


def merged(subject: Subject) -> Finding:
    """The plain model with the adapters in its weights computes what the module does."""
    name = "merged"
    if kept := unmergeable(subject.plan):
        return none(name, f"{', '.join(kept)}: no change of weights")
    try:
        weights = merged_weights(subject.compiled, subject.plan)
    except MergeError as why:
        return none(name, why.message)
    model = plain_model(afresh(subject.compiled), weights).eval()
    want = run_whole(model, subject.arguments)
    figure, bound = difference(run_whole(subject.compiled, subject.arguments), want), 5 * subject.tolerance
    if figure > bound:
        bound = max(bound, 4 * moved_by_rounding(subject, weights, want))
    return within(name, figure, bound, "largest relative difference, merged to beside")


def moved_by_rounding(subject: Subject, weights: Mapping[str, Tensor], want: Outputs) -> float:
    """How far outputs move where merged weights are rounded another way: some models make much of the last bit."""
    moved = 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rounded = {
            path: weight
            * (1 + torch.finfo(weight.dtype).eps * torch.randn(weight.shape, generator=generator).to(weight))
            for path, weight in weights.items()
        }
        model = plain_model(afresh(subject.compiled), rounded).eval()
        moved = max(moved, difference(run_whole(model, subject.arguments), want))
    return moved


def traced(subject: Subject) -> Finding:
    """Under `torch.compile` in one graph, the module computes the same."""
    name = "torch.compile"
    want = run_whole(subject.compiled, subject.arguments)
    try:
        figure = difference(run_in_one_graph(subject.compiled, subject.arguments), want)
    except PeftcError:
        raise
    except Exception as why:  # noqa: BLE001 - the tracer may raise anything: that is the finding
        try:
            run_in_one_graph(subject.plain, subject.arguments)
        except Exception as own:  # noqa: BLE001 - the same, of the model as it came
            return none(name, f"the model itself does not go into one graph: {said_by(own, 80)}")
        return Finding(name, "fail", detail=said_by(why))
    return within(name, figure, subject.tolerance, "one graph, largest relative difference to eager")


def run_in_one_graph(module: nn.Module, arguments: Arguments) -> Outputs:
    """All outputs of a call under `torch.compile`, without a break of its graph."""
    torch._dynamo.reset()  # noqa: SLF001 - torch documents no other way to forget traces
    try:
        whole: Any = torch.compile(afresh(module), backend="eager", fullgraph=True)
        return run_whole(whole, arguments)
    finally:
        torch._dynamo.reset()  # noqa: SLF001


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
