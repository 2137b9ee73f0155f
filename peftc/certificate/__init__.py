"""The certificate: invariants run on a compiled module, for tests here and for users on models of their own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftc.certificate.findings import Certificate, Finding, said_by
from peftc.certificate.properties import PROPERTIES, Property
from peftc.certificate.subject import Subject, examined, run, varied
from peftc.errors import CaptureError, PeftcError


def check(compiled: nn.Module, example_inputs: Mapping[str, Any] | None = None) -> Certificate:
    """Examine a compiled module: is it right for this model and these rules?

    Args:
        compiled: what `peftc.compile` made; its trainable values, buffers, mode and gradients are as before behind.
        example_inputs: arguments of `forward` by name; a transformers model needs none.

    Raises:
        CaptureError: the module is none that peftc compiled, the model itself raises an error when it is called so, or
            a call that a property makes cannot be captured.
    """
    if not hasattr(compiled, "peftc_plan"):
        raise CaptureError(
            f"{type(compiled).__name__} is no compiled module",
            hint="compile it first: peftc.compile(model, rules)",
        )
    from peftc.capture.examples import example_arguments

    arguments = example_arguments(compiled, example_inputs)
    if example_inputs is None:
        arguments = varied(arguments, compiled)
    with examined(compiled, arguments) as subject:
        refuse_what_the_model_refuses(subject)
        findings = tuple(finding_of(examine, subject) for examine in PROPERTIES)
        rules = tuple(bound.text or bound.label for bound in subject.plan.rules)
    return Certificate(type(subject.plain).__name__, rules, findings)


def refuse_what_the_model_refuses(subject: Subject) -> None:
    """Raises CaptureError where the model as it came raises an error in the call: there is nothing to compare with."""
    try:
        run(subject.plain, subject.arguments)
    except (PeftcError, TimeoutError):
        raise
    except Exception as why:
        shapes = {n: list(v.shape) for n, v in subject.arguments.items() if isinstance(v, Tensor)}
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise CaptureError(
            f"{type(subject.plain).__name__} itself raises {type(why).__name__} in this call: {said_by(why)}",
            detail=(f"it was called with {shown or 'no tensor'}",),
            hint="give example inputs that the model takes, such as ids of its vocabulary",
        ) from why


def finding_of(examine: Property, subject: Subject) -> Finding:
    """What a property says; that it raised an error is a finding too."""
    try:
        return examine(subject)
    except (PeftcError, TimeoutError):
        raise
    except Exception as why:  # noqa: BLE001 - whatever the module raises where the model did not
        said = f"{type(why).__name__}: {said_by(why)}"
        return Finding(examine.__name__.replace("_", " "), "fail", detail=said)


__all__ = ["Certificate", "Finding", "check"]
