"""`--inputs`: a call of a model that does not say what it takes, read from a file of tensors by name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftc.errors import DataError, instead

if TYPE_CHECKING:
    from torch import Tensor, nn

HOW_TO_WRITE = 'safetensors.torch.save_file({"input_ids": ids, "pixel_values": images}, "inputs.safetensors")'

InputsOption = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE",
        help="A call of the model, for one that does not say what it takes: a safetensors file of forward's "
        f"arguments by name, which Python writes with [b]{HOW_TO_WRITE}[/] (ids are int64, "
        "two rows of two or more; slices are made [b].contiguous()[/]; a .pt file is not read).",
    ),
]


def load_with_inputs(path: Path, inputs: Path | None) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """A model, and the call that a file holds; None without a file. The file is read before the model is.

    Raises:
        DataError: the file is missing, cannot be read, or has a name that forward does not take.
        ModelError: the model cannot be loaded.
    """
    from peftc.finetune.models import load_as_saved

    tensors = None if inputs is None else read_tensors(inputs)
    model = load_as_saved(path)
    if inputs is not None and tensors is not None:
        refuse_unknown(tensors, model, inputs)
    return model, tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = f"it is written with {HOW_TO_WRITE}"
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), hint=hint)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"cannot be read as safetensors: {str(error).splitlines()[0]}", where=str(path), hint=hint
        ) from error
    if not tensors:
        raise DataError("it holds no tensor", where=str(path), hint=hint)
    return tensors


def refuse_unknown(tensors: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """Raises DataError where forward does not take an argument by its name, or takes no tensor by it."""
    from peftc.capture.examples import accepted

    parameters = inspect.signature(model.forward).parameters
    takes = accepted(parameters)
    for name, value in tensors.items():
        if takes and name not in takes:
            message = f"forward of {type(model).__name__} takes no {name!r}"
            raise DataError(message, where=str(path), hint=instead(name, takes, "it takes"))
        if name in takes and is_flag(parameters[name], value):
            message = f"{name!r} is a flag, which a file of tensors cannot give"
            raise DataError(message, where=str(path), hint="leave it out, or set it in the model's config")


def is_flag(parameter: inspect.Parameter, given: Tensor) -> bool:
    """Whether forward takes True or False by a name, and no tensor: so its default or its annotation says, or one number."""
    said = "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
    by_annotation = set(re.findall(r"\w+", said)) & {"bool", "Tensor"} == {"bool"}
    return (
        by_annotation
        or isinstance(parameter.default, bool)
        or (str(given.dtype) == "torch.bool" and not given.dim())
    )
