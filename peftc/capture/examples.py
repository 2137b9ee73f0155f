"""Makes a call for a model that came without one, and knows how transformers' models say what they take.

An argument is made by its name, of the sizes that the model's config tells, or a config inside it: `pixel_values` of
`image_size`. Which arguments are made is read off the signature of forward and the config: the main input, what has
no default, what a decoder behind an encoder reads, and what each of several towers side by side reads.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftc.errors import CaptureError

BATCH, LENGTH, DECODER_LENGTH = 2, 23, 19
SIDE, SAMPLES, FRAMES = 224, 16000, 96
"""Pixels a side, samples and frames of sound where no config tells: such a model takes any number."""

HOW = "give example_inputs: a mapping of its forward's arguments to tensors (to a command: --inputs FILE.safetensors)"

Made = dict[str, Tensor] | None
"""Arguments by name; None where a config does not tell their sizes."""


@dataclass(frozen=True)
class Told:
    """What a model tells of its inputs.

    Attributes:
        config: its config; None where it has none.
        takes: names of forward's arguments.
        length: how many tokens a decoder behind an encoder reads.
    """

    config: Any
    takes: Collection[str]
    length: int = DECODER_LENGTH

    def configs(self) -> Iterator[Any]:
        """The config, and those inside it, outer ones first."""
        waiting = [] if self.config is None else [self.config]
        while waiting:
            config = waiting.pop(0)
            yield config
            inside = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
            waiting += [each for each in inside if each is not None]

    def found(self, *names: str) -> Any:
        """The first of these attributes that one of the configs has; None where none has any."""
        values = (getattr(config, name, None) for name in names for config in self.configs())
        return next((value for value in values if value is not None), None)

    def number(self, *names: str, default: int) -> int:
        """The first of these attributes that is a whole number, or begins with one."""
        value = self.found(*names)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        return value if isinstance(value, int) else default


def example_arguments(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of the first call to capture.

    Zeros stand for content of any kind; what is not 0 means something.

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
    takes = inspect.signature(model.forward).parameters
    generates = bool(getattr(model, "can_generate", lambda: False)())
    # What is trained on labels of whole texts finds the end of what its decoder reads where the encoder's text ends.
    length = DECODER_LENGTH if generates or "labels" not in takes else LENGTH
    told = Told(getattr(model, "config", None), takes, length)
    names = [*main_input(model, told), *without_default(takes), *([] if generates else towers(told))]
    if getattr(told.config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        names.append("decoder_input_ids")
    arguments: dict[str, Tensor] = {}
    unknown = []
    for name in dict.fromkeys(names):
        made = EXAMPLES[name](told) if name in EXAMPLES else None
        if made is None:
            unknown.append(name)
        else:
            arguments |= made
    unknown = [name for name in unknown if name not in arguments]
    if unknown or not arguments:
        what = f": no example of {', '.join(unknown)} can be made" if unknown else ""
        raise CaptureError(f"{type(model).__name__} does not say what it takes{what}", hint=HOW)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    return {
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
        for name, value in arguments.items()
    }


def explain(error: CaptureError, model: nn.Module, made: Mapping[str, Any]) -> None:
    """Add to the error of a call that was made here what it was, and what forward takes besides."""
    takes = [name for name in accepted(inspect.signature(model.forward).parameters) if name not in made]
    inputs = [name for name in takes if name in EXAMPLES and name not in READ_OFF]
    shown = ", ".join(f"{name} {list(value.shape)}" for name, value in made.items())
    besides = f"; forward also takes {', '.join(inputs or takes)}" if takes else ""
    error.detail += (f"no example inputs were given, and it was called with {shown}{besides}",)
    error.hint = error.hint or HOW


def accepted(takes: Mapping[str, inspect.Parameter]) -> list[str]:
    """Names by which forward takes arguments."""
    return [name for name, each in takes.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def main_input(model: nn.Module, told: Told) -> list[str]:
    """The input that a model names, or the first that is known where that one stands for others; none without a config."""
    if told.config is None:
        return []
    name = getattr(model, "main_input_name", None)
    if name in EXAMPLES and name in told.takes:
        return [name]
    return [each for each in EXAMPLES if each in told.takes and each not in READ_OFF][:1]


def without_default(takes: Mapping[str, inspect.Parameter]) -> list[str]:
    """Arguments that every call must give."""
    return [name for name in accepted(takes) if takes[name].default is inspect.Parameter.empty]


def towers(told: Told) -> list[str]:
    """Inputs of towers side by side, each with a config of its own: none of them computes anything without the others.

    Where the text has tokens that images or sounds come to stand for, a text does without them.
    """
    inside = getattr(told.config, "sub_configs", {})
    having = [kind for kind in TOWERS if any(name.startswith(kind) for name in inside)]
    stands = any(STANDS_FOR.fullmatch(name) for name in vars(told.config)) if having else False
    if "text" not in having or len(having) < 2 or stands:
        return []
    inputs = [next((name for name in TOWERS[kind] if name in told.takes), None) for kind in having]
    return [name for name in inputs if name is not None]


TOWERS = {
    "text": ("input_ids",),
    "vision": ("pixel_values", "pixel_values_videos"),
    "audio": ("input_values", "input_features"),
}
"""How the name of a tower's config begins → names of what it reads."""
STANDS_FOR = re.compile(r"\w*(image|video|vision|audio|speech|media)\w*_(id|index)")
"""Names in a config of a token that an image or a sound comes to stand for."""


def ids(told: Told) -> Made:
    """Token ids [batch seq]; before a decoder each text ends with the token that says so."""
    made = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    end = getattr(told.config, "eos_token_id", None)
    if isinstance(end, int) and getattr(told.config, "is_encoder_decoder", False):
        made[:, -1] = end
    return {"input_ids": made}


def decoder_ids(told: Told) -> Made:
    """What a decoder behind an encoder reads."""
    return {"decoder_input_ids": torch.zeros(BATCH, told.length, dtype=torch.int64)}


def mask(_: Told) -> Made:
    """Nothing of a text is padding."""
    return {"attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64)}


def pixels(told: Told) -> Made:
    """Images [batch channels height width] of the size that a config tells; with frames, as videos."""
    if "spatial_shapes" in told.takes:
        return patches(told)
    if told.found("num_frames") is not None:
        return {"pixel_values": frames(told)}
    return {"pixel_values": torch.zeros(BATCH, *image(told))}


def videos(told: Told) -> Made:
    """Videos [batch frames channels height width]."""
    return {"pixel_values_videos": frames(told)}


def frames(told: Told) -> Tensor:
    """Images in a row."""
    return torch.zeros(BATCH, told.number("num_frames", default=16), *image(told))


def image(told: Told) -> tuple[int, int, int]:
    """Channels, height and width of an image."""
    size = told.found("image_size", "crop_size") or SIDE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return told.number("num_channels", "in_channels", "in_chans", default=3), height, width


def patches(told: Told) -> Made:
    """Images as rows of patches, with how many there are each way."""
    across = math.isqrt(told.number("num_patches", default=256))
    numbers = told.number("num_channels", default=3) * told.number("patch_size", default=16) ** 2
    made = {"pixel_values": torch.zeros(BATCH, across**2, numbers)}
    if "pixel_attention_mask" in told.takes:
        made["pixel_attention_mask"] = torch.ones(BATCH, across**2, dtype=torch.int64)
    return {**made, "spatial_shapes": torch.full((BATCH, 2), across)}


def waves(told: Told) -> Made:
    """Sound [batch samples], a second at the usual rate; as spectra [batch frames bins] where a config has bins.

    Bins of a model that begins with convolutions over samples are those of what it speaks, not of what it hears.
    """
    bins = told.found("num_mel_bins")
    if bins is None or told.found("conv_stride") is not None:
        return {"input_values": torch.zeros(BATCH, SAMPLES)}
    return {"input_values": torch.zeros(BATCH, told.number("max_length", default=1024), bins)}


def spectra(told: Told) -> Made:
    """Spectra [batch frames bins]; [batch bins frames] of one length where a config tells how many come of it."""
    bins = told.number(*BINS, default=0)
    if not bins:
        return None
    longest = told.found("max_source_positions")
    if longest is None or told.found("num_mel_bins") is None or told.found("input_channels") is not None:
        return {"input_features": torch.zeros(BATCH, FRAMES, bins)}
    return {"input_features": torch.zeros(BATCH, bins, 2 * longest)}


BINS = ("feature_projection_input_dim", "num_mel_bins", "input_feat_per_channel", "feature_size")
"""What configs call the numbers of one frame of a spectrum."""

EXAMPLES: dict[str, Callable[[Told], Made]] = {
    "input_ids": ids,
    "pixel_values": pixels,
    "pixel_values_videos": videos,
    "input_values": waves,
    "input_features": spectra,
    "decoder_input_ids": decoder_ids,
    "attention_mask": mask,
    "spatial_shapes": patches,
}
"""Name of an argument → what makes it, with what goes with it, from what a model tells; None where it cannot."""
READ_OFF = frozenset(("decoder_input_ids", "attention_mask", "spatial_shapes"))
"""Those that come beside others, and are no model's main input."""
