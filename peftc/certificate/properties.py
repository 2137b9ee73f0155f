"""The properties that prove a compiled module right, each a function from a subject to a finding.

One property says one thing that users rely on; where the model as it came does not have it, it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftc.certificate.findings import Finding, none, within
from peftc.certificate.subject import Subject, error, main_output, run
from peftc.certificate.visibility import keys_in_front, visibility
from peftc.errors import MergeError, PeftcError
from peftc.runtime.merging import merged_weights, plain_model, unmergeable

Property = Callable[[Subject], Finding]


def adapters_off(subject: Subject) -> Finding:
    """With adapters off, the module computes what the model did, at the call's sizes and at others."""
    worst = 0.0
    for arguments in (subject.arguments, subject.of_size(3, 9), subject.of_size(1, 5)):
        try:
            want = run(subject.plain, arguments)
        except Exception:  # noqa: BLE001 - the model itself does not take this size
            continue
        with subject.compiled.disable_adapter():
            worst = max(worst, error(run(subject.compiled, arguments), want))
    return within(
        "adapters off", worst, subject.tolerance, "largest relative difference to the model, three sizes"
    )


def identity_at_start(subject: Subject) -> Finding:
    """Rules whose new parameters start so that nothing changes do change nothing."""
    name = "identity at the start"
    plan = subject.plan
    promised = [a for a in plan.applications if plan.section(a).rewrite and starts_as_nothing(a.parameters)]
    acting = [a for a in plan.applications if plan.section(a).rewrite]
    if len(promised) != len(acting) or not acting:
        return none(name, "some rule starts with values that act" if acting else "no rule changes the graph")
    with torch.no_grad(), kept(subject.compiled):
        for application in acting:
            for parameter in application.parameters:
                tensor = subject.compiled.get_parameter(parameter.path)
                if parameter.law == "zeros":
                    tensor.zero_()
        for path in plan.trained:
            subject.compiled.get_parameter(path).copy_(subject.plain.get_parameter(path))
        for application in plan.applications:
            for inserted in application.inserted.values():
                path = next(p.path for p in application.parameters if p.name == inserted)
                subject.compiled.get_parameter(path).zero_()
        figure = error(run(subject.compiled, subject.arguments), run(subject.plain, subject.arguments))
    return within(name, figure, subject.tolerance, "with every parameter that starts at 0 at 0")


def starts_as_nothing(parameters: tuple[Any, ...]) -> bool:
    """Whether some parameter of an application starts at 0 while no tensor of it stands in a sum alone."""
    laws = [parameter.law for parameter in parameters if parameter.trainable]
    return "zeros" in laws and all(law in ("zeros", "kaiming_uniform", "xavier_uniform") for law in laws)


def gradients_reach(subject: Subject) -> Finding:
    """Every trainable parameter gets a gradient, and nothing frozen does."""
    name = "gradients"
    trainable = {n: p for n, p in subject.compiled.named_parameters() if p.requires_grad}
    if not trainable:
        return none(name, "nothing trains")
    without, frozen = set(trainable), set[str]()
    for draw in range(DRAWS):  # units of a relu may all be off at one draw
        with kept(subject.compiled):
            if draw:
                subject.draw(draw)
            reached = gradients(subject)
        frozen |= reached.keys() - trainable.keys()
        without -= {n for n, gradient in reached.items() if bool(gradient.count_nonzero())}
        if not without:
            break
    excused = sorted(n for n in without if is_excused(subject, n))
    missing = sorted(without.difference(excused))
    detail = f"{len(trainable)} trainable parameters"
    if missing:
        detail = f"no gradient reaches {', '.join(missing[:3])}" + (" …" if len(missing) > 3 else "")
    elif frozen:
        detail = f"frozen, with a gradient: {', '.join(sorted(frozen)[:3])}"
    elif excused:
        detail += f"; {len(excused)} cannot have one in the model either, such as {excused[0]}"
    return within(name, float(len(missing) + len(frozen)), 0.0, detail)


DRAWS = 4


def is_excused(subject: Subject, name: str) -> bool:
    """Whether the model's own parameter of this name gets no gradient of the model itself either."""
    if name not in dict(subject.plain.named_parameters()):
        return shift_of_scores(subject, name)
    plain = dict(subject.plain.named_parameters())[name]
    before = plain.requires_grad
    plain.requires_grad_(True)
    try:
        (gradient,) = torch.autograd.grad(loss_of(subject.plain, subject.arguments), plain, allow_unused=True)
    except RuntimeError:
        return True
    finally:
        plain.requires_grad_(before)
    found: Tensor | None = gradient  # None where no output depends on it, whatever the stub says
    return found is None or float(found.abs().max()) <= TINY


TINY = 1e-9


def shift_of_scores(subject: Subject, name: str) -> bool:
    """Whether a parameter is a bias that a rule put at keys: it shifts all scores of a query alike, which is nothing."""
    for application in subject.plan.applications:
        paths = {p.path: p.name for p in application.parameters}
        if name in paths and paths[name] in application.inserted.values():
            return application.site.part == "k"
    return False


def captured_gradients(subject: Subject) -> Finding:
    """With adapters off, gradients of the model's own weights are those of the model's own code."""
    name = "captured gradients"
    worst, where = 0.0, ""
    own = dict(subject.plain.named_parameters())
    trained = set(subject.plan.trained)
    mine = {
        n: p
        for n, p in subject.compiled.named_parameters()
        if n in own and n not in trained and p.is_floating_point()
    }
    with wanting_gradients([*mine.values(), *own.values()]):
        loss_of(subject.plain, subject.arguments).backward()
        with subject.compiled.disable_adapter():
            loss_of(subject.compiled, subject.arguments).backward()
        largest = max((float(p.grad.abs().max()) for p in own.values() if p.grad is not None), default=0.0)
        for path, parameter in mine.items():
            want, got = own[path].grad, parameter.grad
            if want is None or got is None:
                if (want is None) != (got is None) and float((want if got is None else got).abs().max()) > 0:  # type: ignore[union-attr]
                    worst, where = float("inf"), path
                continue
            figure = float((got - want).abs().max()) / max(largest, 1e-12)
            if figure > worst:
                worst, where = figure, path
        for parameter in (*own.values(), *mine.values()):
            parameter.grad = None
    detail = f"largest difference over the largest gradient, at {where}" if where else "bit for bit"
    return within(name, worst, 10 * subject.tolerance, detail)


def merged(subject: Subject) -> Finding:
    """The plain model with the adapters in its weights computes what the module does."""
    name = "merged"
    if kept := unmergeable(subject.plan):
        return none(name, f"{', '.join(kept)}: no change of weights")
    try:
        weights = merged_weights(subject.compiled, subject.plan)
    except MergeError as why:
        return none(name, why.message)
    model = plain_model(subject.compiled, weights).eval()
    figure = error(run(model, subject.arguments), run(subject.compiled, subject.arguments))
    return within(name, figure, 5 * subject.tolerance, "largest relative difference, merged to beside")


def padding(subject: Subject) -> Finding:
    """Padding behind a text changes nothing at its tokens."""
    name = "padding"
    if "input_ids" not in subject.arguments or not subject.takes("attention_mask"):
        return none(name, "the model takes no ids with a mask")
    if "decoder_input_ids" in subject.arguments:
        short = dict(subject.of_size(2, 6))
    else:
        short = {"input_ids": subject.of_size(2, 6)["input_ids"]}
    ids = short["input_ids"]
    ones = torch.ones_like(ids)
    behind = {
        **short,
        "input_ids": torch.cat([ids, ids[:, :3]], 1),
        "attention_mask": torch.cat([ones, 0 * ones[:, :3]], 1),
    }
    short["attention_mask"] = ones
    cut = (
        (slice(None), slice(None)) if "decoder_input_ids" in short else (slice(None), slice(0, ids.shape[1]))
    )

    def difference(module: nn.Module) -> float:
        with_padding, without = run(module, behind), run(module, short)
        return error(with_padding[cut] if with_padding.dim() > 2 else with_padding, without)

    return invariant(subject, name, difference, "outputs at tokens, with 3 tokens of padding behind them")


def batch(subject: Subject) -> Finding:
    """A row's output does not depend on the rows beside it."""
    arguments = subject.of_size(3)

    def difference(module: nn.Module) -> float:
        whole = run(module, arguments)
        first = run(
            module, {n: v[:1] if isinstance(v, Tensor) and v.dim() else v for n, v in arguments.items()}
        )
        return error(whole[: first.shape[0]], first)

    return invariant(subject, "batch", difference, "a row alone and among three")


def invariant(subject: Subject, name: str, difference: Callable[[nn.Module], float], detail: str) -> Finding:
    """A property that is asked of the module if the model has it."""
    try:
        before = difference(subject.plain)
    except Exception as why:  # noqa: BLE001 - the model itself does not take such a call
        return none(name, f"the model does not take such a call: {str(why).splitlines()[0][:60]}")
    if before > 10 * subject.tolerance:
        return none(name, f"the model itself differs by {before:.1g}")
    return within(name, difference(subject.compiled), 10 * subject.tolerance, detail)


def checkpointing(subject: Subject) -> Finding:
    """Gradients are the same with gradient checkpointing."""
    name = "checkpointing"
    enable = getattr(subject.compiled, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(subject.compiled, "supports_gradient_checkpointing", False):
        return none(name, "the model has no gradient checkpointing")
    modes = {module: module.training for module in subject.compiled.modules()}
    dropouts = quiet_dropouts(subject.compiled)
    try:
        subject.compiled.train()
        plain = gradients(subject)
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        again = gradients(subject)
    finally:
        subject.compiled.gradient_checkpointing_disable()
        for module, mode in modes.items():
            module.training = mode
        for module, rate in dropouts.items():
            module.p = rate  # type: ignore[assignment]
    largest = max((float(g.abs().max()) for g in plain.values()), default=1.0)
    figure = max((float((again[n] - g).abs().max()) for n, g in plain.items() if n in again), default=0.0)
    if plain.keys() != again.keys():
        figure = float("inf")
    return within(name, figure / max(largest, 1e-12), 10 * subject.tolerance, "gradients with and without")


def quiet_dropouts(root: nn.Module) -> dict[nn.Module, float]:
    """The dropouts of a model and their rates; none is changed: the same seed gives the same masks."""
    return {m: m.p for m in root.modules() if isinstance(m, nn.Dropout)}


def gradients(subject: Subject) -> dict[str, Tensor]:
    """The gradient of every trainable parameter at one seed."""
    subject.compiled.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss_of(subject.compiled, subject.arguments).backward()
    found = {n: p.grad.clone() for n, p in subject.compiled.named_parameters() if p.grad is not None}
    subject.compiled.zero_grad(set_to_none=True)
    return found


def decoding(subject: Subject) -> Finding:
    """A token at a time with a cache gives what the whole text does."""
    name = "cached decoding"
    if "input_ids" not in subject.arguments or "decoder_input_ids" in subject.arguments:
        return none(name, "the call is no text that a decoder goes on with")
    if not callable(getattr(subject.compiled, "generate", None)) or not subject.takes("past_key_values"):
        return none(name, "the model has no cache")
    ids = subject.of_size(2, 7)["input_ids"]

    def difference(module: Any) -> float:
        whole = run(module, {"input_ids": ids, "use_cache": False})
        with torch.no_grad():
            first = module(input_ids=ids[:, :5], use_cache=True)
            if first.past_key_values is None:
                raise ValueError("it gives no cache back")
            pieces, cache = [main_output(first)], first.past_key_values
            for at in range(5, 7):
                step = module(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
                pieces.append(main_output(step))
                cache = step.past_key_values
        return error(torch.cat(pieces, 1), whole)

    return invariant(subject, name, difference, "five tokens at once and two one by one, to seven at once")


def traced(subject: Subject) -> Finding:
    """Under `torch.compile` in one graph, the module computes the same."""
    arguments = subject.arguments
    want = run(subject.compiled, arguments)
    torch._dynamo.reset()  # noqa: SLF001 - torch documents no other way to forget traces
    try:
        figure = error(run(torch.compile(subject.compiled, backend="eager", fullgraph=True), arguments), want)  # type: ignore[arg-type]
    except PeftcError:
        raise
    except Exception as why:  # noqa: BLE001 - the tracer may raise anything: that is the finding
        return Finding("torch.compile", "fail", detail=str(why).splitlines()[0][:120])
    finally:
        torch._dynamo.reset()  # noqa: SLF001
    return within(
        "torch.compile", figure, subject.tolerance, "one graph, largest relative difference to eager"
    )


def loss_of(module: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """A number that depends on every output, not symmetric in them: norms would hide a mean or a scale."""
    outputs = main_output(module(**arguments)).float()
    finite = outputs.masked_fill(~torch.isfinite(outputs), 0.0)
    weights = torch.linspace(0.3, 1.7, finite.numel(), device=finite.device).reshape(finite.shape)
    return (finite.pow(2) * weights).mean() + (finite * weights.flip(-1)).mean()


@contextmanager
def kept(module: nn.Module) -> Any:
    """Put trainable values back behind."""
    before = {p: p.detach().clone() for p in module.parameters() if p.requires_grad}
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)


@contextmanager
def wanting_gradients(parameters: list[nn.Parameter]) -> Any:
    """Let parameters want gradients inside."""
    before = [(p, p.requires_grad) for p in parameters if p.is_floating_point()]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


PROPERTIES: tuple[Property, ...] = (
    adapters_off,
    identity_at_start,
    gradients_reach,
    captured_gradients,
    merged,
    visibility,
    keys_in_front,
    padding,
    batch,
    checkpointing,
    decoding,
    traced,
)
"""Every property, in the order in which they are examined."""
