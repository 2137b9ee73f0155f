"""Proves a rule before any model exists: names, axes, sizes, ports, parameters. Makes nothing.

`check(rule)` raises the first RuleError. The walk is the one that rewrites graphs; its backend here keeps,
for each axis, only what its length is called. Longer than most files here: one list of proofs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

from peftc.errors import UnknownRuleError, instead
from peftc.lang.axes import AxesError, Constant, Term, read_axes, read_dimensions
from peftc.lang.codes import fault
from peftc.lang.composite import Finder, flattened
from peftc.lang.condition import conditions
from peftc.lang.document import Option, Parameter, Rule, Section
from peftc.lang.expression import Expression, is_name
from peftc.lang.folding import check_fold
from peftc.lang.gates import prove_gates
from peftc.lang.growing import grows_in_front
from peftc.lang.initial import LAWS, known_initial
from peftc.lang.lengths import defaults, lengths_of, proving_scope
from peftc.lang.limits import PROOF, SECTIONS
from peftc.lang.operations import OPERATIONS
from peftc.lang.quantising import check_quantise
from peftc.lang.results import same
from peftc.lang.roles import ROLES, SCOPES, known_words
from peftc.lang.scope import expressions, names_behind
from peftc.lang.signature import Signature, fit, signature
from peftc.lang.sizes import WIDEST, calls, canonical, names_of
from peftc.lang.source import Key, Place
from peftc.lang.training import check_training

IDLE = "read it where it acts, or take it out"
INSERTS = frozenset({"never", "auto", "always"})


def no_library(name: str, _trail: tuple[str, ...]) -> Rule:
    """Finds no rule: what is stored or sent alone stands for itself."""
    raise UnknownRuleError(f"there is no library here in which {name!r} could be looked up")


def check(rule: Rule, find: Finder = no_library, trail: tuple[str, ...] = ()) -> Rule:
    """`rule` proved: itself, or what it is flattened to if it has `use` or `define`. Raises RuleError.

    Args:
        find: the library in which used rules are looked up.
        trail: names of the composites that it is being put together for, and its own.
    """
    _check_options(rule)
    rule = flattened(rule, find, trail)
    _check_head(rule)
    _check_options(rule)
    used: set[str] = set()
    for section in rule.sections:
        used |= _SectionCheck(rule, section).run()
    for name in rule.options:
        if name not in used:
            raise fault(
                "R036", rule.source.place("options", name), f"the option {name!r} is never used", hint=IDLE
            )
    return rule


def _check_head(rule: Rule) -> None:
    if rule.shorthand is not None and rule.shorthand != "part" and rule.shorthand not in rule.options:
        hint = instead(rule.shorthand, ["part", *rule.options])
        raise fault(
            "R022", rule.source.place("shorthand"), f"there is no option {rule.shorthand!r}", hint=hint
        )
    for key, names in (("before", rule.before), ("after", rule.after), ("conflicts", rule.conflicts)):
        if rule.name in names:
            raise fault(
                "R046",
                rule.source.place(key),
                f"{rule.name} cannot be ordered against itself",
                hint="take its own name out",
            )
    if len(rule.also) > SECTIONS:
        raise fault("R012", rule.source.place("also"), f"a rule has at most {SECTIONS} more sections")
    if both := set(rule.before) & set(rule.after):
        raise fault(
            "R046",
            rule.source.place("before"),
            f"{min(both)} is under before and after",
            hint="leave it under one of them",
        )


def _check_options(rule: Rule) -> None:
    for name, option in rule.options.items():
        place = rule.source.place("options", name)
        if not is_name(name) or name in ("part", "layers", "path", "sites", "rule", "label"):
            raise fault("R020", place, f"{name!r} cannot name an option: the word is taken")
        numeric = isinstance(option.default, (int, float)) and not isinstance(option.default, bool)
        if not numeric and (option.min is not None or option.max is not None):
            raise fault("R021", place, "min and max are for numbers")
        if option.choices and not isinstance(option.default, str):
            raise fault("R021", place, "choices are for texts")
        if problem := option.problem(option.default):
            raise fault("R021", place, f"the default {problem}")
        if option.min is not None and option.max is not None and option.min > option.max:
            raise fault("R021", place, f"min {option.min} is above max {option.max}")


def chosen_freely(options: Mapping[str, Option], read: Iterable[Expression]) -> set[str]:
    """Options that do nothing but choose a setting of operations whose axes do not depend on it, every choice of
    theirs among the setting's: what is right with one of them is right with all.
    """
    free = {name for name, option in options.items() if option.choices}
    for expression in read:
        settled = [
            keyword.value
            for call in expression.nodes
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            for keyword in call.keywords
            if isinstance(keyword.value, ast.Name)
            and keyword.value.id in free
            and (operation := OPERATIONS.get(call.func.id)) is not None
            and operation.axes is same
            and (setting := operation.settings.get(keyword.arg or "")) is not None
            and setting.kind == "choice"
            and set(options[keyword.value.id].choices) <= set(setting.choices)
        ]
        free -= {
            node.id
            for node in expression.nodes
            if isinstance(node, ast.Name) and not any(node is each for each in settled)
        }
    return free


class _SectionCheck:
    """The proofs of one section."""

    def __init__(self, rule: Rule, section: Section) -> None:
        self.rule = rule
        self.section = section
        self.used: set[str] = set()

    def run(self) -> set[str]:
        """Check everything; the names that were read come back."""
        self._check_match()
        self._check_values()
        signatures = [signature(self.section, role) for role in self.section.match.role]
        self._check_names(signatures)
        self._check_parameters(signatures)
        self._check_where(signatures)
        self._check_ports()
        self._check_train()
        self.used |= check_training(self.rule, self.section)
        self.used |= check_quantise(self.rule, self.section)
        check_fold(self.rule, self.section, signatures)
        read = expressions(self.rule, self.section).values()
        named = {name for expression in read for name in expression.names}
        variants = list(self._variants(named - chosen_freely(self.rule.options, read)))
        walked = len(signatures) * len(variants) * sum(len(expression.text) for expression in read)
        if walked > PROOF:
            message = (
                f"proving this would walk {walked} characters, over each role and choice; {PROOF} are allowed"
            )
            raise fault("R012", self._place("match"), message)
        for role in signatures:
            for options in variants:
                self._evaluate(role, options)
        self._check_used()
        return self.used

    def _place(self, *keys: Key) -> Place:
        return self.rule.source.place(*self.rule.keys(self.section), *keys)

    def _check_match(self) -> None:
        match = self.section.match
        if not match.role:
            raise fault("R023", self._place("match", "role"), "a match needs a role", hint=instead("", ROLES))
        for position, role in enumerate(match.role):
            if role in match.role[:position]:
                raise fault("R023", self._place("match", "role"), f"the role {role!r} is named twice")
            if role not in ROLES:
                message = f"there is no role {role!r}"
                raise fault("R023", self._place("match", "role"), message, hint=instead(role, ROLES))
        words = known_words(match.role)
        for part in match.part:
            scope, dot, _ = part.rpartition(".")
            if dot and scope not in SCOPES:
                message = f"there is no scope {scope!r}"
                raise fault("R024", self._place("match", "part"), message, hint=instead(scope, SCOPES))
            if part.rpartition(".")[2] not in words:
                has = "has" if len(match.role) == 1 else "have"
                message = f"{' and '.join(match.role)} {has} no part {part!r}"
                raise fault("R024", self._place("match", "part"), message, hint=instead(part, words))
        if not (
            self.section.rewrite or self.section.train or (self.section.quantise and not self.section.merge)
        ):
            key = "merge" if self.section.merge else "match"
            code = "R041" if self.section.merge else "R044"
            message = (
                "a merge needs the rewrite that it stands for"
                if self.section.merge
                else "nothing is done here"
            )
            raise fault(code, self._place(key), message, hint="there is: rewrite, train, quantise")

    def _check_values(self) -> None:
        for port, text in self.section.match.values.items():
            place = self._place("match", "values", port)
            for role in self.section.match.role:
                if port not in ROLES[role].ports:
                    message = f"{role} has no port {port!r}"
                    raise fault("R025", place, message, hint=instead(port, ROLES[role].ports))
                try:
                    problem = fit(read_axes(text), ROLES[role].ports[port].axes)
                except AxesError as error:
                    raise fault("R010", place, str(error), text=text) from None
                if problem:
                    raise fault("R026", place, f"{port} of {role}: {problem}", text=text)

    def _check_names(self, signatures: list[Signature]) -> None:
        taken = dict.fromkeys(self.rule.options, "an option")
        axes = {axis for role in signatures for axis in role.sizes}
        ports = {port for role in signatures for port in role.ports}
        named = (
            *((axis, "an axis", ("match", "values")) for axis in sorted(axes)),
            *((port, "a port", ("match", "values")) for port in sorted(ports)),
            *((name, "a parameter", ("parameters", name)) for name in self.section.parameters),
            *((name, "a binding", ("let", name)) for name in self.section.let),
            *((name, "a loss", ("loss", name)) for name in self.section.loss),
            *((name, "a schedule", ("schedule", name)) for name in self.section.schedule),
        )
        for name, what, keys in named:
            if name in taken:
                raise fault("R020", self._place(*keys), f"{name!r} is {taken[name]} and {what}")
            if not is_name(name):
                raise fault(
                    "R020", self._place(*keys), f"{name!r} cannot be a name: a word of Python, or with __"
                )
            taken[name] = what

    def _check_parameters(self, signatures: list[Signature]) -> None:
        for name, parameter in self.section.parameters.items():  # all of them before any that reads another
            try:
                read_dimensions(parameter.axes)
            except AxesError as error:
                place = self._place("parameters", name)
                raise fault("R010", place, str(error), text=parameter.axes) from None
        for name, parameter in self.section.parameters.items():
            place = self._place("parameters", name)
            for dimension in parameter.dimensions:
                for size in names_of(dimension.size):
                    self._check_size(place, parameter, dimension.axis, size, signatures)
                self._check_widest(place, parameter, dimension.size)
            if isinstance(parameter.seed, str):
                self._check_seed(place, parameter.seed)
            self._check_rate(self._place("parameters", name, "lr"), parameter)
            initial = known_initial(parameter.init, place, len(parameter.dimensions))
            if initial.saved:
                self._check_saved(place, name, parameter)
            if initial.expression is not None:
                self._check_start_reads(name, parameter)
            for key, value in initial.settings:
                if isinstance(value, str):
                    self._check_law_option(place, parameter, key, value)

    def _check_size(
        self, place: Place, parameter: Parameter, axis: str, size: str, signatures: list[Signature]
    ) -> None:
        option = self.rule.options.get(size)
        if option is not None:
            self.used.add(size)
            if type(option.default) is not int or option.min is None or option.min < 1:
                message = f"the option {size!r} is a size, so it must be a whole number with min = 1 or more"
                raise fault("R032", place, message, text=parameter.axes)
            return
        for role in signatures:
            known = sorted({*role.sizes, *self._whole_options()} - role.moving)
            if size in role.moving:
                message = f"the length of {size!r} changes from call to call; write {axis}=SIZE"
                raise fault("R033", place, message, text=parameter.axes, hint=instead(size, known))
            if size not in role.sizes:
                message = (
                    f"the axis {axis!r} has no size: {size!r} is neither an option nor an axis of a value"
                )
                raise fault("R032", place, message, text=parameter.axes, hint=instead(size, known))

    def _check_widest(self, place: Place, parameter: Parameter, size: str | int) -> None:
        """The largest of several sites is asked for where several share a parameter."""
        for name, (word, *_) in calls(size):
            if name == WIDEST and parameter.share == "site":
                message = (
                    f"'{WIDEST}' is a size among sites that share a parameter, and this one is a site's own"
                )
                hint = 'there is: share = "layer", share = "scope", share = "model"'
                raise fault("R032", place, message, text=parameter.axes, hint=hint)
            if name == WIDEST and (word in self.rule.options or word.isdigit()):
                message = f"'{WIDEST}' takes an axis of a value, and {word!r} is none"
                raise fault("R032", place, message, text=parameter.axes)

    def _check_saved(self, place: Place, name: str, parameter: Parameter) -> None:
        """One option of the rule counts the adapters, for all parameters that are read from them."""
        first = parameter.dimensions[0]
        if first.size not in self.rule.options:
            message = f"the first axis of {name!r} counts saved adapters, so its size must be an option"
            raise fault("R061", place, message, text=parameter.axes, hint=instead("", self._whole_options()))
        counts = {made.dimensions[0].size for made in self.section.parameters.values() if made.initial.saved}
        if len(counts) > 1:
            message = f"saved adapters are counted by {' and '.join(map(repr, sorted(map(str, counts))))}"
            raise fault("R061", place, message, text=parameter.axes)
        if parameter.seed is not None:
            raise fault(
                "R060", self._place("parameters", name, "seed"), f"nothing of {name} is drawn: no seed"
            )

    def _check_start_reads(self, name: str, parameter: Parameter) -> None:
        """What an initial value depends on is there when it is computed, once for each parameter."""
        place = self._place("parameters", name, "init")
        tree = parameter.initial.expression.tree if parameter.initial.expression else None
        known = {*self.rule.options, *self.section.parameters, *self.section.let}
        known = known.union(*(ROLES[role].ports for role in self.section.match.role))
        if isinstance(tree, ast.Name) and tree.id not in known:
            message = f"there is no initial law {tree.id!r}, and nothing here is called so"
            raise fault("R011", place, message, text=parameter.init, hint=instead(tree.id, {*LAWS, *known}))
        behind = names_behind(expressions(self.rule, self.section), "parameters", name)
        above = list(self.section.parameters)[: list(self.section.parameters).index(name)]
        if later := sorted(behind & ({*self.section.parameters} - {*above})):
            message = f"{name} cannot start from {later[0]!r}, which is not above it"
            raise fault(
                "R060", place, message, text=parameter.init, hint=f"there is: {', '.join(above) or 'none'}"
            )
        ports = [port for role in self.section.match.role for port in ROLES[role].ports.values()]
        at_site = sorted({port.name for port in ports} & behind)
        if absent := [
            port.name
            for port in ports
            if port.name in behind and port.optional and port.kind not in ("weight", "value")
        ]:
            raise fault(
                "R060",
                place,
                f"{name} cannot start from {absent[0]!r}: it may be absent",
                text=parameter.init,
            )
        if at_site and parameter.share != "site":
            message = (
                f"{name} is one for each {parameter.share}, but {at_site[0]!r} differs from site to site"
            )
            raise fault("R060", place, message, text=parameter.init)
        if parameter.seed is not None:
            raise fault(
                "R060", self._place("parameters", name, "seed"), f"nothing of {name} is drawn: no seed"
            )

    def _whole_options(self) -> list[str]:
        return [name for name, option in self.rule.options.items() if type(option.default) is int]

    def _check_seed(self, place: Place, seed: str) -> None:
        option = self.rule.options.get(seed)
        if option is None or type(option.default) is not int or option.min is None or option.min < 0:
            message = f"seed = {seed!r}: there is no such option that is a whole number with min = 0 or more"
            raise fault("R028", place, message, hint=instead(seed, self._whole_options()))
        self.used.add(seed)

    def _check_rate(self, place: Place, parameter: Parameter) -> None:
        if not parameter.trainable and parameter.lr != 1.0:
            raise fault("R064", place, f"lr = {parameter.lr!r}: a frozen parameter has no learning rate")
        if isinstance(parameter.lr, str):
            option = self.rule.options.get(parameter.lr)
            if (
                option is None
                or type(option.default) not in (int, float)
                or option.min is None
                or option.min < 0
            ):
                message = (
                    f"lr = {parameter.lr!r}: there is no such option that is a number with min = 0 or more"
                )
                raise fault("R064", place, message, hint=instead(parameter.lr, self.rule.options))
            self.used.add(parameter.lr)

    def _check_law_option(self, place: Place, parameter: Parameter, key: str, name: str) -> None:
        option = self.rule.options.get(name)
        if option is None or type(option.default) not in (int, float):
            message = f"{key}={name}: there is no option {name!r} that is a number"
            raise fault("R028", place, message, text=parameter.init, hint=instead(name, self.rule.options))
        self.used.add(name)

    def _check_where(self, signatures: list[Signature]) -> None:
        for condition in conditions(self.rule, self.section):
            expression = condition.expression
            for name in expression.names:
                known = {*self.rule.options}.union(*({*r.sizes} - r.moving for r in signatures))
                if name not in known or any(name not in {*self.rule.options, *r.sizes} for r in signatures):
                    node = next(n for n in expression.nodes if isinstance(n, ast.Name) and n.id == name)
                    message = f"{name!r} is neither an option nor a size that a site has"
                    raise expression.fault("R027", node, message, instead(name, known))
                self.used.add(name)
            for comparison in expression.nodes:
                if isinstance(comparison, ast.Compare):
                    self._check_choices(expression, comparison)
            stand_ins: dict[str, Constant] = {name: 2 for role in signatures for name in role.sizes}
            condition.unmet({**stand_ins, **defaults(self.rule)})

    def _check_choices(self, expression: Expression, node: ast.Compare) -> None:
        """A text that is compared with an option must be one of its choices."""
        sides = (node.left, *node.comparators)
        names = [side.id for side in sides if isinstance(side, ast.Name)]
        choices = {
            choice
            for name in names
            if name in self.rule.options
            for choice in self.rule.options[name].choices
        }
        for side in sides:
            if choices and isinstance(side, ast.Constant) and side.value not in choices:
                message = f"{side.value!r} is none of the choices of {names[0]}"
                raise expression.fault("R027", side, message, instead(str(side.value), choices))

    def _check_ports(self) -> None:
        for role in self.section.match.role:
            ports = ROLES[role].ports
            for port in self.section.rewrite:
                writable = [p.name for p in ports.values() if p.kind in ("operand", "result")]
                if port not in writable:
                    message = f"{port!r} of {role} cannot be rewritten"
                    raise fault("R038", self._place("rewrite", port), message, hint=instead(port, writable))
            for port in self.section.merge:
                weights = [p.name for p in ports.values() if p.kind == "weight"]
                if port not in weights:
                    message = f"{port!r} is no weight of {role}"
                    raise fault("R041", self._place("merge", port), message, hint=instead(port, weights))

    def _check_train(self) -> None:
        for port, train in self.section.train.items():
            for role in self.section.match.role:
                weights = [p.name for p in ROLES[role].ports.values() if p.kind == "weight"]
                if port not in weights:
                    message = f"{port!r} is no weight of {role}"
                    raise fault("R042", self._place("train", port), message, hint=instead(port, weights))
                if train.insert and "y" not in ROLES[role].ports:
                    message = f"{role} has no result that a new {port!r} could be added to"
                    raise fault("R043", self._place("train", port, "insert"), message)
            if train.insert is None:
                continue
            option = self.rule.options.get(train.insert)
            if option is None or not option.choices or not set(option.choices) <= INSERTS:
                message = f"{train.insert!r} is no option with the choices never, auto, always"
                written = f'{train.insert} = {{ default = "auto", choices = ["never", "auto", "always"] }}'
                raise fault(
                    "R043", self._place("train", port, "insert"), message, hint=f"[options] {written}"
                )
            self.used.add(train.insert)

    def _variants(self, read: set[str]) -> Iterator[dict[str, Constant]]:
        """The defaults, then each choice of each option that is read in turn: all must be right."""
        usual = defaults(self.rule)
        yield usual
        for name, option in self.rule.options.items():
            for choice in option.choices:
                if name in read and choice != option.default:
                    yield {**usual, name: choice}

    def _evaluate(self, role: Signature, options: Mapping[str, Constant]) -> None:
        scope = proving_scope(self.rule, self.section, role, options)
        rewritten = {port: scope.rewrite(port) for port in self.section.rewrite}
        self._check_lengths(role, rewritten)
        for port in self.section.merge:
            if port not in role.ports:
                continue
            merged = lengths_of(scope.merge(port))
            if changed := [axis for axis in role.ports[port] if merged.get(axis, axis) != axis]:
                raise fault(
                    "R040", self._place("merge", port), f"a merge cannot change the length of {changed[0]!r}"
                )
        for name in self.section.loss:
            scope.loss(name)
        prove_gates(self.rule, self.section, role, options)
        for name, parameter in self.section.parameters.items():
            if parameter.initial.expression is not None:
                self._check_start(name, parameter, lengths_of(scope.initial(name)))
        self.used |= scope.used

    def _check_start(self, name: str, parameter: Parameter, lengths: Mapping[str, str]) -> None:
        """What a parameter starts as has its sizes."""
        for dimension in parameter.dimensions:
            want = canonical(str(dimension.size))
            if (found := lengths.get(dimension.axis, dimension.axis)) != want:
                message = f"the axis {dimension.axis!r} of {name} is {want} long, but this is {found} long"
                raise fault("R060", self._place("parameters", name, "init"), message, text=parameter.init)

    def _check_lengths(self, role: Signature, rewritten: Mapping[str, Term]) -> None:
        """An axis that a rewrite makes longer at one operand is as long at every port that has it."""
        for port, term in rewritten.items():
            for axis, length in lengths_of(term).items():
                if length == axis:
                    continue
                kinds = ROLES[role.role].ports
                own = dict(zip(role.ports[port], kinds[port].axes, strict=False))
                grows = own.get(axis) == ROLES[role.role].grows and grows_in_front(length, axis)
                if kinds[port].kind == "result" and not grows:
                    roles = " and ".join(name for name, each in ROLES.items() if each.grows)
                    raise fault(
                        "R074", self._place("rewrite", port),
                        f"{axis!r} becomes {length} long at {port}, whose users want it as it was",
                        text=self.section.rewrite[port], hint=f"rows can be put in front of a result of {roles}",
                    )  # fmt: skip
                sharing = [
                    name for name, axes in role.ports.items() if axis in axes and kinds[name].kind != "value"
                ]
                for other in sharing:
                    there = lengths_of(rewritten[other]).get(axis) if other in rewritten else axis
                    if there != length:
                        message = f"{axis!r} becomes {length} long at {port}, and is {there} at {other}"
                        raise fault(
                            "R040", self._place("rewrite", port), message, text=self.section.rewrite[port],
                            hint=f"these share the axis: {', '.join(sharing)}",
                        )  # fmt: skip

    def _check_used(self) -> None:
        for name in self.section.parameters:
            if name not in self.used:
                raise fault(
                    "R034",
                    self._place("parameters", name),
                    f"the parameter {name!r} is never used",
                    hint=IDLE,
                )
        for name in self.section.let:
            if name not in self.used:
                raise fault(
                    "R035", self._place("let", name), f"the binding {name!r} is never used", hint=IDLE
                )
