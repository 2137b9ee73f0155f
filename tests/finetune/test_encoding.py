"""Padding, masked labels, blocks and the order of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftc.errors import DataError
from peftc.finetune.encoding import Collator, Encoded, batches_by_length, encode_blocks
from peftc.finetune.sampling import LengthGrouped


class Letters:
    """A tokenizer of single letters, whose end-of-text is 0."""

    eos_token_id = 0

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_padding_has_no_label_though_its_token_is_a_real_one() -> None:
    collator = Collator(pad_token_id=7, labels_from_inputs=True)
    examples = [
        {"input_ids": [5, 7, 6], "attention_mask": [1, 1, 1]},
        {"input_ids": [7], "attention_mask": [1]},
    ]
    batch = collator(examples)
    assert batch["input_ids"].tolist() == [[5, 7, 6], [7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 7, 6], [7, -100, -100]]


def test_padding_goes_to_the_tokenizers_side() -> None:
    collator = Collator(pad_token_id=9, pad_left=True)
    examples = [{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": 1}]
    examples += [{"input_ids": [3], "attention_mask": [1], "labels": 0}]
    batch = collator(examples)
    assert batch["input_ids"].tolist() == [[1, 2], [9, 3]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64


def test_blocks_hold_every_token_once() -> None:
    blocks = encode_blocks(Letters(), ["abc", "de"], block_size=4)
    assert [block["input_ids"] for block in blocks.examples] == [[97, 98, 99, 0], [100, 101]]
    # A block of a single token predicts nothing.
    assert len(encode_blocks(Letters(), ["abcde"], block_size=4)) == 1
    with pytest.raises(DataError, match="fewer than two tokens"):
        encode_blocks(Letters(), ["a"], block_size=4)


def test_batches_by_length_cover_everything_once() -> None:
    encoded = Encoded(tuple({"input_ids": [0] * length} for length in (1, 5, 3, 5, 2)))
    assert list(batches_by_length(encoded, 2)) == [[1, 3], [2, 4], [0]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [index % 17 + 1 for index in range(103)]
    sampler = LengthGrouped(lengths, batch_size=4, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(103))
    assert first == list(LengthGrouped(lengths, batch_size=4, seed=3))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert sorted(second) == list(range(103))
    widest = [
        max(lengths[i] for i in first[s : s + 4]) - min(lengths[i] for i in first[s : s + 4])
        for s in range(0, 100, 4)
    ]
    assert max(widest) <= 2
