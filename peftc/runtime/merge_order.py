"""In which order the rules at one weight are merged, so that the sums come out as those of the graph. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peftc.errors import MergeError
from peftc.lang.roles import ROLES
from peftc.lang.scope import expressions, names_behind
from peftc.match.plan import Application, Plan


def merge_order(plan: Plan) -> tuple[Application, ...]:
    """The applications of a plan in the order in which they can be merged.

    In a graph, a rule that changes what goes into a product acts on all that is computed from it afterwards, and on
    the product itself: so it is merged behind the rules that follow it, and before those that precede it.

    Raises:
        MergeError: no order of changes of the weight stands for what the rules do together; names them.
    """
    places: dict[tuple[str, ...], list[Application]] = {}
    for application in plan.applications:
        # What trains alone, or changes the bias alone, stands for itself: what is shared is the matrix.
        path = application.site.weights.get("W", application.site.path)
        places.setdefault((path, str(application.site.rows)), []).append(application)
    return tuple(each for held in places.values() for each in ordered(plan, held))


def ordered(plan: Plan, held: list[Application]) -> list[Application]:
    """The applications at one place in their order."""
    inner = [changes_input(plan, each) for each in held]
    into = [each for each, is_inner in zip(held, inner, strict=True) if is_inner]
    others = [each for each, is_inner in zip(held, inner, strict=True) if not is_inner]
    if not into:
        chosen = held
    elif inner == sorted(inner):  # those that change the input come last
        chosen = [*reversed(into), *others]
    elif inner == sorted(inner, reverse=True):
        chosen = [*others, *reversed(into)]
    else:
        raise refusal(
            held, "some change what goes into the product, between others that change what comes out"
        )
    for at, application in enumerate(chosen):
        earlier = [each for each in chosen[:at] if "W" in plan.section(each).merge]
        if earlier and reads_weight(plan, application):
            raise refusal([*earlier, application], f"{application.rule} reads the weight as it came")
    return chosen


def changes_input(plan: Plan, application: Application) -> bool:
    """Whether an application changes what goes into a site, of what comes out of it."""
    ports = ROLES[application.site.role].ports
    return any(ports[port].kind == "operand" for port in plan.section(application).rewrite)


def reads_weight(plan: Plan, application: Application) -> bool:
    """Whether new values depend on the site's matrix."""
    found = expressions(plan.bound(application.rule).rule, plan.section(application))
    return any("W" in names_behind(found, "rewrite", port) for port in plan.section(application).rewrite)


def refusal(held: Iterable[Application], why: str) -> MergeError:
    """The error for rules that act together."""
    found: Mapping[str, Application] = {each.rule: each for each in held}
    last = list(found.values())[-1]
    return MergeError(
        f"{' and '.join(found)} cannot be merged together at {last.site.id}: {why}",
        hint="compile and merge them one after the other",
    )
