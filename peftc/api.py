"""The front door: compile, plan, load and look. No logic of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn

from peftc.analyse import Analysis, Site, analyse
from peftc.capture import unread_attention
from peftc.capture.normalise import CATALOGUE
from peftc.certificate import Certificate
from peftc.certificate import check as certificate_of
from peftc.errors import SavedAdapterError
from peftc.inspect import Diff, Explanation
from peftc.inspect import diff as diff_of
from peftc.inspect import explain as explanation_of
from peftc.inspect import graph as graph_of
from peftc.lang import Bound, Rule, RuleLike, bind_all, counted_by, default_library, numbered, read_from
from peftc.match import Plan
from peftc.passes import PassSettings, Watch, read_settings
from peftc.runtime import (
    CompiledModule,
    SavedTensors,
    capture_example,
    carried,
    carry_out,
    look,
    pack,
    put_over,
    start_from,
    twin,
)
from peftc.runtime import param_groups as groups_of
from peftc.store import StoredModule, load_adapter, read_saved


def rules() -> tuple[Rule, ...]:
    """Every rule of the library, by name."""
    return default_library().rules()


def default_rules() -> tuple[Bound, ...]:
    """The rules of the library that act unless told otherwise."""
    return bind_all([rule for rule in rules() if rule.default])


def pass_settings(passes: str | Iterable[str], watch: Watch | None) -> PassSettings:
    """What a person says of the passes."""
    return read_settings([passes] if isinstance(passes, str) else passes, CATALOGUE, watch)


def sites(model: nn.Module, example_inputs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Every site of a model, with what in its data flow gave the site its role. Changes nothing.

    Args:
        example_inputs: arguments of `forward` by name; a transformers model needs none.

    Raises:
        CaptureError: the model cannot be captured.
    """
    return analysis(model, example_inputs).sites


def analysis(model: nn.Module, example_inputs: Mapping[str, Any] | None = None) -> Analysis:
    """The sites of a model, as `sites` gives them, and the weights that none of them has."""
    return analysis_and_unread(model, example_inputs)[0]


def analysis_and_unread(
    model: nn.Module, example_inputs: Mapping[str, Any] | None = None
) -> tuple[Analysis, tuple[str, ...]]:
    """The same, and each softmax that was not read as attention, with the reason."""
    _, _, (program, _, records) = capture_example(model, example_inputs)
    return analyse(program.graph, model), unread_attention(records)


def check(compiled: nn.Module, example_inputs: Mapping[str, Any] | None = None) -> Certificate:
    """Examine a compiled module: are the rules right on this model?

    The certificate has a finding for each property: pass, fail or not applicable, with its figure and bound. The
    module's trainable values, buffers, mode and gradients are put back behind.

    Args:
        example_inputs: arguments of `forward` by name; a transformers model needs none.
    """
    return certificate_of(compiled, example_inputs)


def bound_rules(
    rules: RuleLike | Iterable[RuleLike], saved: Mapping[str, str | Path] | None
) -> tuple[tuple[Bound, ...], dict[str, SavedTensors]]:
    """Rules as the user asks for them, and the tensors of the saved adapters that they read."""
    bounds = bind_all(rules)
    adapters = read_saved(saved or {})
    if adapters and not any(counted_by(bound.rule) for bound in bounds):
        message = f"no rule reads saved adapters: {', '.join(bound.label for bound in bounds)}"
        raise SavedAdapterError(message, where="saved adapters", hint="leave `saved` out")
    read = tuple(read_from(bound, [each.rule for each in adapters]) for bound in bounds)
    return read, {each.rule.name: each.tensors for each in adapters}


def plan(
    model: nn.Module,
    rules: RuleLike | Iterable[RuleLike],
    example_inputs: Mapping[str, Any] | None = None,
    *,
    defaults: bool = True,
    budget: int | None = None,
    passes: str | Iterable[str] = (),
    watch: Watch | None = None,
    saved: Mapping[str, str | Path] | None = None,
) -> Plan:
    """What compiling would do: every site, every application, every skip with its reason. Makes nothing.

    Args:
        model: any module; it is not changed. One that carries adapters already (what `compile` or `load` gave) keeps
            them: they act first, as they are, and only what `rules` add trains; a task's head goes on training.
        rules: rule specs ("lora:q,v"), `Rule` objects, mappings or paths, one or several.
        example_inputs: arguments of `forward` by name; a transformers model needs none.
        defaults: whether rules that act by default do.
        budget: largest number of new parameters.
        passes: how graphs are normalised: `"fold_masks(longest=64)"` sets an option of a pass, `"-group_heads"`
            turns one off; `peftc passes` lists them.
        watch: called after every pass with its `PassRecord` and the graph it left.
        saved: folders of adapters by any names, for rules that are made of trained adapters.

    Raises:
        SpecError, RuleError: a rule cannot be read.
        MatchError: it does not fit the model.
        CaptureError: the model cannot be captured.
        SavedAdapterError: saved adapters differ, or no rule reads them.
    """
    (bounds, _), settings = bound_rules(rules, saved), pass_settings(passes, watch)
    usual = default_rules() if defaults else ()
    plain, kept = carried(model, usual)
    return look(plain, numbered((*kept, *bounds)), example_inputs, usual, budget, settings).plan


def compile(  # noqa: A001 - named as torch.compile is
    model: nn.Module,
    rules: RuleLike | Iterable[RuleLike],
    example_inputs: Mapping[str, Any] | None = None,
    *,
    defaults: bool = True,
    budget: int | None = None,
    passes: str | Iterable[str] = (),
    watch: Watch | None = None,
    saved: Mapping[str, str | Path] | None = None,
    data: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A module of the model's own class, with the rules in it. Arguments and errors are those of `plan`.

    The model is not changed. Its frozen weights are shared, not copied.

    Args:
        data: real inputs, arguments of `forward` by name, for rules whose parameters start from what the model
            computes on them.
    """
    (bounds, tensors), settings = bound_rules(rules, saved), pass_settings(passes, watch)
    usual = default_rules() if defaults else ()
    plain, kept = carried(model, usual)
    copied = twin(plain)
    looked = look(copied, numbered((*kept, *bounds)), example_inputs, usual, budget, settings)
    pack(copied, looked.plan)
    compiled = carry_out(looked, copied, StoredModule, start_from(looked, copied, data, tensors))
    if isinstance(model, CompiledModule):
        put_over(compiled, model)
    return compiled


def load(
    model: nn.Module,
    folder: str | Path,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    trainable: bool = False,
) -> nn.Module:
    """A model with the adapter of a folder that `save_pretrained` wrote.

    The rules are those stored in the folder, not those of the library.
    Unless `trainable`, nothing of it trains.

    Raises:
        CorruptAdapterError: the folder is damaged.
        ForeignAdapterError: it belongs to another model; names the site.
    """
    return load_adapter(model, Path(folder), example_inputs, trainable=trainable)


def param_groups(compiled: nn.Module, lr: float, *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """What trains of a compiled module, in groups for any optimiser: `AdamW(peftc.param_groups(compiled, lr=1e-4))`.

    Rules can give a parameter a learning rate of its own, such as a multiple of `lr`; biases, norms and other vectors
    do not decay. `peftc finetune` trains with these groups.
    """
    return groups_of(compiled, lr, weight_decay)


def explain(compiled_or_plan: nn.Module | Plan) -> Explanation:
    """What a plan does: a text with `str`, a table for terminals with `.table()`, data with `.as_dict()`."""
    return explanation_of(compiled_or_plan)


def diff(compiled: nn.Module) -> Diff:
    """The latest program before and after its rewriting; `str` shows it, `.inserted` lists the new nodes."""
    return diff_of(compiled)


def graph(compiled: nn.Module, *, enabled: bool = True) -> fx.GraphModule:
    """The graph of a compiled module's latest program, whole, with the adapters in it or without.

    It takes the call's tensors and shares the compiled module's parameters.
    """
    return graph_of(compiled, enabled=enabled)
