"""Properties of calls: what is beside a text, behind it or computed before changes nothing of it.

Where the model as it came does not have a property, it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peftc.certificate.findings import Finding, none, within
from peftc.certificate.subject import Subject, error, main_output, run
from peftc.lang.roles import BEGINS, ROLES
from peftc.lang.scope import expressions


def padding(subject: Subject) -> Finding:
    """Padding behind a text changes nothing at its tokens."""
    name = "padding"
    if "input_ids" not in subject.arguments or not subject.takes("attention_mask"):
        return none(name, "the model takes no ids with a mask")
    if "decoder_input_ids" in subject.arguments:
        short = dict(subject.of_size(2, 6))
    else:
        short = {"input_ids": subject.of_size(2, 6)["input_ids"]}
    ids = short["input_ids"]
    ones = torch.ones_like(ids)
    behind = {
        **short,
        "input_ids": torch.cat([ids, ids[:, :3]], 1),
        "attention_mask": torch.cat([ones, 0 * ones[:, :3]], 1),
    }
    short["attention_mask"] = ones
    cut = (
        (slice(None), slice(None)) if "decoder_input_ids" in short else (slice(None), slice(0, ids.shape[1]))
    )

    def difference(module: nn.Module) -> float:
        with_padding, without = run(module, behind), run(module, short)
        return error(with_padding[cut] if with_padding.dim() > 2 else with_padding, without)

    return invariant(subject, name, difference, "outputs at tokens, with 3 tokens of padding behind them")


def batch(subject: Subject) -> Finding:
    """A row's output does not depend on the rows beside it."""
    arguments = subject.of_size(3)

    def difference(module: nn.Module) -> float:
        whole = run(module, arguments)
        first = run(
            module, {n: v[:1] if isinstance(v, Tensor) and v.dim() else v for n, v in arguments.items()}
        )
        return error(whole[: first.shape[0]], first)

    return invariant(subject, "batch", difference, "a row alone and among three")


def decoding(subject: Subject) -> Finding:
    """A token at a time with a cache gives what the whole text does."""
    name = "cached decoding"
    if "input_ids" not in subject.arguments or "decoder_input_ids" in subject.arguments:
        return none(name, "the call is no text that a decoder goes on with")
    if not callable(getattr(subject.compiled, "generate", None)) or not subject.takes("past_key_values"):
        return none(name, "the model has no cache")
    if labels := of_beginnings(subject):
        return none(name, f"{', '.join(labels)} acts on what the call gives that begins a text")
    ids = subject.of_size(2, 7)["input_ids"]

    def difference(module: Any) -> float:
        whole = run(module, {"input_ids": ids, "use_cache": False})
        with torch.no_grad():
            first = module(input_ids=ids[:, :5], use_cache=True)
            if first.past_key_values is None:
                raise ValueError("it gives no cache back")
            pieces, cache = [main_output(first)], first.past_key_values
            for at in range(5, 7):
                step = module(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
                pieces.append(main_output(step))
                cache = step.past_key_values
        return error(torch.cat(pieces, 1), whole)

    return invariant(subject, name, difference, "five tokens at once and two one by one, to seven at once")


def of_beginnings(subject: Subject) -> list[str]:
    """Labels of the rules that ask whether a call begins a text: what they do depends on where the calls of one end."""
    plan, found = subject.plan, dict[str, None]()
    for application in plan.applications:
        section = plan.section(application)
        if BEGINS not in ROLES[application.site.role].ports:
            continue
        read = expressions(plan.bound(application.rule).rule, section).values()
        if any(BEGINS in expression.names for expression in read):
            found[application.rule] = None
    return list(found)


def invariant(subject: Subject, name: str, difference: Callable[[nn.Module], float], detail: str) -> Finding:
    """A property that is asked of the module if the model has it."""
    try:
        before = difference(subject.plain)
    except Exception as why:  # noqa: BLE001 - the model itself does not take such a call
        return none(name, f"the model does not take such a call: {str(why).splitlines()[0][:60]}")
    if before > 10 * subject.tolerance:
        return none(name, f"the model itself differs by {before:.1g}")
    return within(name, difference(subject.compiled), 10 * subject.tolerance, detail)
