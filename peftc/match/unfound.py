"""Notes on attentions some of whose products were not found, where rules ask for those: nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import fx

from peftc.analyse import Analysis, Located
from peftc.analyse.channels import MOVES
from peftc.graphs.reading import ancestors, operator_name
from peftc.lang import Bound, is_on
from peftc.lang.roles import OTHER
from peftc.match.plan import Application


def unfound(bounds: Iterable[Bound], analysis: Analysis) -> Iterator[str]:
    """One line for each way in which attentions lack parts that a rule asks for."""
    rules = [bound for bound in bounds if not bound.kept]
    alike: dict[tuple[str, ...], list[str]] = {}
    for located in analysis.located:
        if located.site.role == "attention":
            missing = [part for part in "qkvo" if part not in located.site.made_of]
            asked = [part for part in missing if any(asks(rule, part, located.site.scope) for rule in rules)]
            if asked:
                said = dict.fromkeys(reason(located, part) for part in asked)
                alike.setdefault((", ".join(asked), *said), []).append(located.site.id)
    for (parts, *reasons), ids in alike.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        yield f"attention {ids[0]}{more}: no {parts} was found, since {' and '.join(reasons)}"


def before_heads(applications: Sequence[Application], analysis: Analysis) -> Iterator[str]:
    """One line, where linear maps between the blocks and a head that trains do not train: a new head may have such."""
    trained = {path for each in applications for path in each.trains.values()}
    ends = {use.anchor for each in analysis.located if each.site.role == "block" for use in each.uses}
    heads = [
        use.anchor
        for each in analysis.located
        if each.site.role == "head" and trained & set(each.site.weights.values())
        for use in each.uses
    ]
    behind = {node for head in heads for node in ancestors(head)}
    left = [
        each.site
        for each in analysis.located
        if (each.site.role, each.site.part or OTHER, each.site.layer) == ("linear", OTHER, None)
        and not trained & set(each.site.weights.values())
        and any(use.anchor in behind and ends & set(ancestors(use.anchor)) for use in each.uses)
    ]
    if left:
        paths = ", ".join(site.path for site in left)
        yield (
            f"{paths} between the blocks and the head does not train and is not saved: if it is as new as the head, train "
            f"it too, as full:path={left[0].path}.* does"
        )


def asks_for_attention(bound: Bound) -> bool:
    """Whether a rule goes to attentions, to parts of them, or to the sums behind them."""
    if bound.kept:
        return False
    for section in bound.rule.sections:
        chosen = bound.parts_of(section)
        if bound.wants(section) and is_on(bound.rule, section, bound.options):
            if "attention" in section.match.role:
                return True
            if "residual" in section.match.role and (
                not chosen or any(each.accepts("residual", "attention") for each in chosen)
            ):
                return True
    return any(asks(bound, part, scope) for part in "qkvo" for scope in ("", "encoder", "decoder", "cross"))


def asks(bound: Bound, part: str, scope: str) -> bool:
    """Whether a rule goes to linear maps of a part as such: one that goes to all has those of no part too."""
    for section in bound.rule.sections:
        on = bound.wants(section) and is_on(bound.rule, section, bound.options)
        if on and "linear" in section.match.role:
            chosen = bound.parts_of(section)
            # The scope of a map in no part is not known to be the attention's.
            others = any(each.accepts("linear", OTHER) or each.accepts("linear", "") for each in chosen)
            if not others and any(each.accepts("linear", part, scope) for each in chosen):
                return True
    return False


def reason(located: Located, part: str) -> str:
    """Why no weight was found for a part."""
    if part == "o":
        return "what it gathers goes to no product with a weight in a way that is followed"
    node = located.uses[0].ports[part].source
    while isinstance(node, fx.Node) and operator_name(node) in MOVES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return f"its {part} is a number"
    made = {"placeholder": "an input of the call", "get_attr": "held by the model"}.get(node.op)
    return f"its {part} is {made or f'made by {operator_name(node)}, behind which no product with a weight was seen'}"
