"""Calls that peftc makes for models that come without one: which arguments, and of which sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.capture.examples import example_arguments
from peftc.errors import CaptureError
from tests.zoo import entry


def sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name of each argument that is made → its sizes."""
    return {name: tuple(value.shape) for name, value in example_arguments(model, None).items()}


class TextAndImage(nn.Module):
    """Takes a text and an image, as models of two towers do and as models that put images into texts do."""

    main_input_name = "input_ids"

    def __init__(self, **more: Any) -> None:
        super().__init__()
        towers = {"text_config": SimpleNamespace(), "vision_config": SimpleNamespace(image_size=[8, 12])}
        self.config = SimpleNamespace(sub_configs=towers, **towers, **more)
        self.table = nn.Embedding(9, 4)

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        """What both have in common."""
        rows: Tensor = self.table(input_ids)
        if pixel_values is None:
            raise ValueError("where is the image?")
        return rows * pixel_values.mean()


def test_towers_side_by_side_each_get_what_they_read() -> None:
    model = entry("clip", "clip").model()
    assert sizes(model) == {"input_ids": (2, 23), "pixel_values": (2, 3, 64, 64)}
    roots = {site.path.partition(".")[0] for site in peftc.sites(model)}
    assert {"text_model", "vision_model"} <= roots
    assert sizes(TextAndImage()) == {"input_ids": (2, 23), "pixel_values": (2, 3, 8, 12)}


def test_a_text_that_has_tokens_for_images_does_without() -> None:
    assert sizes(TextAndImage(image_token_index=3)) == {"input_ids": (2, 23)}


def test_a_call_that_cannot_be_captured_says_what_it_lacked() -> None:
    with pytest.raises(CaptureError, match="where is the image") as caught:
        peftc.sites(TextAndImage(image_token_index=3))
    assert "called with input_ids [2, 23]; forward also takes pixel_values" in str(caught.value)
    assert "example_inputs" in str(caught.value)
    assert "--inputs" in str(caught.value)
    with pytest.raises(CaptureError) as own:  # who gave the call knows what it was
        peftc.sites(TextAndImage(), {"input_ids": torch.zeros(2, 5, dtype=torch.int64)})
    assert "forward also takes" not in str(own.value)


class Required(nn.Module):
    """Takes two arguments that have no default."""

    def forward(self, input_ids: Tensor, weather: Tensor, mood: Tensor | None = None) -> Tensor:
        """Their sum."""
        return input_ids + weather if mood is None else mood


def test_an_argument_that_nothing_is_known_of_is_named() -> None:
    with pytest.raises(CaptureError, match="no example of weather can be made") as caught:
        peftc.sites(Required())
    assert "--inputs" in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "table", "want"),
    [
        ("resnet", "image", {"pixel_values": (2, 3, 224, 224)}),  # takes images of any size
        ("siglip", "image", {"pixel_values": (2, 3, 64, 64)}),  # the size stands in a config inside
        (
            "siglip2",
            "image",
            {"pixel_values": (2, 16, 192), "pixel_attention_mask": (2, 16), "spatial_shapes": (2, 2)},
        ),
        ("videomae", "base", {"pixel_values": (2, 16, 3, 64, 64)}),
        ("blip-2", "clip", {"pixel_values": (2, 3, 64, 64), "input_ids": (2, 23)}),  # neither has a default
        ("perceiver", "masked", {"input_ids": (2, 23)}),  # its main input stands for any of several
        ("speech_to_text", "speech", {"input_features": (2, 96, 16), "decoder_input_ids": (2, 19)}),
        ("whisper", "speech", {"input_features": (2, 16, 256), "decoder_input_ids": (2, 19)}),
        ("speecht5", "speech", {"input_values": (2, 16000), "decoder_input_ids": (2, 19)}),
        # the end of a text is looked for where the encoder has it
        ("bart", "classifier", {"input_ids": (2, 23), "decoder_input_ids": (2, 23)}),
        ("bart", "seq2seq", {"input_ids": (2, 23), "decoder_input_ids": (2, 19)}),
    ],
)
def test_arguments_and_sizes(model_type: str, table: str, want: dict[str, tuple[int, ...]]) -> None:
    model = entry(model_type, table).model()
    assert sizes(model) == want
    with torch.no_grad():
        model(**example_arguments(model, None))
