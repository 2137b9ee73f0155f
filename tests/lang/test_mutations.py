"""A rule file with one token changed is refused when it is loaded, or a test of the rule sees the difference.

Tests of a rule are its reference (other numbers), those of the composites that use it, and the golden surface of the
library (other options, parts or parameters). What neither would see must be in UNSEEN, with the reason why it may.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from peftc.errors import PeftcError
from peftc.lang import Rule, check, default_library, read_file, read_text
from tests.lang.mutants import Mutant, mutants, numbers, same, surface

LIBRARY = default_library()

UNSEEN: dict[str, Callable[[Mutant], bool]] = {
    "text for people": lambda mutant: (
        mutant.kind == "prose" or re.match(r"(paper|#|,? ?help)", mutant.old) is not None
    ),
    "the order of a list of parts, roles or conditions means nothing": lambda mutant: (
        mutant.kind == "swap" and '", "' in mutant.old
    ),
    "a sum or a product is the same from both sides": lambda mutant: (
        mutant.kind == "swap"
        and (re.search(r" [+*@] ", mutant.old) is not None or f"dot({mutant.old}, axis" in mutant.whole)
    ),
    "a binding stands for what it is bound to, until another rule binds it anew": lambda mutant: (
        mutant.kind == "name" and {mutant.old, mutant.new} == {"source", "y"}
    ),
    "the identity is the same for all matrices of one size": lambda mutant: (
        mutant.kind == "name" and f"identity_like({mutant.new})" in mutant.text.splitlines()[mutant.line - 1]
    ),
    "an axis that nothing else names may be called anything": lambda mutant: (
        mutant.kind == "name" and re.match(r"(values|match *= .*values|takes)", mutant.whole) is not None
    ),
    "values of a call have one batch; references have calls in which one of them is absent": lambda mutant: (
        mutant.kind == "name"
        and re.search(rf"repeat\(\w+, {mutant.new}, axis", mutant.text.splitlines()[mutant.line - 1])
        is not None
    ),
    "where gradients stop changes no number; references compare gradients": lambda mutant: (
        mutant.old == "stop_gradient"
    ),
    "a bound that only rows of zeros meet; there is a test of such": lambda mutant: (
        mutant.kind == "sign" and "min=1e-6" in mutant.whole
    ),
    "the line says what the role says already": lambda mutant: (
        mutant.kind.startswith("deleted") and re.match(r"values|match *= .*values", mutant.whole) is not None
    ),
}


def read(name: str, text: str) -> Rule:
    rule = check(read_text(text, f"{name}.toml"), LIBRARY.rule, (name,))
    if rule.name != name:
        raise PeftcError("a library refuses a rule that is not named as its file")
    return rule


def composites(rule: Rule) -> Iterator[tuple[Rule, Rule]]:
    """Every rule of the library that uses one of this name: with the library's, and with this one in its place."""
    for name in LIBRARY.names():
        written = read_file(LIBRARY.folders[0] / f"{name}.toml")
        if rule.name not in [use.rule for use in written.use]:
            continue

        def find(wanted: str, trail: tuple[str, ...]) -> Rule:
            return rule if wanted == rule.name else LIBRARY.rule(wanted, trail)

        yield LIBRARY.rule(name), check(written, find, (name,))


def verdict(name: str, mutant: Mutant, shipped: Rule) -> str:
    """What notices the mutant: `load`, `surface` or `numbers`; or why nothing has to; or `nothing`."""
    try:
        rule = read(name, mutant.text)
    except PeftcError:
        return "load"
    if surface(rule) != surface(shipped):
        return "surface"
    try:
        if not same(numbers(rule), numbers(shipped)):
            return "numbers"
    except (PeftcError, RuntimeError, IndexError):
        # With other options than the defaults, or where axes of one name differ in size or kind, it cannot be computed.
        return "numbers"
    try:
        if any(not same(numbers(one), numbers(other)) for one, other in composites(rule)):
            return "composites"
    except PeftcError:
        return "composites"
    return next((reason for reason, allows in UNSEEN.items() if allows(mutant)), "nothing")


def test_the_surface_of_the_library(golden: Callable[[str, str], None]) -> None:
    golden("lang/library.txt", "\n\n".join(surface(rule) for rule in LIBRARY.rules()))


@pytest.mark.parametrize("name", LIBRARY.names())
def test_a_rule_is_the_same_as_itself(name: str) -> None:
    rule = LIBRARY.rule(name)
    assert same(numbers(rule), numbers(rule))


def test_a_product_from_either_side_is_one_product() -> None:
    text = (LIBRARY.folders[0] / "lora.toml").read_text()
    turned = text.replace("dropout(x, p=drop) @ A @ B", "B @ (A @ dropout(x, p=drop))")
    assert turned != text
    assert same(numbers(read("lora", turned)), numbers(read("lora", text)))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY.names())
def test_every_mutant_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (LIBRARY.folders[0] / f"{name}.toml").read_text()
    shipped = read(name, text)
    told = [(mutant, verdict(name, mutant, shipped)) for mutant in mutants(text)]
    score = Counter(said for _, said in told)
    caught = sum(score[kind] for kind in ("load", "surface", "numbers", "composites"))
    with capsys.disabled():
        kinds = ", ".join(f"{said} {count}" for said, count in score.most_common())
        print(f"\n{name}: {caught} of {len(told)} mutants are caught ({kinds})")
    assert [str(mutant) for mutant, said in told if said == "nothing"] == []
