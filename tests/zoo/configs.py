"""A small config of a config class, by what its attributes are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.sizes import CHANGES, DRAWS, HEADS, LAYERS, small

LEFT_ALONE = ("architectures", "model_type", "transformers_version", "layer_types")


def shrunk(kind: Any, **changes: Any) -> Any:
    """A small config of a config class, by the names of its attributes; `changes` are as they are given."""
    given = kind()
    smaller: dict[str, Any] = {}
    for name, held in given.to_dict().items():
        if name.startswith("_") or name in LEFT_ALONE:
            continue
        if name in getattr(given, "sub_configs", {}):
            inner = getattr(given, name)
            if inner is not None:
                smaller[name] = shrunk(type(inner)).to_dict()
            continue
        value = small(name, held)
        if value is not held and value != held:
            smaller[name] = value
    if "kv_lora_rank" in smaller and "num_key_value_heads" in smaller:
        smaller["num_key_value_heads"] = HEADS  # latent attention has as many key heads as query heads
    smaller |= one_layer_of_each_kind(given, smaller)
    smaller |= {name: off for name, off in DRAWS.items() if hasattr(given, name)}
    return kind(**with_changes(with_changes(smaller, CHANGES.get(given.model_type, {})), changes))


def one_layer_of_each_kind(given: Any, smaller: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a config have a layer of each kind that its defaults have; nothing where they are of one kind."""
    kinds = list(dict.fromkeys(getattr(given, "layer_types", None) or ()))
    if len(kinds) < 2:
        return {}
    count = max(LAYERS, len(kinds))
    layered = {"num_hidden_layers": count, "layer_types": (kinds * LAYERS)[:count]}
    try:
        type(given)(**{**smaller, **layered})
    except Exception:  # noqa: BLE001 - a config may make its layers' kinds of something else
        return {}
    return layered


def with_changes(smaller: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with some changed; of a config inside a config, only those that are named."""
    inside = {
        name: {**smaller[name], **change}
        for name, change in changes.items()
        if isinstance(change, Mapping) and isinstance(smaller.get(name), Mapping)
    }
    return {**smaller, **changes, **inside}
