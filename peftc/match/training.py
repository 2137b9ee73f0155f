"""Which weights of the model a section trains at a site, and where it puts in zero ones instead. Makes no plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from peftc.analyse import Site
from peftc.lang import Constant, Section
from peftc.match.plan import Application, NewParameter

SHARED = "its weight is shared with other parts and cannot be trained alone"


@dataclass(frozen=True)
class Training:
    """What a section trains at one site.

    Attributes:
        trains: weight port → path of the parameter of the model.
        inserted: weight port → the zero parameter that is put in.
        reason: why the site is left out instead; nothing where it is not.
    """

    trains: Mapping[str, str] = field(default_factory=dict, hash=False)
    inserted: Mapping[str, NewParameter] = field(default_factory=dict, hash=False)
    reason: str = ""


def training(
    section: Section,
    site: Site,
    chosen: Sequence[Site],
    options: Mapping[str, Constant],
    home: Callable[[], str],
    root: nn.Module,
) -> Training:
    """What a section, which goes to the `chosen` sites, trains at one of them; `home` says where what it puts in lives.

    A weight that several parts share is trained if all of it is chosen. Else a zero bias is put in for the part, which
    is the same as training its share of the model's own.
    """
    trains: dict[str, str] = {}
    inserted: dict[str, NewParameter] = {}
    for port, told in section.train.items():
        policy = str(options[told.insert]) if told.insert else "never"
        there = port in site.weights
        alone = there and is_whole(port, site, chosen, root)
        if alone:
            trains[port] = site.weights[port]
            continue
        bare = not any(port in other.weights for other in chosen)
        if policy == "always" or (policy == "auto" and (bare or there)):
            if site.role != "linear" or port != "b":
                continue
            if site.stack:
                return Training(
                    reason=f"it is a stack of {site.stack}, which has no place for a {port} that is put in"
                )
            sizes = (site.sizes["d_out"],)
            inserted[port] = NewParameter(port, f"{home()}.{port}", ("d_out",), sizes, "zeros", {})
        elif there:
            return Training(reason=SHARED)
    return Training(trains, inserted)


def is_whole(port: str, site: Site, chosen: Sequence[Site], root: nn.Module) -> bool:
    """Whether all channels of a site's weight are those of sites that are chosen."""
    if site.rows is None or "d_out" not in site.axes(port):
        return True
    path, axis = site.weights[port], site.axes(port).index("d_out")
    of_path = [other for other in chosen if other.weights.get(port) == path]
    if any(other.rows is None for other in of_path):
        return True
    rows = {row for other in of_path for start, stop in other.rows or () for row in range(start, stop)}
    return len(rows) == root.get_parameter(path).shape[axis]


def trained_already(trains: Mapping[str, str], applications: Sequence[Application]) -> str:
    """The rule that trains all of some parameters; nothing if there is none."""
    paths = set(trains.values())
    taken = {path for each in applications for path in each.trains.values()}
    if not paths or not paths <= taken:
        return ""
    return next(each.rule for each in applications if paths & set(each.trains.values()))
