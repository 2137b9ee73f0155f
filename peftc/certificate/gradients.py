"""Properties of gradients: which there are, what they are, and that checkpoints change none.

Where the model as it came does not have a property, it does not apply.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peftc.certificate.findings import Finding, none, said_by, within
from peftc.certificate.outputs import outputs_of
from peftc.certificate.sizes import is_single, of_several_tokens
from peftc.certificate.subject import Arguments, Subject, called, kept, wanting_gradients


def gradients_reach(subject: Subject) -> Finding:
    """Every trainable parameter gets a gradient, and nothing frozen does."""
    name = "gradients"
    trainable = {n: p for n, p in subject.compiled.named_parameters() if p.requires_grad}
    if not trainable:
        return none(name, "nothing trains")
    if isinstance(call := call_that_trains(subject), str):
        return none(name, call)
    plan = subject.plan
    planned = {each.path for each in plan.new_tensors if each.trainable} | {*plan.trained}.difference(
        plan.kept
    )
    wanted = {id(subject.compiled.get_parameter(path)) for path in planned}
    other = [n for n, p in subject.compiled.named_parameters() if p.requires_grad != (id(p) in wanted)]
    if other:
        what = (
            "trains, and the plan has it frozen"
            if other[0] in trainable
            else "is frozen, and the plan has it train"
        )
        return within(name, float(len(other)), 0.0, f"{other[0]} {what}")
    without, frozen = set(trainable), set[str]()
    for draw in range(DRAWS):  # units of a relu may all be off at one draw
        with kept(subject.compiled):
            if draw:
                subject.draw(draw)
            reached = gradients(subject, call)
        frozen |= reached.keys() - trainable.keys()
        sizes = {n: float(gradient.abs().max()) for n, gradient in reached.items() if gradient.numel()}
        # Of one token, kernels of attention may leave rounding where nothing is.
        noise = 100 * EPSILON * max(sizes.values(), default=0.0) if is_single(call) else 0.0
        without -= {n for n, size in sizes.items() if not size <= noise}
        if not without:
            break
    excused = sorted(n for n in without if is_excused(subject, call, n))
    missing = sorted(without.difference(excused))
    if missing and not frozen and is_single(call):
        return none(
            name, "the call is one token long, which leaves attention no choice; give one of two or more"
        )
    detail = f"{len(trainable)} trainable parameters"
    if missing:
        detail = f"no gradient reaches {', '.join(missing[:3])}" + (" …" if len(missing) > 3 else "")
    elif frozen:
        detail = f"frozen, with a gradient: {', '.join(sorted(frozen)[:3])}"
    elif excused:
        detail += f"; {len(excused)} cannot have one in the model either, such as {excused[0]}"
    return within(name, float(len(missing) + len(frozen)), 0.0, detail)


DRAWS = 4


def is_excused(subject: Subject, call: Arguments, name: str) -> bool:
    """Whether the model's own parameter of this name gets no gradient of the model itself either."""
    if name not in dict(subject.plain.named_parameters()):
        return shift_of_scores(subject, name)
    plain = dict(subject.plain.named_parameters())[name]
    before = plain.requires_grad
    plain.requires_grad_(True)
    try:
        loss = loss_of(subject.plain, call)
        if not loss.requires_grad:  # no output depends on any parameter by what has a gradient
            return True
        (gradient,) = torch.autograd.grad(loss, plain, allow_unused=True)
    finally:
        plain.requires_grad_(before)
    found: Tensor | None = gradient  # None where no output depends on it, whatever the stub says
    return found is None or float(found.abs().max()) <= TINY


TINY = 1e-9
EPSILON = torch.finfo(torch.float32).eps


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
    bound = 10 * subject.tolerance
    own = dict(subject.plain.named_parameters())
    trained = set(subject.plan.trained)
    mine = {
        n: p
        for n, p in subject.compiled.named_parameters()
        if n in own and n not in trained and p.is_floating_point()
    }
    if not mine:
        return none(name, "every weight of the model trains, and none is as it came")
    if isinstance(call := call_that_trains(subject), str):
        return none(name, call)
    with wanting_gradients([*mine.values(), *own.values()]):
        loss_of(subject.plain, call).backward()
        with subject.compiled.disable_adapter():
            loss_of(subject.compiled, call).backward()
        pairs = {path: (parameter.grad, own[path].grad) for path, parameter in mine.items()}
        figures = apart(pairs, bound)
        for parameter in (*own.values(), *mine.values()):
            parameter.grad = None
    where, worst = max(figures.items(), key=lambda each: each[1], default=("", 0.0))
    detail = f"largest difference over a weight's largest gradient, at {where}" if worst else "bit for bit"
    return within(name, worst, bound, detail)


def apart(pairs: Mapping[str, tuple[Tensor | None, Tensor | None]], bound: float) -> dict[str, float]:
    """How far each gradient is from the wanted one, over the largest number in the wanted one.

    A gradient that is all but 0 beside those of the others is a sum of larger numbers that cancel, and is rounded as
    they are: where the rounding of the largest gradient of all would exceed the bound, that is what it is measured by.

    Args:
        pairs: path → gradient and wanted one, None for none.
        bound: the largest figure that passes.
    """
    largest = {path: most(want) for path, (_, want) in pairs.items()}
    rounding = max(largest.values(), default=0.0) * EPSILON
    return {
        path: how_far(got, want) / max(largest[path], rounding / bound, 1e-30)
        for path, (got, want) in pairs.items()
    }


def how_far(got: Tensor | None, want: Tensor | None) -> float:
    """The largest difference of two gradients; where only one is there and is not 0, without end."""
    if got is None or want is None:
        return float("inf") if most(got) or most(want) else 0.0
    difference = most(got - want)
    return difference if difference == difference else float("inf")  # noqa: PLR0124 - not a number


def most(gradient: Tensor | None) -> float:
    """The largest number in a gradient, whatever its sign; 0 where there is none."""
    return float(gradient.abs().max()) if gradient is not None and gradient.numel() else 0.0


def checkpointing(subject: Subject) -> Finding:
    """Gradients are the same with gradient checkpointing."""
    name = "checkpointing"
    enable = getattr(subject.compiled, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(subject.compiled, "supports_gradient_checkpointing", False):
        return none(name, "the model has no gradient checkpointing")
    if isinstance(call := call_that_trains(subject), str):
        return none(name, call)
    modes = {module: module.training for module in subject.compiled.modules()}
    try:
        subject.compiled.train()
        plain = gradients(subject, call)
        with without_advice():
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        again = gradients(subject, call)
    finally:
        with without_advice():
            subject.compiled.gradient_checkpointing_disable()
        for module, mode in modes.items():
            module.training = mode
    bound = 10 * subject.tolerance
    pairs = {path: (again.get(path), plain.get(path)) for path in plain.keys() | again.keys()}
    figure = max(apart(pairs, bound).values(), default=0.0)
    return within(name, figure, bound, "gradients of each parameter with and without, over its largest")


@contextmanager
def without_advice() -> Iterator[None]:
    """Without warnings of how a model's class is to be called one day: nothing that a user of the certificate could do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def gradients(subject: Subject, call: Arguments) -> dict[str, Tensor]:
    """The gradient of every trainable parameter at one seed."""
    subject.compiled.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss_of(subject.compiled, call).backward()
    found = {n: p.grad.clone() for n, p in subject.compiled.named_parameters() if p.grad is not None}
    subject.compiled.zero_grad(set_to_none=True)
    return found


def call_that_trains(subject: Subject) -> Arguments | str:
    """The call as the model itself can be trained by it, or why it cannot: some write into what a cache gives back.

    One token becomes several: with one key to see, the weights of attention have no gradient.
    """
    if subject.learning is None:
        subject.learning = tried(subject)
    return subject.learning


def tried(subject: Subject) -> Arguments | str:
    """The same, not yet known."""
    given = [subject.arguments]
    if (longer := of_several_tokens(subject)) is not None:
        given.insert(0, longer)
    calls = (
        given
        if not subject.takes("use_cache")
        else [*given, *({**call, "use_cache": False} for call in given)]
    )
    reasons = []
    with wanting_gradients(list(subject.plain.parameters())):
        for call in calls:
            try:
                loss = loss_of(subject.plain, call)
                if loss.requires_grad:
                    loss.backward()
            except RuntimeError as why:
                reasons.append(said_by(why, 80))
            else:
                return call
            finally:
                subject.plain.zero_grad(set_to_none=True)
    return f"the model itself cannot be trained by the call: {reasons[0]}"


def loss_of(module: nn.Module, arguments: Arguments) -> Tensor:
    """A number that depends on every output, not symmetric in them: norms would hide a mean or a scale."""
    return torch.stack([share_of(output) for output in outputs_of(called(module, arguments)).values()]).sum()


def share_of(output: Tensor) -> Tensor:
    """What an output adds to that number; of one that is nowhere a number, which has no gradient either, nothing."""
    found = output.float()
    finite = torch.isfinite(found)
    if not bool(finite.any()):
        return torch.zeros((), device=found.device)
    found = found.masked_fill(~finite, 0.0)
    weights = torch.linspace(0.3, 1.7, found.numel(), device=found.device).reshape(found.shape)
    other = weights.flip(-1) if weights.dim() else weights
    return (found.pow(2) * weights).mean() + (found * other).mean()
