"""Methods written out from the equations of their papers, as modules that stand in for the models' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    p_k: Tensor,
    p_v: Tensor,
    prefix_seen: Tensor | None = None,
) -> Tensor:
    """softmax(q [P_k; K]ᵀ / √d) [P_v; V]; `seen` [batch queries keys] says which tokens a query sees.

    `prefix_seen` [queries length] says the same of the prefix, where not all of it is seen.

    P_k and P_v are [kv_heads length width], or one for each row of the batch.
    Keys may have fewer heads than queries: query head i reads key head i // group.
    """
    heads, width = q.shape[1], q.shape[3]
    group = heads // k.shape[1]
    outputs = []
    for head in range(heads):
        own = head // group
        prefix_scores = q[:, head] @ p_k[..., own, :, :].transpose(-1, -2) / width**0.5
        if prefix_seen is not None:
            prefix_scores = prefix_scores.masked_fill(~prefix_seen, float("-inf"))
        token_scores = (q[:, head] @ k[:, own].transpose(1, 2) / width**0.5).masked_fill(~seen, float("-inf"))
        weights = torch.cat([prefix_scores, token_scores], -1).exp()
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)  # padding may see nothing at all
        length = p_k.shape[-2]
        outputs.append(weights[..., :length] @ p_v[..., own, :, :] + weights[..., length:] @ v[:, own])
    return torch.cat(outputs, -1)


@dataclass(frozen=True)
class Gate:
    """The mean over real tokens (or all) of σ(h · w + b): one number for each row of the batch."""

    w: Tensor
    b: Tensor
    real: Callable[[], Tensor] | None = None

    def __call__(self, h: Tensor) -> Tensor:
        """[batch] of h [batch seq d]."""
        each = torch.sigmoid((h * self.w).sum(-1) + self.b)
        if self.real is None:
            return each.mean(1)
        return torch.stack([row[kept].mean() for row, kept in zip(each, self.real().bool(), strict=True)])


def gated(gate: Gate | None, h: Tensor, p_k: Tensor, p_v: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of a prefix, times one gate of the hidden states if there is one."""
    if gate is None:
        return p_k, p_v
    factor = gate(h)[:, None, None, None]
    return factor * p_k, factor * p_v


@dataclass(frozen=True)
class Bottleneck:
    """scale · (ReLU(source W_dᵀ + b_d) W_uᵀ + b_u), of the input or of the output, and a gate before it."""

    tensors: Mapping[str, Tensor]
    scale: float
    parallel: bool
    gate: Gate | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to y."""
        source, own = x if self.parallel else y, self.tensors
        inner = (source @ own["down_w"].T + own["down_b"]).clamp(min=0)
        added = self.scale * (inner @ own["up_w"].T + own["up_b"])
        return added if self.gate is None else self.gate(source)[:, None, None] * added


class BertFeedForward(nn.Module):
    """In place of the encoder's output half of a feed-forward network; its residual is what went in."""

    def __init__(self, own: Any, added: Bottleneck) -> None:
        super().__init__()
        self.own, self.added = own, added

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        y = self.own.dense(hidden_states)
        out: Tensor = self.own.LayerNorm(y + self.added(input_tensor, y) + input_tensor)
        return out


class LlamaFeedForward(nn.Module):
    """In place of the decoder's feed-forward network."""

    def __init__(self, own: Any, added: Bottleneck) -> None:
        super().__init__()
        self.own, self.added = own, added

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.own(x)
        return y + self.added(x, y)


class GatedUpdate(nn.Module):
    """W x + b + gate(x) · B A x."""

    def __init__(self, own: nn.Linear, a: Tensor, b: Tensor, gate: Gate) -> None:
        super().__init__()
        self.own, self.a, self.b, self.gate = own, a, b, gate

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.own(x) + self.gate(x)[:, None, None] * (x @ self.a.T @ self.b.T)
        return out


class BertReference(nn.Module):
    """In place of the encoder's self attention."""

    def __init__(
        self, own: Any, p_k: Tensor, p_v: Tensor, padding: Callable[[], Tensor], gate: Gate | None = None
    ) -> None:
        super().__init__()
        self.own, self.p_k, self.p_v, self.padding, self.gate = own, p_k, p_v, padding, gate

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        batch, length, _d = hidden_states.shape
        heads = self.own.num_attention_heads

        def split(x: Tensor) -> Tensor:
            return x.view(batch, length, heads, -1).transpose(1, 2)

        q, k, v = (split(linear(hidden_states)) for linear in (self.own.query, self.own.key, self.own.value))
        seen = self.padding().bool()[:, None, :].expand(batch, length, length)
        return attend(q, k, v, seen, *gated(self.gate, hidden_states, self.p_k, self.p_v)), None


class LlamaReference(nn.Module):
    """In place of the decoder's self attention; tokens are rotated as `position_embeddings` say.

    `window` is how many tokens back a query sees, with itself; the prefix falls out of it if it `slides`.
    """

    def __init__(
        self,
        own: Any,
        p_k: Tensor,
        p_v: Tensor,
        padding: Callable[[], Tensor],
        gate: Gate | None = None,
        *,
        window: int = 1000,
        slides: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.slides = window, slides
        self.own, self.p_k, self.p_v, self.padding, self.gate = own, p_k, p_v, padding, gate

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        batch, length, _d = hidden_states.shape
        width = self.own.head_dim
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)

        def split(x: Tensor) -> Tensor:
            return x.view(batch, length, -1, width).transpose(1, 2)

        def rotate(x: Tensor) -> Tensor:
            half = width // 2
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        q = rotate(split(self.own.q_proj(hidden_states)))
        k = rotate(split(self.own.k_proj(hidden_states)))
        v = split(self.own.v_proj(hidden_states))
        places = torch.arange(length)
        seen = (places[None, :] <= places[:, None])[None] & self.padding().bool()[:, None, :]
        seen = seen & (places[:, None] - places[None, :] < self.window)
        p_k, p_v = gated(self.gate, hidden_states, self.p_k, self.p_v)
        before = torch.arange(-p_k.shape[-2], 0)
        prefix_seen = places[:, None] - before[None, :] < self.window if self.slides else None
        out: Tensor = self.own.o_proj(attend(q, k, v, seen, p_k, p_v, prefix_seen))
        return out, None
