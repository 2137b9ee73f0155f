"""Equations of methods that put something behind, beside or in front: plain torch, on the tensors of a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.rules.test_p_tuning import network_by_hand

Held = Mapping[str, Tensor]
"""The parameters of a rule at one place, by their names in the rule."""
ACTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


def attention(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(s q [P_k; K]ᵀ + c) [P_v; V], for models to call in place of their own.

    c is what the model adds to its scores; a key in front gets the largest that its query has.
    """
    assert not dropout
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    added = q.new_zeros(1, 1, q.shape[2], k.shape[2])
    for each in (mask, position_bias):
        added = added if each is None else added + each
    scores, values = [scale * q @ k.transpose(-1, -2) + added], [v]
    for front in getattr(module, "fronts", ()):
        p_k, p_v = (each.repeat_interleave(group, -3).expand(len(q), -1, -1, -1) for each in front())
        scores.insert(0, scale * q @ p_k.transpose(-1, -2) + added.amax(-1, True))
        values.insert(0, p_v)
    out = torch.softmax(torch.cat(scores, -1), -1) @ torch.cat(values, 2)
    return out.transpose(1, 2), None


def register() -> None:
    """Under the name `written_out`, with masks that are always numbers to add."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("written_out", attention)
    AttentionMaskInterface.register("written_out", eager_mask)


def plain(held: Held, *labels: str) -> dict[str, Tensor]:
    """Without the labels of the parts of a composite."""
    found = {}
    for name, tensor in held.items():
        label = next((each for each in labels if name.startswith(each)), "")
        found[name.removeprefix(label)] = tensor
    return found


def two_layers(x: Tensor, held: Held, act: Callable[[Tensor], Tensor]) -> Tensor:
    """W_u f(W_d x + b_d) + b_u."""
    return act(x @ held["down_w"].T + held["down_b"]) @ held["up_w"].T + held["up_b"]


def fusion(y: Tensor, held: Held) -> Tensor:
    """Σ_n softmax_n((Q y)·(K z_n)) V z_n over adapters z_n of y."""
    each = [
        two_layers(y, {name: held[name][n] for name in ("down_w", "down_b", "up_w", "up_b")}, functional.relu)
        for n in range(len(held["down_w"]))
    ]
    scores = torch.stack([((y @ held["query"].T) * (z @ held["key"].T)).sum(-1) for z in each])
    shares = torch.softmax(scores, 0)
    return sum(
        (share[..., None] * (z @ held["value"].T) for share, z in zip(shares, each, strict=True)),
        y.new_zeros(()),
    )


def fronts(name: str, options: Mapping[str, Any]) -> Callable[[Held], tuple[Tensor, ...]]:
    """The keys and values of a prefix, [heads length width] each."""
    if name == "prefix_mlp" or options.get("encoder") == "mlp":

        def made(held: Held) -> tuple[Tensor, ...]:
            inner = torch.tanh(held["P"] @ held["W"].T + held["b"])
            return tuple(
                torch.stack(
                    [inner @ w.T + b for w, b in zip(held[f"W_{part}"], held[f"b_{part}"], strict=True)]
                )
                for part in "kv"
            )

        return made
    return lambda held: (held["P_k"], held["P_v"])


ROWS: Mapping[str, Callable[[Held, Mapping[str, Any]], Tensor]] = {
    "prompt": lambda held, _: held["P"],
    "p_tuning": lambda held, options: network_by_hand(dict(held), str(options["network"])),
}
"""The rows in front of the embedded tokens, [rows d]."""
