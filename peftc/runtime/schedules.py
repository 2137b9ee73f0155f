"""Carries out the schedules of a plan, all together, between two steps of the optimiser."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftc.errors import ScheduleError, instead
from peftc.lang import Bound, Constant
from peftc.lang.document import Schedule
from peftc.lang.operations import Setting, setting_problem
from peftc.lang.policies import POLICIES
from peftc.match.plan import Application, Plan
from peftc.runtime.policies import Running


@dataclass(frozen=True)
class Scheduled:
    """One schedule of one section: its policy by name and at work, and at each site the paths of its parameters."""

    rule: str
    name: str
    word: str
    policy: Running
    sites: tuple[Mapping[str, str], ...]

    @property
    def sets(self) -> Mapping[str, Setting]:
        """What a person can set of it."""
        return POLICIES[self.word].sets


class Schedules:
    """The schedules of a plan. Holds no parameter: each update is told the module, so copies stay apart.

    Raises:
        ScheduleError: settings that do not go together.
    """

    def __init__(self, plan: Plan) -> None:
        groups: dict[tuple[str, int], list[Application]] = {}
        for application in plan.applications:
            number = application.section
            if not plan.is_kept(application) and not plan.bound(application.rule).is_narrowed(
                number
            ):  # what a policy knows of entries is of the old ones
                groups.setdefault((application.rule, number), []).append(application)
        self.scheduled = tuple(
            scheduled(plan.bound(label), number, name, told, found)
            for (label, number), found in groups.items()
            for name, told in plan.bound(label).rule.sections[number].schedule.items()
        )

    def update(self, root: nn.Module, step: int, total: int) -> None:
        """Change the parameters of `root`, `step` of `total` steps of the optimiser having been taken.

        Raises:
            ScheduleError: the steps are too few, or gradients are missing; then nothing has changed.
        """
        if not 0 <= step <= total:
            raise ScheduleError(f"step {step} is none of {total} steps")
        with torch.no_grad():
            for each in self.scheduled:
                each.policy.update([targets_of(root, site) for site in each.sites], step, total)

    def set(self, root: nn.Module, rule: str | None, values: Mapping[str, Constant]) -> None:
        """Set what a person can set of schedules, of one rule or of all that have it.

        Raises:
            ScheduleError: no schedule has it, or it cannot have this value; then nothing has changed.
        """
        asked = [each for each in self.scheduled if rule is None or each.rule == rule]
        if rule is not None and not asked:
            message = f"{rule} has no schedule here"
            raise ScheduleError(message, hint=instead(rule, {each.rule for each in self.scheduled}))
        for name, value in values.items():
            having = [each for each in asked if name in each.sets]
            if not having:
                known = {setting for each in asked for setting in each.sets}
                raise ScheduleError(f"no schedule here has {name!r} to set", hint=instead(name, known))
            setting = having[0].sets[name]
            if problem := setting_problem(setting, value):
                raise ScheduleError(f"{name} of {having[0].rule} {problem}", hint=setting.doc)
        with torch.no_grad():
            for each in asked:
                own = {name: value for name, value in values.items() if name in each.sets}
                if own:
                    each.policy.set([targets_of(root, site) for site in each.sites], own)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next updates depend on, besides the parameters, by name."""
        return {
            f"{each.name}.{key}": tensor
            for each in self.scheduled
            for key, tensor in each.policy.state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `state_dict` gave."""
        for each in self.scheduled:
            prefix = f"{each.name}."
            own = {key.removeprefix(prefix): held for key, held in state.items() if key.startswith(prefix)}
            each.policy.state = {key: tensor.to(device).clone() for key, tensor in own.items()}


def scheduled(
    bound: Bound, number: int, name: str, told: Schedule, found: Sequence[Application]
) -> Scheduled:
    """One schedule, with the sites of its section; what sites share comes once."""
    section, policy = bound.rule.sections[number], POLICIES[told.policy]
    sites: dict[tuple[str, ...], tuple[Mapping[str, str], int | None]] = {}
    for application in found:
        places = {each.name: each for each in application.parameters}
        chosen = {target: places[parameter] for target, parameter in told.parameters.items()}
        key = tuple(each.shared or each.path for each in chosen.values())
        paths = {target: each.path for target, each in chosen.items()}
        sites.setdefault(key, (paths, application.site.layer))
    settings: dict[str, Constant] = {
        key: setting.default for key, setting in policy.settings.items() if setting.default is not None
    }
    for setting, value in told.settings.items():
        is_option = isinstance(value, str) and value in bound.options
        settings[setting] = bound.options[str(value)] if is_option else value
    axes = {target: section.parameters[own].named for target, own in told.parameters.items()}
    space, _, kind = policy.runs.rpartition(".")
    make = getattr(importlib.import_module(space), kind)
    layers = [layer for _, layer in sites.values()]
    running: Running = make(settings, layers, axes)
    where = tuple(held for held, _ in sites.values())
    return Scheduled(bound.label, f"{bound.label}.{number}.{name}", told.policy, running, where)


def targets_of(root: nn.Module, paths: Mapping[str, str]) -> dict[str, Tensor]:
    """The parameters at some paths."""
    return {target: root.get_parameter(path) for target, path in paths.items()}
