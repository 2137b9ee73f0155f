"""Properties of calls: what is beside a text, behind it or computed before changes nothing of it.

Where the model as it came does not have a property, it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftc.capture.arguments import is_decoders, is_encoders, is_next_calls, kind_of
from peftc.certificate.findings import Finding, none, said_by, within
from peftc.certificate.subject import Arguments, Subject, afresh, error, main_output, run
from peftc.certificate.visibility import given_text, slides
from peftc.errors import BranchError, ProgramError
from peftc.lang.roles import BEGINS, ROLES
from peftc.lang.scope import expressions


def padding(subject: Subject) -> Finding:
    """Padding behind a text or before it changes nothing at its tokens."""
    name = "padding"
    if "input_ids" not in subject.arguments or not subject.takes("attention_mask"):
        return none(name, "the model takes no ids with a mask")
    figures: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for side in ("behind", "before"):
        if side == "before" and (why := distance_counts(subject)):
            reasons[side] = why
            continue
        asked = figure_of(subject, partial(padded_apart, subject, side))
        if isinstance(asked, str):
            reasons[side] = asked
        else:
            figures[side] = asked
    if not figures:
        return none(name, reasons["behind"])
    worst = max(figures, key=lambda side: figures[side])
    detail = f"outputs at tokens, with {PADDING} tokens of padding {' or '.join(figures)} them, most {worst}"
    detail += "".join(f"; {side}: {why}" for side, why in reasons.items())
    return within(name, figures[worst], 10 * subject.tolerance, detail)


def distance_counts(subject: Subject) -> str:
    """Why padding between what a rule puts in front and the text moves the two apart; "" where it does not."""
    applications = subject.plan.applications
    if any(slides(subject, each) for each in applications):
        return "keys in front fall out of a sliding window, which counts padding too"
    if not subject.takes("position_ids") and any(ROLES[each.site.role].grows for each in applications):
        return "rows in front are as far from the text as the padding is long, and the model takes no places"
    return ""


PADDING = 3


def padded_apart(subject: Subject, side: str, module: nn.Module) -> float:
    """How far outputs at tokens are from those without any padding, behind them or before."""
    short = subject.of_size(2, 6)
    both = "decoder_input_ids" in short
    ids = short["input_ids"]
    short = short if both else {"input_ids": ids}
    # Not the first ones: a model that reads its output at the first place would see no difference.
    ones, more = torch.ones_like(ids), ids[:, 1 : PADDING + 1]
    texts, masks = [ids, more], [ones, 0 * ones[:, :PADDING]]
    at = slice(0, ids.shape[1])
    if side == "before":
        texts, masks, at = texts[::-1], masks[::-1], slice(PADDING, None)
    padded = {**short, "input_ids": torch.cat(texts, 1), "attention_mask": torch.cat(masks, 1)}
    if side == "before" and not both and subject.takes("position_ids"):
        padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found, want = run(module, padded), run(module, {**short, "attention_mask": ones})
    return error(found[:, at] if found.dim() > 2 and not both else found, want)


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
    """A token at a time with a cache gives what the whole text does; what an encoder gives is computed once."""
    name = "cached decoding"
    if (key := given_text(subject)) is None:
        return none(name, "the call is no text that a decoder goes on with")
    if not any(is_next_calls(each) and not is_encoders(each) for each in subject.names):
        return none(name, "its forward takes nothing that is called a cache or a past")
    if labels := of_beginnings(subject):
        return none(name, f"{', '.join(labels)} acts on what the call gives that begins a text")
    ids = subject.of_size(2, TEXT)[key]
    beside, kept = besides(subject, key), {"use_cache": True} if subject.takes("use_cache") else {}

    def difference(module: nn.Module) -> float:
        with torch.no_grad():
            whole = afresh(module)(**beside, **{key: ids}, **kept)
            last = afresh(module)(**beside, **{key: ids[:, :BEGUN]}, **kept)
            pieces, rest = [main_output(last)], going_on(beside, last) if key != "input_ids" else {}
            for at in range(BEGUN, TEXT):
                last = module(**rest, **{key: ids[:, at : at + 1]}, **cache_of(subject, last), **kept)
                pieces.append(main_output(last))
        return error(torch.cat(pieces, 1), main_output(whole))

    try:
        return invariant(
            subject, name, difference, "five tokens at once and two one by one, to seven at once"
        )
    except ProgramError as why:  # such as rows in front of a text, for which a state of a scan has no room
        if isinstance(why, BranchError):
            raise
        return none(name, f"the module refuses such a call: {why.message}")


TEXT, BEGUN = 7, 5


def cache_of(subject: Subject, last: Any) -> Arguments:
    """What a call gives back for the next one: a part of its output that forward takes by the same name."""
    given = last.items() if isinstance(last, Mapping) else ()
    found = {
        name: held
        for name, held in given
        if (is_next_calls(name) or not isinstance(held, Tensor)) and subject.takes(name)
    }
    if not found:
        raise ValueError("it gives back no cache that its forward takes")
    return found


def besides(subject: Subject, key: str) -> Arguments:
    """What the call of a text takes besides it: what an encoder reads, but nothing for the text's own length."""
    if key == "input_ids":
        return {}
    return {
        name: value
        for name, value in subject.of_size(2).items()
        if not is_decoders(name) and name != "labels" and isinstance(value, Tensor)
    }


def going_on(beside: Arguments, last: Any) -> Arguments:
    """The same in calls that go on: what the encoder gave stands for what it read."""
    masks = {name: value for name, value in beside.items() if kind_of(name) == "mask"}
    return {**masks, "encoder_outputs": (last.encoder_last_hidden_state,)}


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
    figure = figure_of(subject, difference)
    if isinstance(figure, str):
        return none(name, figure)
    return within(name, figure, 10 * subject.tolerance, detail)


def figure_of(subject: Subject, difference: Callable[[nn.Module], float]) -> float | str:
    """What is measured of the module; or why the model itself does not have the property."""
    try:
        before = difference(subject.plain)
    except Exception as why:  # noqa: BLE001 - the model itself does not take such a call
        return f"the model does not take such a call: {said_by(why, 60)}"
    if not before <= 10 * subject.tolerance:
        return f"the model itself differs by {before:.1g}"
    return difference(subject.compiled)
