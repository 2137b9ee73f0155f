"""Proves what a section says of training: its terms of the loss and its schedules. Makes nothing."""

from __future__ import annotations

from peftc.errors import instead
from peftc.lang.axes import AxesError
from peftc.lang.codes import fault
from peftc.lang.document import Parameter, Rule, Schedule, Section
from peftc.lang.operations import Setting, setting_problem
from peftc.lang.policies import POLICIES, Policy
from peftc.lang.roles import ROLES
from peftc.lang.scope import expressions, names_behind
from peftc.lang.source import Place


def check_training(rule: Rule, section: Section) -> set[str]:
    """Raise RuleError for the first loss or schedule that is wrong; the names of options that they read."""
    return {*_check_losses(rule, section), *_check_schedules(rule, section)}


def _check_losses(rule: Rule, section: Section) -> set[str]:
    if not section.loss:
        return set()
    found, used = expressions(rule, section), set[str]()
    moving = {
        port.name
        for role in section.match.role
        for port in ROLES[role].ports.values()
        if port.kind != "weight"
    }
    for name, term in section.loss.items():
        place = rule.source.place(*rule.keys(section), "loss", name, "value")
        if behind := sorted(names_behind(found, "loss", name) & moving):
            message = f"the loss {name!r} depends on {behind[0]!r}, which changes from call to call"
            hint = "it can read parameters, weights and options"
            raise fault("R057", place, message, text=term.value, hint=hint)
        if isinstance(term.weight, str):
            option = rule.options.get(term.weight)
            if option is None or type(option.default) not in (int, float):
                place = rule.source.place(*rule.keys(section), "loss", name, "weight")
                message = f"weight = {term.weight!r}: there is no option {term.weight!r} that is a number"
                raise fault("R057", place, message, hint=instead(term.weight, rule.options))
            used.add(term.weight)
    return used


def _check_schedules(rule: Rule, section: Section) -> set[str]:
    used = set[str]()
    written: dict[str, str] = {}
    for name, schedule in section.schedule.items():
        keys = (*rule.keys(section), "schedule", name)
        if schedule.policy not in POLICIES:
            message = f"there is no policy {schedule.policy!r}"
            raise fault(
                "R058", rule.source.place(*keys, "policy"), message, hint=instead(schedule.policy, POLICIES)
            )
        policy = POLICIES[schedule.policy]
        place = rule.source.place(*keys, "parameters")
        _check_targets(place, policy, schedule, section)
        for parameter in schedule.parameters.values():
            if other := written.get(parameter):
                message = f"{other!r} and {name!r} both change the parameter {parameter!r}"
                raise fault("R059", place, message)
            written[parameter] = name
        used |= _check_settings(rule, rule.source.place(*keys, "settings"), policy, schedule)
    return used


def _check_targets(place: Place, policy: Policy, schedule: Schedule, section: Section) -> None:
    for target, name in schedule.parameters.items():
        if target not in policy.takes:
            message = f"{policy.name} takes no {target!r}"
            raise fault("R059", place, message, hint=instead(target, policy.takes))
        if name not in section.parameters:
            message = f"there is no parameter {name!r} here"
            raise fault("R059", place, message, hint=instead(name, section.parameters))
        _check_trained(place, policy, target, name, section.parameters[name])
    if missing := [target for target in policy.takes if target not in schedule.parameters]:
        raise fault("R059", place, f"{policy.name} needs its {missing[0]!r}", hint=policy.call)
    try:
        policy.axes({target: section.parameters[name].named for target, name in schedule.parameters.items()})
    except AxesError as error:
        raise fault("R059", place, f"{policy.name}: {error}") from None


def _check_trained(place: Place, policy: Policy, target: str, name: str, parameter: Parameter) -> None:
    if parameter.trainable != policy.takes[target].trainable:
        must = "train" if policy.takes[target].trainable else "have trainable = false"
        raise fault("R059", place, f"{name!r} must {must}, as the {target} of {policy.name}")


def _check_settings(rule: Rule, place: Place, policy: Policy, schedule: Schedule) -> set[str]:
    used = set[str]()
    for key, value in schedule.settings.items():
        if key not in policy.settings:
            message = f"{policy.name} has no setting {key!r}"
            raise fault("R059", place, message, hint=instead(key, policy.settings))
        setting = policy.settings[key]
        if isinstance(value, str) and value in rule.options:
            used.add(value)
            _check_option(rule, place, policy, key, value)
        elif isinstance(value, str) and setting.kind == "number":
            message = f"{key} of {policy.name}: there is no option {value!r}"
            raise fault("R059", place, message, hint=instead(value, rule.options))
        elif problem := setting_problem(setting, value):
            raise fault("R059", place, f"{key} of {policy.name} {problem}")
    for key, setting in policy.settings.items():
        if setting.default is None and key not in schedule.settings:
            raise fault("R059", place, f"{policy.name} needs its setting {key!r}", hint=policy.call)
    return used


def _check_option(rule: Rule, place: Place, policy: Policy, key: str, name: str) -> None:
    """Every value that an option can have is one that the setting can have."""
    option, setting = rule.options[name], policy.settings[key]
    if setting.kind == "number":
        if setting_problem(Setting("number"), option.default):
            raise fault("R059", place, f"{key} of {policy.name} is a number, the option {name!r} is none")
        for limit, bound in (("min", setting.min), ("max", setting.max)):
            own = getattr(option, limit)
            if bound is not None and (own is None or (own < bound if limit == "min" else own > bound)):
                message = (
                    f"{key} of {policy.name} has {limit} {bound:g}, so the option {name!r} needs one too"
                )
                raise fault("R059", place, message)
    elif not option.choices or not set(option.choices) <= set(setting.choices):
        said = ", ".join(setting.choices)
        raise fault("R059", place, f"{key} of {policy.name} is one of {said}; {name!r} can be something else")
