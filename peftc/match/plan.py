"""The plan: pure data that says what will be done to a model. It can be compared, hashed and saved."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from peftc.analyse.site import Site
from peftc.lang import Bound, Constant, Packing, Section
from peftc.quantised import weight

HOME = weight.HOME  # the submodule of a site's owner that holds what rules add to it
ADAPTER = "default"  # the name of a compiled module's first adapter


@dataclass(frozen=True)
class NewParameter:
    """A tensor that a rule adds.

    Attributes:
        name: its name in the rule.
        path: its path in the model.
        axes, shape: its axes, and their sizes.
        law, settings: how it starts; `law` is an expression where the value is `computed`.
        data: ports whose values on the user's data the expression reads.
        stacked: whether its first axis is that of a stack of matrices, each of which starts by itself.
        saved: what it is called in the saved adapters that it is read from, one behind the other; "" for none.
        dtype: its dtype by name; None for that of the model around it.
        trainable: whether it trains.
        shared: what tells the tensor apart from others; those of one word are one tensor. Its path if alone.
        seed: what it is drawn with; None for torch's own generator.
        lr: the factor on the learning rate.
    """

    name: str
    path: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    law: str
    settings: Mapping[str, float] = field(hash=False)
    dtype: str | None = None
    trainable: bool = True
    shared: str = ""
    seed: int | None = None
    computed: bool = False
    data: tuple[str, ...] = ()
    stacked: bool = False
    lr: float = 1.0
    saved: str = ""

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


Place: TypeAlias = tuple[str, int, str]
"""(label, number of the section, id of the site) of an application."""


@dataclass(frozen=True)
class Application:
    """One section of one rule at one site.

    Attributes:
        rule: label of the rule in this plan.
        section: 0 for the rule's own section, then those under `also`.
        site: where.
        parameters: what is added.
        trains: weight port → path of a parameter of the model that becomes trainable.
        inserted: weight port → name of the added zero parameter that stands in for a missing one.
        quantises: weight port → how the weight is kept from now on.
        options: options of the rule that have another value at this site.
    """

    rule: str
    section: int
    site: Site
    parameters: tuple[NewParameter, ...] = ()
    trains: Mapping[str, str] = field(default_factory=dict, hash=False)
    inserted: Mapping[str, str] = field(default_factory=dict, hash=False)
    quantises: Mapping[str, Packing] = field(default_factory=dict, hash=False)
    options: Mapping[str, Constant] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> Place:
        """What tells it apart from the others of a plan."""
        return self.rule, self.section, self.site.id


@dataclass(frozen=True)
class Skip:
    """A site that a section of a rule leaves out, and why."""

    rule: str
    site: Site
    reason: str
    section: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything that compiling will do.

    Attributes:
        rules: the rules in the order in which they act.
        sites: every site of the model.
        applications, skips: what each rule does with each site of its roles.
        sizes: parameter path → number of elements, of the model as it came.
        unread: parameters of the model that no output depends on.
        notes: what else a person should know, a line each.
    """

    rules: tuple[Bound, ...]
    sites: tuple[Site, ...]
    applications: tuple[Application, ...]
    skips: tuple[Skip, ...]
    sizes: Mapping[str, int] = field(hash=False)
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def bound(self, label: str) -> Bound:
        """The rule of a label."""
        return next(bound for bound in self.rules if bound.label == label)

    def section(self, application: Application) -> Section:
        """The section of its rule that an application puts in."""
        return self.bound(application.rule).rule.sections[application.section]

    def options(self, application: Application) -> dict[str, Constant]:
        """Every option of its rule, as it is at an application's site."""
        return {**self.bound(application.rule).options, **application.options}

    def of(self, label: str) -> Iterator[Application]:
        """The applications of one rule."""
        return (application for application in self.applications if application.rule == label)

    @cached_property
    def new_parameters(self) -> tuple[NewParameter, ...]:
        """Every parameter that is added, at each of its places."""
        return tuple(parameter for application in self.applications for parameter in application.parameters)

    @property
    def new_tensors(self) -> tuple[NewParameter, ...]:
        """Every parameter that is added, shared ones once."""
        return tuple({each.shared or each.path: each for each in reversed(self.new_parameters)}.values())[
            ::-1
        ]

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Paths of the model's own parameters that become trainable, each once."""
        return tuple(dict.fromkeys(path for each in self.applications for path in each.trains.values()))

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Those of them that trained before, for a rule that is kept, and do not any more."""
        trains = {
            path for each in self.applications if not self.is_kept(each) for path in each.trains.values()
        }
        return tuple(path for path in self.trained if path not in trains)

    def is_kept(self, application: Application) -> bool:
        """Whether an application is of a rule that was trained before and stays as it is."""
        return self.bound(application.rule).kept

    @cached_property
    def quantised(self) -> Mapping[str, tuple[Packing, bool]]:
        """Path → how it is kept, and whether it is stored as [d_in d_out], of the weights that are quantised."""
        return {
            each.site.weights[port]: (packing, bool(each.site.stored.get(port)))
            for each in self.applications
            for port, packing in each.quantises.items()
        }

    @property
    def trainable_count(self) -> int:
        """Number of trainable elements."""
        new = sum(parameter.count for parameter in self.new_tensors if parameter.trainable)
        return new + sum(self.sizes[path] for path in self.trained if path not in self.kept)

    @property
    def total_count(self) -> int:
        """Number of elements of the compiled model."""
        return sum(self.sizes.values()) + sum(parameter.count for parameter in self.new_tensors)

    @property
    def content(self) -> dict[str, Any]:
        """What the plan does, as JSON can hold it."""
        return {
            "rules": [rule_content(bound) for bound in self.rules],
            "applications": [
                {
                    "rule": each.rule,
                    "section": each.section,
                    "role": each.site.role,
                    "site": each.site.id,
                    "sizes": dict(each.site.sizes),
                    "parameters": {parameter.path: list(parameter.shape) for parameter in each.parameters},
                    "trains": {path: self.sizes[path] for path in each.trains.values()},
                    **({"options": dict(each.options)} if each.options else {}),
                }
                for each in self.applications
            ],
        }

    @property
    def digest(self) -> str:
        """A hash of what the plan does: equal digests fit the same adapter tensors."""
        return digest_of(self.content)


def rule_content(bound: Bound) -> dict[str, Any]:
    """What of a rule is part of what a plan does."""
    kept = {"kept": True} if bound.kept else {}
    return {"label": bound.label, "rule": bound.rule.digest, "options": dict(bound.options), **kept}


def digest_of(content: Mapping[str, Any]) -> str:
    """The digest of a plan with this content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
