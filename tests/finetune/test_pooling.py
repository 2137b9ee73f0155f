"""The mean-pooled head against a computation by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertModel

from peftc.finetune.pooling import MeanPooledClassifier


def test_logits_and_loss_equal_a_hand_computation(tiny_encoder: Path) -> None:
    torch.manual_seed(0)
    encoder = BertModel.from_pretrained(tiny_encoder).eval()
    model = MeanPooledClassifier(encoder, 16, 3).eval()
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, labels=labels)
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = []
    for row, length in zip(hidden, (4, 3), strict=True):
        mean = sum(row[position] for position in range(length)) / length
        expected.append(model.head.weight @ mean + model.head.bias)
    logits = torch.stack(expected).detach()
    torch.testing.assert_close(result.logits, logits)
    probabilities = logits.softmax(dim=-1)
    torch.testing.assert_close(result.loss, -(probabilities[0, 2].log() + probabilities[1, 0].log()) / 2)


def test_padding_changes_nothing(tiny_encoder: Path) -> None:
    model = MeanPooledClassifier(BertModel.from_pretrained(tiny_encoder), 16, 2).eval()
    with torch.no_grad():
        short = model(input_ids=torch.tensor([[2, 7, 3]]), attention_mask=torch.ones(1, 3, dtype=torch.int64))
        padded_mask = torch.tensor([[1, 1, 1, 0, 0]])
        padded = model(input_ids=torch.tensor([[2, 7, 3, 0, 0]]), attention_mask=padded_mask)
    torch.testing.assert_close(short.logits, padded.logits)


def test_it_exports_without_a_data_dependent_branch(tiny_encoder: Path) -> None:
    model = MeanPooledClassifier(BertModel.from_pretrained(tiny_encoder), 16, 2).eval()
    ids = torch.zeros(2, 8, dtype=torch.int64)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.zeros(2, dtype=torch.int64),
    }
    program = torch.export.export(model, (), inputs, strict=False)
    assert any(node.target is torch.ops.aten.linear.default for node in program.graph.nodes)
