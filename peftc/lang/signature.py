"""What a section calls the ports and axes of a role: the link between a rule's names and a site's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from peftc.lang.axes import ANY, Axes, show
from peftc.lang.document import Section
from peftc.lang.roles import CALL_AXES, ROLES


@dataclass(frozen=True)
class Signature:
    """The ports of one role with the axes that a section gives them.

    `sizes` says for each axis of the section which axis of the role it is, and has no axis that `*` stood
    for; the numbers of the role are among them. `moving` are the axes whose length changes from call to call.
    `stack` is the axis that every port has besides, at a site that is many matrices in one.
    """

    role: str
    ports: Mapping[str, Axes]
    sizes: Mapping[str, str]
    moving: frozenset[str]
    stack: str = ""

    def sizes_at(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes of the section's axes, from those of the role's axes; unknown ones are left out."""
        return {axis: sizes[named] for axis, named in self.sizes.items() if named in sizes}


def fit(axes: Axes, default: Axes) -> str | None:
    """Why a value of a port with axes `default` cannot be called `axes`, or None."""
    if default[:1] == (ANY,):
        named = default[1:]
        if len(axes) < len(named) or ANY in axes[len(axes) - len(named) :]:
            return f"{show(axes)} does not end in the axes of {show(default)}"
        return None
    if ANY in axes or len(axes) != len(default):
        return f"{show(axes)} is not as many axes as {show(default)}"
    return None


def signature(section: Section, role: str, stack: str = "") -> Signature:
    """What `section` calls the ports and axes of `role`. A value that does not fit its port is skipped.

    With a `stack`, a port whose leading axes have names is skipped too: its values are rows in no such order.
    """
    given = section.values()
    ports: dict[str, Axes] = {}
    sizes: dict[str, str] = {}
    moving: set[str] = set()
    for port in ROLES[role].ports.values():
        axes = given.get(port.name, port.axes)
        if fit(axes, port.axes):
            continue
        lifted = stacked(axes, stack, port.kind == "weight")
        if lifted is not None:
            ports[port.name] = lifted
        named = tuple(axis for axis in port.axes if axis != ANY)
        leading = axes[: len(axes) - len(named)]
        moving.update(axis for axis in leading if axis != ANY)
        for axis, default in zip(axes[len(leading) :], named, strict=True):
            sizes.setdefault(axis, default)
            if default in CALL_AXES:
                moving.add(axis)
    if stack:
        sizes[stack] = stack
    sizes = {number: number for number in ROLES[role].numbers} | sizes
    return Signature(role, MappingProxyType(ports), MappingProxyType(sizes), frozenset(moving), stack)


def stacked(axes: Axes, stack: str, is_weight: bool) -> Axes | None:
    """Axes with those of a stack: in front of a weight's, behind the `*` of a value; None where there is no `*`."""
    if not stack:
        return axes
    if is_weight:
        return (stack, *axes)
    return (ANY, stack, *axes[1:]) if axes[:1] == (ANY,) else None
