"""What the arguments of a forward are by their names, where they come in step with its tokens. Reads no tensor.

Names are all there is to tell by, before a call is captured: transformers' models share them, and other models that
want rows put in front of what they read must use the same words.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["ids", "rows", "mask", "places", "types", "targets", "points"]
"""Of one argument: token ids [… seq]; rows [… seq d]; a mask [… seq], whole numbers that say where tokens stand, or of
which type they are; what each token is trained on; numbers or counts of tokens [batch …]."""

KINDS: tuple[tuple[str, Kind], ...] = (
    (r"embeds\Z", "rows"),
    (r"mask\Z", "mask"),
    (r"(start|end)_positions\Z|\Alogits_to_keep\Z|\Alengths\Z|\Amc_token_ids\Z", "points"),
    (r"position(_ids|s)?\Z", "places"),
    (r"type_ids\Z|segment|langs\Z|\Abbox\Z", "types"),
    (r"labels\Z|targets\Z", "targets"),
    (r"ids\Z|tokens\Z", "ids"),
)


def kind_of(name: str) -> Kind | None:
    """What an argument is, or None."""
    return next((kind for pattern, kind in KINDS if re.search(pattern, name)), None)


def is_decoders(name: str) -> bool:
    """Whether an argument belongs to the decoder of a model that has an encoder too."""
    return name.startswith("decoder_") or kind_of(name) == "targets"


def is_encoders(name: str) -> bool:
    """Whether an argument of a decoder tells of an encoder's output."""
    return name.startswith("encoder_")


def is_next_calls(name: str) -> bool:
    """Whether a result, by its name in an output, is there to be given to a next call: a cache, an encoder's output."""
    return "past" in name or "cache" in name or name.startswith("encoder")
