"""Proves what a section says of the weights that it keeps in fewer bits, and reads it with a user's options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peftc.errors import instead
from peftc.lang.axes import Constant
from peftc.lang.codes import fault
from peftc.lang.document import Option, Quantise, Rule, Section
from peftc.lang.formats import COMPUTE, FORMATS, Format, Packing
from peftc.lang.operations import Setting, setting_problem
from peftc.lang.roles import ROLES
from peftc.lang.source import Place

MATRIX = (
    "d_out",
    "d_in",
)  # the axes of a weight that products read; a table of rows is gathered from instead


def check_quantise(rule: Rule, section: Section) -> set[str]:
    """Raise RuleError for the first quantised weight that is wrong; the names of options that are read."""
    used = set[str]()
    for port, told in section.quantise.items():
        place = rule.source.place(*rule.keys(section), "quantise", port)
        for role in section.match.role:
            _check_port(place, port, role, section)
        formats = _formats(rule, place, told, used)
        for known in formats:
            _check_settings(rule, place, known, told)
        used |= {
            value for value in told.settings.values() if isinstance(value, str) and value in rule.options
        }
        _check_compute(rule, place, told, used)
    return used


def packing_of(told: Quantise, options: Mapping[str, Constant]) -> Packing:
    """How a weight is kept with these options. Proved, but for numbers that lie between those allowed."""

    def held(value: Constant) -> Constant:
        return options[value] if isinstance(value, str) and value in options else value

    name = str(held(told.format))
    given = {key: setting.default for key, setting in FORMATS[name].settings.items()}
    settings = {key: held(told.settings.get(key, default)) for key, default in given.items()}  # type: ignore[arg-type]
    return Packing(name, settings, "input" if told.compute is None else str(held(told.compute)))


def packing_problem(packing: Packing) -> str | None:
    """Why a setting cannot have its value, or None."""
    for key, setting in FORMATS[packing.format].settings.items():
        if problem := setting_problem(setting, packing.settings[key]):
            return f"{key} of {packing.format} {problem}"
    return None


def _check_port(place: Place, port: str, role: str, section: Section) -> None:
    ports = ROLES[role].ports
    fitting = [name for name, each in ports.items() if each.kind == "weight" and each.axes == MATRIX]
    if port not in fitting:
        message = f"{port!r} of {role} is no matrix that something is multiplied by"
        raise fault("R071", place, message, hint=instead(port, fitting))
    if port in section.train:
        message = f"{port!r} cannot be trained and be kept in fewer bits"
        raise fault("R071", place, message, hint="leave it under one of train and quantise")


def _formats(rule: Rule, place: Place, told: Quantise, used: set[str]) -> Iterable[Format]:
    """The formats that are meant: the one that is named, or all that an option can name."""
    names: tuple[str, ...] = (told.format,)
    option = rule.options.get(told.format)
    if option is not None:
        used.add(told.format)
        names = option.choices
        if not names:
            message = f"the option {told.format!r} has no choices, so it could name any format"
            raise fault("R072", place, message, hint=f"choices are among: {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            raise fault("R072", place, f"there is no number format {name!r}", hint=instead(name, FORMATS))
    return [FORMATS[name] for name in names]


def _check_settings(rule: Rule, place: Place, known: Format, told: Quantise) -> None:
    for key, value in told.settings.items():
        if key not in known.settings:
            message = f"{known.name} has no setting {key!r}"
            raise fault("R073", place, message, hint=instead(key, known.settings))
        setting = known.settings[key]
        option = rule.options.get(value) if isinstance(value, str) else None
        if option is not None:
            _check_option(place, known, key, setting, str(value), option)
        elif isinstance(value, str) and setting.kind != "choice":
            message = f"{key} of {known.name}: there is no option {value!r}"
            raise fault("R073", place, message, hint=instead(value, rule.options))
        elif problem := setting_problem(setting, value):
            raise fault("R073", place, f"{key} of {known.name} {problem}", hint=known.call)
    for key, setting in known.settings.items():
        if setting.default is None and key not in told.settings:
            raise fault("R073", place, f"{known.name} needs its setting {key!r}", hint=known.call)


def _check_option(place: Place, known: Format, key: str, setting: Setting, name: str, option: Option) -> None:
    """What an option starts as, and each of its choices, is what the setting can be; a number also at its limits."""
    limits = [option.min, option.max] if setting.kind == "number" else []
    for value in (option.default, *option.choices, *limits):
        problem = "needs limits" if value is None else setting_problem(setting, value)
        if problem:
            message = f"the option {name!r}, as {key} of {known.name}, {problem}"
            raise fault("R073", place, message, hint=known.call)


def _check_compute(rule: Rule, place: Place, told: Quantise, used: set[str]) -> None:
    if told.compute is None:
        return
    option = rule.options.get(told.compute)
    names = (told.compute,) if option is None else option.choices
    hint = f"there is: {', '.join(COMPUTE)}; or an option with some of them as choices"
    if option is not None:
        used.add(told.compute)
        if not names:
            message = (
                f"the option {told.compute!r} has no choices, and products are not computed in just anything"
            )
            raise fault("R073", place, message, hint=hint)
    for name in names:
        if name not in COMPUTE:
            raise fault("R073", place, f"products cannot be computed in {name!r}", hint=hint)
