"""The front door: compile, plan, load and look. No logic of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn

from peftc.analyse import Analysis, analyse
from peftc.capture import capture
from peftc.capture.examples import example_arguments, prepare
from peftc.capture.signature import example_call
from peftc.lang import Bound, Rule, RuleLike, bind_all, default_library
from peftc.match import Plan, make_plan
from peftc.runtime.build import build, twin
from peftc.runtime.engine import Engine


def rules() -> tuple[Rule, ...]:
    """Every rule of the library, by name."""
    return default_library().rules()


def default_rules() -> tuple[Bound, ...]:
    """The rules of the library that act unless told otherwise."""
    return bind_all([rule for rule in rules() if rule.default])


def plan(
    model: nn.Module,
    rules: RuleLike | Iterable[RuleLike],
    example_inputs: Mapping[str, Any] | None = None,
    *,
    defaults: bool = True,
    budget: int | None = None,
) -> Plan:
    """What compiling would do: every site, every application, every skip with its reason. Makes nothing.

    Args:
        model: any module; it is not changed.
        rules: rule specs ("lora:q,v"), `Rule` objects, mappings or paths, one or several.
        example_inputs: arguments of `forward` by name; a transformers model needs none.
        defaults: whether rules that act by default do.
        budget: largest number of new parameters.

    Raises:
        SpecError, RuleError: a rule cannot be read. MatchError: it does not fit the model. CaptureError: the model cannot
            be captured.
    """
    bounds = bind_all(rules)
    prepare(model)
    _, made = look(model, bounds, example_inputs, defaults, budget)
    return made


def compile(
    model: nn.Module,
    rules: RuleLike | Iterable[RuleLike],
    example_inputs: Mapping[str, Any] | None = None,
    *,
    defaults: bool = True,
    budget: int | None = None,
) -> nn.Module:
    """A module of the model's own class, with the rules in it. Arguments and errors are those of `plan`.

    The model is not changed. Its frozen weights are shared, not copied.
    """
    bounds = bind_all(rules)
    prepare(model)
    copied = twin(model)
    analysis, made = look(copied, bounds, example_inputs, defaults, budget)
    engine = Engine(copied, made, analysis.blocks)
    return build(copied, made, engine)


def look(
    model: nn.Module,
    bounds: tuple[Bound, ...],
    example_inputs: Mapping[str, Any] | None,
    defaults: bool,
    budget: int | None,
) -> tuple[Analysis, Plan]:
    """Capture a model once, find its sites and match the rules."""
    arguments = example_call(example_arguments(model, example_inputs))
    program, _, _ = capture(model, arguments)
    analysis = analyse(program.graph, model)
    return analysis, make_plan(bounds, analysis, model, default_rules() if defaults else (), budget)


def load(
    model: nn.Module,
    folder: str | Path,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    trainable: bool = False,
) -> nn.Module:
    """A model with the adapter of a folder that `save_pretrained` wrote.

    The rules are those stored in the folder, not those of the library. Unless `trainable`, nothing of it trains.

    Raises:
        CorruptAdapterError: the folder is damaged. ForeignAdapterError: it belongs to another model; names the site.
    """
    from peftc.store import load_adapter

    return load_adapter(model, Path(folder), example_inputs, trainable=trainable)


def graph(compiled: nn.Module) -> fx.GraphModule:
    """The rewritten graph of a compiled module's latest program, whole, as a `torch.fx.GraphModule`."""
    from peftc.inspect import graph as graph_of

    return graph_of(compiled)
