"""A classifier on the mean of an encoder's last hidden states: the natural head of a model trained with mean
pooling.

Plain PyTorch without a data-dependent branch, so that any tracer can capture it; decides nothing about
training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput


def masked_mean(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean over real tokens.

    hidden: [batch seq d], attention_mask: [batch seq] of 0 and 1; returns [batch d].
    """
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


class MeanPooledClassifier(nn.Module):
    """encoder → mean over real tokens → linear `head`; cross-entropy where labels are given."""

    def __init__(self, encoder: nn.Module, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden_size, num_labels)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """input_ids, attention_mask, token_type_ids: int64 [batch seq]; labels: int64 [batch]; logits: [batch
        labels].
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra)
        logits = self.head(masked_mean(encoded.last_hidden_state, attention_mask))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """What Trainer calls; the encoder does it."""
        self.encoder.activation_checkpointing_enable(**options)  # type: ignore[operator]

    def activation_checkpointing_disable(self) -> None:
        """The way back."""
        self.encoder.activation_checkpointing_disable()  # type: ignore[operator]
