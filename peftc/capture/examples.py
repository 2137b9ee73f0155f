"""Makes a call for a model that came without one, and knows how transformers' models say what they take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftc.errors import CaptureError


def example_arguments(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of the first call to capture.

    Raises:
        CaptureError: none were given, and the model does not say what it takes.
    """
    if given is not None:
        if not isinstance(given, Mapping):
            raise CaptureError(
                f"example inputs are a mapping of forward's arguments by name, not a {type(given).__name__}",
                hint=f"forward takes {', '.join(inspect.signature(model.forward).parameters)}",
            )
        return dict(given)
    name = getattr(model, "main_input_name", None)
    config = getattr(model, "config", None)
    takes = inspect.signature(model.forward).parameters
    made = None if config is None or name is None else EXAMPLES.get(name, lambda _: None)(config)
    if made is None or name is None:
        raise CaptureError(
            f"{type(model).__name__} does not say what it takes",
            hint="give example_inputs: a mapping of its forward's arguments to tensors",
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    arguments = {name: made.to(device=device, dtype=dtype if made.is_floating_point() else made.dtype)}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        arguments["decoder_input_ids"] = torch.zeros(2, 19, dtype=torch.int64, device=device)
    return arguments


def ids(_: Any) -> Tensor:
    """Token ids [batch seq]."""
    return torch.zeros(2, 23, dtype=torch.int64)


def pixels(config: Any) -> Tensor | None:
    """Images [batch channels height width] of the size that a config tells."""
    size = getattr(config, "image_size", None)
    if size is None:
        return None
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.zeros(2, getattr(config, "num_channels", 3), height, width)


def waves(config: Any) -> Tensor | None:
    """Sound [batch samples], a second at the usual rate; as spectra [batch frames bins] where a config has bins."""
    if hasattr(config, "num_mel_bins"):
        return torch.zeros(2, getattr(config, "max_length", 1024), config.num_mel_bins)
    return torch.zeros(2, 16000)


def spectra(config: Any) -> Tensor | None:
    """Spectra [batch bins frames], of the length that a model of fixed length asks for."""
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    return None if bins is None or frames is None else torch.zeros(2, bins, 2 * frames)


EXAMPLES = {"input_ids": ids, "pixel_values": pixels, "input_values": waves, "input_features": spectra}
"""Name of a model's main input in transformers → what makes one from a config; None where it cannot."""
