"""Arguments of a call, by what a model's forward takes and what its config says of their sizes."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entries import table
from tests.zoo.sizes import PIXELS, WORDS

SAMPLES, FRAMES = 3200, 64

CODES_IN_ROWS = ("musicgen_decoder", "musicgen_melody_decoder")
"""Where each example has a row of ids for each of its codebooks."""
CODES_IN_COLUMNS = {"kyutai_speech_to_text": 1, "dia": 0}
"""Where each token has an id for each of its codebooks, and so many more of text."""
STACKED = {"granite_speech5_ctc": 4}
"""Where so many frames of a spectrum lie in one step."""


def inputs(model: nn.Module, batch: int = 2, length: int = 12, seed: int = 5) -> dict[str, Any]:
    """Arguments of a call, by what the model and its config say they take; `length` counts tokens."""
    drawer = Drawer(model, batch, length, seed)
    takes, config = inspect.signature(model.forward).parameters, drawer.config
    texts = "input_ids" in takes
    both = type(model).__name__ in table("clip").values()
    given: dict[str, Any] = {}
    if "spatial_shapes" in takes:
        given |= drawer.patches()
    elif "pixel_values" in takes and (both or not texts):
        given["pixel_values"] = drawer.pixels()
    if "pixel_values_videos" in takes and both:
        given["pixel_values_videos"] = drawer.videos()
    if "input_values" in takes and not texts:
        given["input_values"] = drawer.waves()
    if "input_features" in takes and "input_values" not in takes and not texts:
        given["input_features"] = drawer.spectra()
    if hasattr(config, "audio_length_per_tok"):  # what is heard lies under what is said
        bins = drawer.told("num_mel_bins", default=80)
        given["input_features"] = drawer.reals(bins, length * config.audio_length_per_tok)
    if texts:
        given["input_ids"] = drawer.ids() if config.model_type == "dia" else drawer.codes()
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        given["decoder_input_ids"] = drawer.codes()
    return given


class Drawer:
    """Draws the arguments of one call, of sizes that a model's config tells."""

    def __init__(self, model: nn.Module, batch: int, length: int, seed: int) -> None:
        self.config: Any = model.config
        self.batch, self.length = batch, length
        self.generator = torch.Generator().manual_seed(seed)

    def told(self, *names: str, default: int) -> int:
        """The first of these numbers that the config has, or a config inside it."""
        inside = [getattr(self.config, sub) for sub in getattr(self.config, "sub_configs", {})]
        for name in names:
            for place in (self.config, *inside):
                held = getattr(place, name, None)
                if isinstance(held, (list, tuple)):
                    held = held[0]
                if isinstance(held, int):
                    return held
        return default

    def has(self, name: str) -> bool:
        """Whether the config itself has an attribute."""
        return name in vars(self.config)

    def reals(self, *sizes: int) -> Tensor:
        """Noise."""
        return torch.randn(self.batch, *sizes, generator=self.generator)

    def words(self, *sizes: int) -> Tensor:
        """Any words but those at the ends of the vocabulary, which mean something."""
        most = min(WORDS, self.told("vocab_size", default=WORDS)) - 1
        return torch.randint(4, most, sizes, generator=self.generator)

    def ids(self) -> Tensor:
        """A batch of texts; of an encoder and decoder each ends with the word that says so."""
        drawn = self.words(self.batch, self.length)
        end = getattr(self.config, "eos_token_id", None)
        if isinstance(end, int) and getattr(self.config, "is_encoder_decoder", False):
            drawn[:, -1] = end
        return drawn

    def codes(self) -> Tensor:
        """What a decoder takes: a batch of texts, or of codes where it speaks or sings in several at once."""
        kind = self.config.model_type
        books = self.told("num_codebooks", "num_channels", default=1)
        if kind in CODES_IN_ROWS:
            return self.words(self.batch * books, self.length)
        if kind in CODES_IN_COLUMNS:
            return self.words(self.batch, self.length, books + CODES_IN_COLUMNS[kind])
        return self.ids()

    def pixels(self) -> Tensor:
        """Images [batch channels height width]."""
        side = self.told("image_size", default=PIXELS)
        return self.reals(self.told("num_channels", default=3), side, side)

    def videos(self) -> Tensor:
        """Videos [batch frames channels height width]."""
        side = self.told("image_size", default=PIXELS)
        frames, channels = self.told("num_frames", default=4), self.told("num_channels", default=3)
        return self.reals(frames, channels, side, side)

    def patches(self) -> dict[str, Tensor]:
        """Images as rows of patches, with how many there are each way."""
        count, side = self.told("num_patches", default=16), self.told("patch_size", default=8)
        across = math.isqrt(count)
        return {
            "pixel_values": self.reals(count, self.told("num_channels", default=3) * side * side),
            "pixel_attention_mask": torch.ones(self.batch, count, dtype=torch.long),
            "spatial_shapes": torch.full((self.batch, 2), across, dtype=torch.long),
        }

    def waves(self) -> Tensor:
        """Sound [batch samples], or its spectrum [batch frames bins] where nothing makes one of it."""
        if self.has("num_mel_bins") and not self.has("conv_stride"):
            return self.reals(self.told("max_length", default=FRAMES), self.told("num_mel_bins", default=16))
        return self.reals(SAMPLES)

    def spectra(self) -> Tensor:
        """Spectra [batch frames bins], or [batch bins frames] where all are of one length."""
        bins = self.told(
            "feature_projection_input_dim",
            "num_mel_bins",
            "input_feat_per_channel",
            "feature_size",
            default=80,
        )
        if self.has("max_source_positions") and self.has("num_mel_bins") and not self.has("input_channels"):
            return self.reals(bins, 2 * self.config.max_source_positions)
        return self.reals(FRAMES, bins * STACKED.get(self.config.model_type, 1))
