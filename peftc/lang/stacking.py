"""Used rules whose parameters are those of saved adapters: one more axis in front of each. Reads no adapter."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from peftc.errors import instead
from peftc.lang.codes import fault
from peftc.lang.document import Rule
from peftc.lang.draft import Draft
from peftc.lang.source import Place


def stack(drafts: Iterable[Draft], rule: Rule, index: int, axis: str, label: str) -> None:
    """Let the sections of a used rule read their parameters from saved adapters. Raises RuleError.

    Args:
        index: of the use in `rule`.
        axis: the axis that counts the adapters, and the option that says how many there are.
        label: what stands in front of the parameters' names.
    """
    place, use = rule.source.place("use", index, "saved"), rule.use[index]
    option = rule.options.get(axis)
    if option is None or type(option.default) is not int or option.min is None or option.min < 1:
        message = (
            f"{axis!r} counts adapters, so it must be an option that is a whole number with min = 1 or more"
        )
        raise fault("R061", place, message, hint=instead(axis, rule.options))
    if use.options:
        raise fault("R061", place, f"the options of {use.rule} are those of the saved adapters: give none")
    for draft in drafts:
        if draft.train:
            message = f"{use.rule} trains weights of the model itself, of which there are no two"
            raise fault("R061", place, message)
        for name, (parameter, at) in draft.parameters.items():
            if axis in parameter.named:
                raise fault("R061", place, f"{name} has an axis {axis!r} already")
            changed = {
                "axes": f"{axis} {parameter.axes}".strip(),
                "init": f"saved({name.removeprefix(f'{label}_')})",
                "trainable": False,
                "seed": None,
                "gate": False,
                "lr": 1.0,
            }
            draft.parameters[name] = (parameter.model_copy(update=changed), at)
        draft.merge, draft.loss, draft.losses, draft.schedule = {}, {}, {}, {}


def name_added(drafts: Iterable[Draft], place: Place, name: str) -> None:
    """Give the name to what each section adds to the port that it rewrites. Raises RuleError."""
    for draft in drafts:
        if not draft.rewrite:
            continue
        if name in draft.let or name in draft.parameters:
            raise fault("R020", place, "the used rule has this name already")
        if len(draft.rewrite) > 1:
            ports = " and ".join(map(repr, draft.rewrite))
            raise fault("R062", place, f"it rewrites {ports}, and only one port can be told")
        ((port, line),) = draft.rewrite.items()
        match line.expression.tree:
            case ast.BinOp(left=ast.Name(id=own), op=ast.Add(), right=rest) if own == port:
                pass
            case ast.BinOp(left=rest, op=ast.Add(), right=ast.Name(id=own)) if own == port:
                pass
            case _:
                message = f"{port!r} becomes {line.text!r}, which is not '{port} + …'"
                raise fault("R062", place, message)
        draft.let[name] = line.piece(rest)
