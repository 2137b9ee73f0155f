"""What rules fold: bindings that no call changes, computed once for evaluation and kept beside their parameters.

They are computed again when a parameter behind them has changed in any way that torch counts or shows: written in
place, moved, cast or replaced. So folding never changes a result, and nothing needs to be undone before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from peftc.lang import Axes, Parameter, Scope, Term, behind_fold, signature
from peftc.match.plan import Application, Place, Plan
from peftc.quantised import weight_at
from peftc.rewrite.eager import EagerBackend

Owner = tuple[nn.Module, str]
"""A module, and what it calls a parameter."""


@dataclass
class Folds:
    """The folded bindings of one compiled module.

    Attributes:
        root: the compiled module; the values are buffers in it that are not saved.
        terms: place of an application → name of a binding → its axes and the path of its value.
    """

    root: nn.Module
    plan: Plan
    terms: dict[Place, dict[str, tuple[Axes, str]]] = field(default_factory=dict)
    owners: list[Owner] = field(default_factory=list)
    seen: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self.places = [each for each in self.plan.applications if self.plan.section(each).fold]

    def __bool__(self) -> bool:
        """Whether any rule folds anything."""
        return bool(self.places)

    def ready(self) -> bool:
        """Whether the values are what the parameters make now, after computing them again if they were not.

        False where the parameters are no plain tensors, as when they are sharded: then nothing is folded.
        """
        if not self.owners:
            self.owners = list(self.found())
        seen = states(self.owners)
        if seen is None:
            return False
        if seen != self.seen:
            self.compute()
            self.seen = seen
        return True

    def found(self) -> Iterator[Owner]:
        """The parameters behind all folded bindings, each once."""
        taken: set[int] = set()
        for application in self.places:
            bound, section = self.plan.bound(application.rule), self.plan.section(application)
            behind = behind_fold(bound.rule, section)
            for parameter in application.parameters:
                owner, _, name = parameter.path.rpartition(".")
                module = self.root.get_submodule(owner)
                if parameter.name in behind and id(getattr(module, name)) not in taken:
                    taken.add(id(getattr(module, name)))
                    yield module, name

    def compute(self) -> None:
        """Compute every value and put it in its place."""
        with torch.inference_mode(mode=False), torch.no_grad():
            for application in self.places:
                self.terms[application.place] = dict(self.folded(application))

    def folded(self, application: Application) -> Iterator[tuple[str, tuple[Axes, str]]]:
        """The values of one section at one site."""
        bound, section, site = (
            self.plan.bound(application.rule),
            self.plan.section(application),
            application.site,
        )
        own = {each.name: each for each in application.parameters}
        owner = application.parameters[0].path.rpartition(".")[0]

        def read(name: str, _: Parameter, __: tuple[int, ...]) -> Term:
            return Term(own[name].axes, weight_at(self.root, own[name].path))

        sizes = signature(section, site.role, site.stack).sizes_at(site.sizes)
        scope = Scope(
            bound.rule,
            self.plan.options(application),
            {axis: Term((), size) for axis, size in sizes.items()},
            EagerBackend(),
            read,
            section=section,
            stack=site.stack,
        )
        for name in section.fold:
            term = scope.binding(name)
            assert isinstance(term.held, Tensor)
            self.root.get_submodule(owner).register_buffer(name, term.held.detach(), persistent=False)
            yield name, (term.axes, f"{owner}.{name}")


def states(owners: list[Owner]) -> tuple[object, ...] | None:
    """What would be another if a parameter had changed; None where one is no plain tensor."""
    device = getattr(*owners[0]).device.type
    found: list[object] = [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
    for module, name in owners:
        held = module._parameters.get(name)  # noqa: SLF001 - its public twin is slower than what is saved here
        if type(held) is not nn.Parameter:  # a shard of one is of another type
            return None
        version = 0 if held.is_inference() else held._version  # noqa: SLF001 - torch has no public name for it
        found += (id(held), held.data_ptr(), version, held.dtype)
    return tuple(found)
