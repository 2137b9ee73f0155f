"""The twin of a model: a copy over the same storage, which a compiled module is made of, and what it forgets."""

from __future__ import annotations

import copy

import torch
from torch import nn

from peftc.match.plan import Plan
from peftc.quantised import quantise, taken_over


def twin(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters are frozen and share the storage of the model's own.

    Modules that came quantised are ordinary linear ones in it, with quantised weights.

    Raises:
        QuantiseError: a weight came quantised in an unknown way.
    """
    first = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    memo: dict[int, object] = {}
    for module in model.modules():
        if (plain := taken_over(module, first)) is not None:
            memo[id(module)] = plain
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    copied = copy.deepcopy(model, memo | values_of_written(model))
    forget_loading(copied)
    forget_hooks(copied)
    return copied


def values_of_written(model: nn.Module) -> dict[int, object]:
    """Id → copy of the buffers that a call left a history of gradients in: torch copies no such tensor."""
    return {id(each): each.detach().clone() for each in model.buffers() if not each.is_leaf}


LOADED = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers notes of a model that it loaded quantised: it would refuse to cast, move or train such a model."""
NOTED = "_peftc_loaded"  # where these notes are meanwhile


def forget_loading(copied: nn.Module) -> None:
    """Take off what says that a loader's modules are in a model: none of them is any more."""
    for module in copied.modules():
        if noted := {name: vars(module).pop(name) for name in LOADED if name in vars(module)}:
            object.__setattr__(module, NOTED, noted)


def remember_loading(made: nn.Module, *, quantised: bool) -> None:
    """Put it back where a loader's modules are in a model again; else take it out of its config too."""
    for module in made.modules():
        noted = vars(module).pop(NOTED, None)
        if noted is None:
            continue
        config = getattr(module, "config", None)
        if quantised:
            vars(module).update(noted)
        elif config is not None and hasattr(config, "quantization_config"):
            del config.quantization_config


def pack(copied: nn.Module, plan: Plan) -> None:
    """Quantise the weights of a `twin` that a plan keeps in fewer bits.

    Raises:
        QuantiseError: bitsandbytes is missing, or a weight has no values.
    """
    for path, (packing, turned) in plan.quantised.items():
        quantise(copied, path, packing, turned=turned)


def forget_hooks(copied: nn.Module) -> None:
    """Take off the hooks by which transformers lets embeddings want gradients, and note that inputs are to do so.

    They sit on a module that runs inside a captured graph.
    """
    if vars(copied).get("_require_grads_hooks"):
        copied.disable_input_require_grads()  # type: ignore[operator]  # of transformers' models, which set the hooks
        object.__setattr__(copied, INPUTS_WANTED, True)


INPUTS_WANTED = "_peftc_inputs_wanted"
