"""Numbers of channels, laid over each other: what a value is made of, place by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from peftc.graphs.reading import shape

Layers = tuple[Tensor, ...]
"""Numbers in a value's shape: token · channels + channel, -1 where it is made of none; a sum has several such."""


def channels_of(held: Mapping[fx.Node, Layers]) -> dict[fx.Node, Tensor]:
    """The numbers of the channels in some layers, of each origin, counting up."""
    found = {}
    for origin, layers in held.items():
        count = shape(origin)[-1]
        met = torch.zeros(count + 1, dtype=torch.bool)  # the last stands for none
        for layer in layers:
            met[torch.where(layer < 0, count, layer % count).flatten()] = True
        numbers = met[:count].nonzero().flatten()
        if len(numbers):
            found[origin] = numbers
    return found


def laid_all(pairs: Iterable[tuple[fx.Node, Layers]]) -> dict[fx.Node, Layers]:
    """The layers of each origin among some that were told apart."""
    result: dict[fx.Node, Layers] = {}
    for origin, layers in pairs:
        for layer in layers:
            result[origin] = laid(result.get(origin, ()), layer)
    return result


def laid(layers: Layers, new: Tensor) -> Layers:
    """Some layers and one more, which is put into one of them where that has no other channels at its places."""
    for place, layer in enumerate(layers):
        if bool(((layer == new) | (layer < 0) | (new < 0)).all()):
            return (*layers[:place], torch.maximum(layer, new), *layers[place + 1 :])
    return (*layers, new)


def rows_of(numbers: Tensor, d_out: int) -> tuple[tuple[int, int], ...] | None:
    """Channel numbers, which count up, as ranges; None where they are all of them."""
    if len(numbers) == d_out:
        return None
    breaks = (numbers[1:] - numbers[:-1] != 1).nonzero().flatten().tolist()
    starts = [0, *[position + 1 for position in breaks]]
    stops = [*[position + 1 for position in breaks], len(numbers)]
    return tuple((int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, stops, strict=True))
