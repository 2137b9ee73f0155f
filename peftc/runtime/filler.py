"""A token id that means nothing special, for rows whose embedded values are put in by rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def filler_of(root: nn.Module) -> int:
    """The least token id that a model gives no meaning of its own: neither padding nor a mark."""
    special = {module.padding_idx for module in root.modules() if isinstance(module, nn.Embedding)}
    config = getattr(root, "config", None)
    if config is not None:
        special |= set(marks(config.to_dict()))
    return next(number for number in range(len(special) + 1) if number not in special)


def marks(settings: Mapping[str, Any]) -> Iterator[int]:
    """Every id of a token that a config names, in whatever part of it."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from marks({str(key): item for key, item in value.items()})
        elif "token" in name or name.endswith("_id"):
            yield from (
                each
                for each in (value if isinstance(value, (list, tuple)) else (value,))
                if isinstance(each, int)
            )
