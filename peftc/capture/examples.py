"""Makes a call for a model that came without one, and knows how transformers' models say what they take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftc.errors import CaptureError


def example_arguments(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of the first call to capture.

    Raises:
        CaptureError: none were given, and the model does not say what it takes.
    """
    if given is not None:
        return dict(given)
    name = getattr(model, "main_input_name", None)
    config = getattr(model, "config", None)
    if name is None or config is None or name != "input_ids":
        raise CaptureError(
            f"{type(model).__name__} does not say what it takes",
            hint="give example_inputs: a mapping of its forward's arguments to tensors",
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    arguments = {"input_ids": torch.zeros(2, 23, dtype=torch.int64, device=device)}
    takes = inspect.signature(model.forward).parameters
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        arguments["decoder_input_ids"] = torch.zeros(2, 19, dtype=torch.int64, device=device)
    return arguments


def prepare(model: nn.Module) -> None:
    """Make the structures that a transformers model may return known to tracing."""
    try:
        from transformers import PreTrainedModel
        from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model
    except ImportError:
        return
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            register_cache_pytrees_for_model(module)
            return
