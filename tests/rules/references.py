"""Attention with a prefix, written out from the equation of the paper; stands in for the models' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, p_k: Tensor, p_v: Tensor) -> Tensor:
    """softmax(q [P_k; K]ᵀ / √d) [P_v; V]; `seen` [batch queries keys] says which tokens a query sees.

    Keys may have fewer heads than queries: query head i reads key head i // group.
    """
    heads, width = q.shape[1], q.shape[3]
    group = heads // k.shape[1]
    outputs = []
    for head in range(heads):
        own = head // group
        prefix_scores = q[:, head] @ p_k[own].T / width**0.5
        token_scores = (q[:, head] @ k[:, own].transpose(1, 2) / width**0.5).masked_fill(~seen, float("-inf"))
        weights = torch.cat([prefix_scores, token_scores], -1).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        length = p_k.shape[1]
        outputs.append(weights[..., :length] @ p_v[own] + weights[..., length:] @ v[:, own])
    return torch.cat(outputs, -1)


class BertReference(nn.Module):
    """In place of the encoder's self attention."""

    def __init__(self, own: Any, p_k: Tensor, p_v: Tensor, padding: Callable[[], Tensor]) -> None:
        super().__init__()
        self.own, self.p_k, self.p_v, self.padding = own, p_k, p_v, padding

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        batch, length, _d = hidden_states.shape
        heads = self.own.num_attention_heads

        def split(x: Tensor) -> Tensor:
            return x.view(batch, length, heads, -1).transpose(1, 2)

        q, k, v = (split(linear(hidden_states)) for linear in (self.own.query, self.own.key, self.own.value))
        seen = self.padding().bool()[:, None, :].expand(batch, length, length)
        return attend(q, k, v, seen, self.p_k, self.p_v), None


class LlamaReference(nn.Module):
    """In place of the decoder's self attention; tokens are rotated as `position_embeddings` say."""

    def __init__(self, own: Any, p_k: Tensor, p_v: Tensor, padding: Callable[[], Tensor]) -> None:
        super().__init__()
        self.own, self.p_k, self.p_v, self.padding = own, p_k, p_v, padding

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
        out: Tensor = self.own.o_proj(attend(q, k, v, seen, self.p_k, self.p_v))
        return out, None
