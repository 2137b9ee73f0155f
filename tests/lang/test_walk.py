"""Axes, the walk with a backend that tells what it is asked, and the initial laws."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from peftc.errors import PeftcError, RuleError
from peftc.lang import (
    ROLES,
    Axes,
    AxesError,
    Constant,
    Operation,
    Parameter,
    Scope,
    Term,
    contract,
    default_library,
    meet,
    read_axes,
    read_initial,
    register,
    signature,
)
from peftc.lang.operations import OPERATIONS
from peftc.lang.source import Place


class Teller:
    """Backend that holds what was asked, as text."""

    def negate(self, term: Term) -> object:
        return f"-{term.held}"

    def pointwise(self, op: str, left: Term, right: Term, axes: Axes) -> object:
        assert {*left.axes, *right.axes} <= {*axes}
        return f"({left.held} {op} {right.held})"

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        return f"({left.held} @ {right.held})[{' '.join(axes)}]"

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        assert {*axes} <= {axis for term in terms for axis in term.axes}
        said = ", ".join([*(str(term.held) for term in terms), *(f"{k}={v}" for k, v in settings.items())])
        return f"{operation.lower}({said})"


def test_one_walk_makes_the_terms() -> None:
    rule = default_library().rule("lora")
    made: dict[str, tuple[int, ...]] = {}

    def new_parameter(name: str, parameter: Parameter, sizes: tuple[int, ...]) -> Term:
        made[name] = sizes
        return Term(parameter.named, name)

    said = signature(rule, "linear")
    given = {port: Term(axes, port) for port, axes in said.ports.items()}
    given |= {axis: Term((), size) for axis, size in said.sizes_at({"d_in": 32, "d_out": 64}).items()}
    scope = Scope(rule, {"rank": 4, "alpha": 16.0, "drop": 0.5}, given, Teller(), new_parameter)
    term = scope.rewrite("y")
    assert term.axes == ("*", "d_out")
    assert term.held == "(y + (4.0 * ((peftc.dropout(x, p=0.5) @ A)[* rank] @ B)[* d_out]))"
    assert scope.merge("W").held == "(W + (4.0 * (B @ A)[d_out d_in]))"
    assert made == {"A": (4, 32), "B": (64, 4)}
    assert {"scale", "delta", "A", "B", "drop", "rank"} <= scope.used


@pytest.mark.parametrize(
    ("left", "right", "axes"),
    [
        ("* d", "rank d", "* rank"),
        ("b h q d", "b h k d", "b h q k"),
        ("rank d", "* d", "* rank"),
        ("d", "d", ""),
        ("* d", "* d", "*"),
    ],
)
def test_contract(left: str, right: str, axes: str) -> None:
    assert contract(read_axes(left), read_axes(right)) == read_axes(axes)


@pytest.mark.parametrize(
    ("left", "right", "axes"),
    [("b", "h b d", "h b d"), ("b h", "b d", "b h d"), ("d", "* d", "* d"), ("", "* d", "* d")],
)
def test_meet(left: str, right: str, axes: str) -> None:
    assert meet(read_axes(left), read_axes(right)) == read_axes(axes)


@pytest.mark.parametrize(("left", "right"), [("* d", "b d"), ("* d", "* e"), ("b", "* d")])
def test_unnamed_axes_are_not_lined_up_with_named_ones(left: str, right: str) -> None:
    with pytest.raises(AxesError):
        meet(read_axes(left), read_axes(right))


def test_laws() -> None:
    place = Place("x.toml")
    assert read_initial("normal(std=0.02)", place).resolve({}) == {"std": 0.02}
    assert read_initial("uniform(low=-1, high=spread)", place).resolve({"spread": 2}) == {
        "low": -1.0,
        "high": 2.0,
    }
    assert read_initial("kaiming_uniform", place).resolve({})["slope"] == pytest.approx(5**0.5)
    for wrong in ("normal(0.02)", "normal(std=x+1)", "f(", "normal(std=True)"):
        with pytest.raises(RuleError):
            read_initial(wrong, place)


def test_a_plugin_adds_an_operation_once() -> None:
    twice = Operation("twice", "x + x.", (("x", "value"),), lambda terms, _: terms[0].axes, "plugin.twice")
    try:
        register(twice)
        register(twice)
        with pytest.raises(ValueError, match="already"):
            register(Operation("twice", "Other.", (), lambda _terms, _settings: (), "plugin.other"))
    finally:
        OPERATIONS.pop("twice", None)


def test_every_role_and_operation_is_documented() -> None:
    assert all(role.doc and all(port.doc for port in role.ports.values()) for role in ROLES.values())
    assert all(operation.doc.endswith(".") for operation in OPERATIONS.values())


def test_an_error_has_four_parts() -> None:
    error = PeftcError("what", where="where", detail=("text", "^^^^"), hint="instead")
    assert str(error).splitlines() == ["where", "  what", "    text", "    ^^^^", "  instead"]
    assert str(PeftcError("what")) == "what"
