"""Which outputs depend on which tokens, and on which keys that rules put in front of others: told by changing them."""

from __future__ import annotations

import ast

import torch
from torch import Tensor

from peftc.certificate.attention import compared
from peftc.certificate.findings import Finding, none, said_by, within
from peftc.certificate.subject import Arguments, Subject, run
from peftc.lang import Section, signature
from peftc.lang.scope import expressions
from peftc.match.plan import Application

LENGTH = 8
"""Tokens: few, so that windows of those who look back a little only hide nothing."""


CLEAR = 1e-3
"""How much of the largest output a token must move an output in the model, to be missed where it moves nothing."""


def given_text(subject: Subject) -> str | None:
    """Name of the argument whose tokens the outputs stand for; None where there is none."""
    key = "decoder_input_ids" if "decoder_input_ids" in subject.arguments else "input_ids"
    ids = subject.arguments.get(key)
    return key if isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] > 1 else None


def visibility(subject: Subject) -> Finding:
    """With adapters on, outputs depend on the tokens, and queries see the keys, that they do in the model; no others."""
    name = "visibility"
    found = compared(subject, short_call(subject))
    tokens = between_tokens(subject)
    if isinstance(tokens, str) and not (found.pairs or found.wrong):
        return none(name, tokens)
    said = [f"{found.pairs} pairs of query and key are as in the model"] if found.pairs else []
    wrong, faults = found.wrong, list(found.faults)
    if not isinstance(tokens, str):
        plain, ours = tokens
        allowed, seen = depends(plain), depends(ours)
        said.append(
            f"{int(allowed.sum())} of {allowed.numel()} pairs of output and token depend in the model"
        )
        leaks, lost = seen & ~allowed, depends(plain, CLEAR) & ~seen
        if found.pairs and not found.wrong:
            # All keys are seen: one that moves an output in the model, and other outputs here, has no weight in a
            # softmax that became sharp.
            lost &= ~seen.any(1, keepdim=True)
        wrong += int(leaks.sum()) + int(lost.sum())
        if bool(lost.any()):
            faults.insert(
                0, "output {1} does not see token {0}, which it sees in the model".format(*first(lost))
            )
        if bool(leaks.any()):
            faults.insert(0, "output {1} sees token {0}, which the model hides from it".format(*first(leaks)))
    return within(name, float(wrong), 0.0, "; ".join(faults or said))


def first(pairs: Tensor) -> list[int]:
    """Where the first pair is that there is."""
    return [int(each) for each in pairs.nonzero()[0]]


def between_tokens(subject: Subject) -> tuple[Tensor, Tensor] | str:
    """Outputs of the model and of the module, where one row after another has one token changed; or why there are none."""
    key = given_text(subject)
    if key is None:
        return "the call has no token ids, and the model no attention"
    length = min(int(subject.arguments[key].shape[1]), LENGTH)
    base = subject.of_size(length + 1, length)
    row = base[key][:1].expand(length + 1, -1).clone()
    for position in range(length):
        row[position + 1, position] = (row[position + 1, position] + 1) % subject.words
    arguments = {
        n: (v[:1].expand_as(v) if isinstance(v, Tensor) and v.dim() else v) for n, v in base.items()
    } | {key: row}
    try:
        plain = run(subject.plain, arguments)
    except Exception as why:  # noqa: BLE001 - the model itself does not take such a call
        return f"the model does not take such a call: {said_by(why, 60)}"
    if plain.dim() < 3 or plain.shape[1] != length:
        return "the output has no place for each token"
    return plain, run(subject.compiled, arguments)


def depends(outputs: Tensor, least: float = 1e-6) -> Tensor:
    """[token output]: whether an output differs from the first row's where one token differs, by more than `least`."""
    return (outputs[1:] - outputs[:1]).abs().flatten(2).amax(-1) > least * outputs.abs().max()


def keys_in_front(subject: Subject) -> Finding:
    """Keys that a rule puts in front of an attention's own are seen from every token, unless they are to slide out."""
    name = "keys in front"
    found = [(a, paths) for a in subject.plan.applications if (paths := paths_of_keys(subject, a))]
    if not found:
        return none(name, "no rule puts keys in front of others")
    found = [(a, paths) for a, paths in found if not slides(subject, a)]
    if not found:
        return none(name, "keys in front fall out of a sliding window, as their rules say")
    arguments = short_call(subject)
    base = run(subject.compiled, arguments)
    by_token = base.dim() > 2
    unseen, where = 0, ""
    for application, paths in found:
        tensors = [subject.compiled.get_parameter(path) for path in paths]
        before = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            for tensor in tensors:
                tensor.mul_(-2).add_(0.5)
            moved = (run(subject.compiled, arguments) - base).abs()
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        outputs = moved.flatten(2).amax(-1) if by_token else moved.flatten(1).amax(-1)
        dark = int((outputs <= 1e-6 * base.abs().max()).sum())
        if dark:
            where = (
                where or f"; {dark} of {outputs.numel()} outputs do not see those of {application.site.id}"
            )
        unseen += dark
    return within(name, float(unseen), 0.0, f"keys of {len(found)} attentions, from every output" + where)


def slides(subject: Subject, application: Application) -> bool:
    """Whether keys in front fall out of the window of an attention, as a setting of their rule says."""
    rule, options = subject.plan.bound(application.rule).rule, subject.plan.options(application)
    given = [
        keyword.value
        for expression in expressions(rule, subject.plan.section(application)).values()
        for node in expression.nodes
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "visible"
    ]
    said = {
        options.get(each.id) if isinstance(each, ast.Name) else getattr(each, "value", None) for each in given
    }
    return application.site.window > 0 and "window" in said


def paths_of_keys(subject: Subject, application: Application) -> list[str]:
    """Parameters of an application that have the axis of an attention's keys."""
    if application.site.role != "attention":
        return []
    section: Section = subject.plan.section(application)
    called = signature(section, "attention").ports["k"][2]
    laid = {name for name, declared in section.parameters.items() if called in declared.named}
    return [each.path for each in application.parameters if each.name in laid]


def short_call(subject: Subject) -> Arguments:
    """The call with few tokens, where it has any."""
    return subject.of_size(2, LENGTH) if given_text(subject) else subject.arguments
