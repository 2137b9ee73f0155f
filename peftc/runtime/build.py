"""Makes the compiled module of a plan: puts the plan's parameters into a twin of the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftc.graphs.shared_modules import splits
from peftc.match.plan import NewParameter, Plan
from peftc.quantised import quantised_in
from peftc.quantised.weight import HOME, home
from peftc.rewrite.rewriting import original_path
from peftc.runtime.compiled import CompiledModule, generated_class
from peftc.runtime.engine import Engine
from peftc.runtime.hooks import warn_of_hooks
from peftc.runtime.starting import Starting

PLAIN_LAWS = {
    "zeros": lambda tensor, _: nn.init.zeros_(tensor),
    "ones": lambda tensor, _: nn.init.ones_(tensor),
    "constant": lambda tensor, s: nn.init.constant_(tensor, s["value"]),
    "normal": lambda tensor, s: nn.init.normal_(tensor, std=s["std"]),
    "truncated_normal": lambda tensor, s: nn.init.trunc_normal_(
        tensor, std=s["std"], a=-2 * s["std"], b=2 * s["std"]
    ),
    "uniform": lambda tensor, s: nn.init.uniform_(tensor, s["low"], s["high"]),
    # As a matrix: torch takes all axes but the first for the inputs of a convolution.
    "kaiming_uniform": lambda tensor, s: nn.init.kaiming_uniform_(
        tensor.view(-1, tensor.shape[-1]), a=s["slope"]
    ),
    "xavier_uniform": lambda tensor, _: nn.init.uniform_(
        tensor,
        -math.sqrt(6 / (tensor.shape[0] + tensor.shape[-1])),
        math.sqrt(6 / (tensor.shape[0] + tensor.shape[-1])),
    ),
    "orthogonal": lambda tensor, _: nn.init.orthogonal_(tensor),
    "identity": lambda tensor, s: tensor.copy_(
        torch.where(torch.eye(*tensor.shape[-2:], dtype=torch.bool), 1.0, s["off"]).expand(tensor.shape)
    ),
    "saved": lambda tensor, _: nn.init.zeros_(tensor),  # until the tensors of an adapter are put in
}


def build(
    copied: nn.Module,
    plan: Plan,
    engine: Engine,
    kind: type[CompiledModule] = CompiledModule,
    starting: Starting | None = None,
) -> nn.Module:
    """Put a plan's parameters into a `twin`, and turn its modules into ones that run the rewritten graph.

    The root also becomes a `kind`. Without `starting`, initial values that are computed stay 0: who reads saved
    tensors in need not compute them.
    """
    thaw(copied, plan)
    made: dict[str, nn.Parameter] = {}
    by_path: dict[str, Tensor] = {}
    for application in plan.applications:
        for parameter in application.parameters:
            known = (parameter.shared or parameter.path) in made
            needed = (parameter.computed or parameter.saved) and not known
            start = starting.value(application, parameter, by_path) if starting and needed else None
            by_path[parameter.path] = add_parameter(copied, parameter, made, start)
    adopt(copied, plan, engine, kind)
    return copied


def thaw(root: nn.Module, plan: Plan) -> None:
    """Give the parameters that a plan trains storage of their own, and keep the model's values beside them."""
    by_identity: dict[int, nn.Parameter] = {}
    for path in plan.trained:
        parameter = root.get_parameter(path)
        fresh = nn.Parameter(parameter.detach().clone(), requires_grad=path not in plan.kept)
        by_identity[id(parameter)] = fresh
        owner, _, name = original_path(path).rpartition(".")
        home(root, owner).register_buffer(name, parameter.detach(), persistent=False)
    for module in root.modules():  # tied parameters stay tied: every owner gets the same fresh one
        for name, own in list(module.named_parameters(recurse=False)):
            if id(own) in by_identity:
                setattr(module, name, by_identity[id(own)])


def add_parameter(
    root: nn.Module, parameter: NewParameter, made: dict[str, nn.Parameter], start: Tensor | None = None
) -> nn.Parameter:
    """Make one new parameter, in the dtype and on the device of the model around it; `start` is what it starts as.

    One that is shared is made once and then found in `made`: a tied parameter, at each of its places.
    """
    owner, _, name = parameter.path.rpartition(".")
    key = parameter.shared or parameter.path
    if key not in made:
        model = nearest(root, owner.partition(f"{HOME}.")[0].rstrip("."))
        dtype = getattr(torch, parameter.dtype) if parameter.dtype else model.dtype
        tensor = (drawn(parameter) if start is None else start).to(device=model.device, dtype=dtype)
        made[key] = nn.Parameter(tensor, requires_grad=parameter.trainable)
    home(root, owner).register_parameter(name, made[key])
    return made[key]


def restart(root: nn.Module, plan: Plan, starting: Starting) -> None:
    """Give what a plan adds its first values once more, in place, drawn or computed as `build` does it.

    Raises:
        MatchError: a value cannot be computed.
    """
    by_path: dict[str, Tensor] = {}
    done: set[str] = set()
    for application in plan.applications:
        for parameter in application.parameters:
            held = by_path[parameter.path] = root.get_parameter(parameter.path)
            key = parameter.shared or parameter.path
            if key in done:
                continue
            done.add(key)
            needed = parameter.computed or parameter.saved
            value = starting.value(application, parameter, by_path) if needed else drawn(parameter)
            with torch.no_grad():
                held.copy_(value)


def drawn(parameter: NewParameter) -> Tensor:
    """The first value of a parameter. A seeded one is drawn in float32 on the CPU, the same everywhere."""
    if parameter.computed:
        return torch.zeros(parameter.shape)
    if parameter.seed is None:
        tensor = torch.empty(parameter.shape)
        start(tensor, parameter)
        return tensor
    tensor = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(parameter.seed)
        start(tensor, parameter)
    finally:
        torch.set_rng_state(state)
    return tensor


def start(tensor: Tensor, parameter: NewParameter) -> None:
    """Fill a tensor by its parameter's law."""
    if tensor.numel():
        with torch.no_grad():
            for own in tensor if parameter.stacked else (tensor,):
                PLAIN_LAWS[parameter.law](own, parameter.settings)  # type: ignore[no-untyped-call]


def nearest(root: nn.Module, path: str) -> Tensor:
    """A floating-point parameter of the module at `path`, or of one around it."""
    while True:
        for tensor in root.get_submodule(path).parameters():
            if tensor.is_floating_point():
                return tensor
        if not path:
            return torch.empty(0)
        path = path.rpartition(".")[0]


def adopt(root: nn.Module, plan: Plan, engine: Engine, kind: type[CompiledModule]) -> None:
    """Turn the root, its blocks and every module on the way to a site or a quantised weight into generated subclasses."""
    first = engine.shared_modules.first
    paths = {"", *map(first, engine.blocks)}
    for path, module in root.named_modules():
        if path not in paths:
            warn_of_hooks(module, path)
    owners = [path.rpartition(".")[0] for path in quantised_in(root)]
    sites = [application.site.path for application in plan.applications]
    for owner in (each for path in (*owners, *sites) for each in engine.shared_modules.all(path)):
        paths |= {first(head) for head, _ in splits(owner)}
    for path in sorted(paths):
        try:
            module = root.get_submodule(path)
        except AttributeError:
            continue  # a site that is a parameter, not a module
        if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
            continue
        engine.enrol(path, module)
        module.__class__ = generated_class(type(module), None if path else kind)
        object.__setattr__(module, "_peftc", engine)
        object.__setattr__(module, "_peftc_path", path)
