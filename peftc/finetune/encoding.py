"""Records → token ids → padded batches, and running text → blocks for causal language modelling.

Never shortens silently: how many texts were cut is counted and handed back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from peftc.errors import DataError

IGNORED_LABEL = -100  # what cross-entropy skips

Example = dict[str, Any]


@dataclass(frozen=True)
class Encoded(Dataset[Example]):
    """Token lists by input name, with the label where there is one.

    `cut` counts texts longer than the limit.
    """

    examples: tuple[Example, ...]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example["input_ids"]) for example in self.examples]


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int] | None,
    input_names: Sequence[str],
    max_length: int,
) -> Encoded:
    """Each text as its own example, cut at `max_length` tokens.

    Raises DataError for a text that has no token.
    """
    whole = tokenizer(list(texts), truncation=False, add_special_tokens=True, verbose=False)["input_ids"]
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    examples = []
    for index in range(len(texts)):
        example: Example = {name: list(encoded[name][index]) for name in input_names}
        if not example["input_ids"]:
            raise DataError(
                f"the tokenizer finds no token in text {index + 1}", detail=(repr(texts[index][:90]),)
            )
        if labels is not None:
            example["labels"] = labels[index]
        examples.append(example)
    return Encoded(tuple(examples), cut=sum(len(ids) > max_length for ids in whole))


def encode_blocks(tokenizer: Any, documents: Sequence[str], block_size: int) -> Encoded:
    """The documents end to end (an end-of-text token between them), cut into blocks of `block_size` tokens.

    The last block may be shorter: the collator pads it, and padding has no label.
    """
    ids: list[int] = []
    for document in documents:
        if ids and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        ids.extend(tokenizer(document, verbose=False)["input_ids"])
    blocks = [ids[start : start + block_size] for start in range(0, len(ids), block_size)]
    if blocks and len(blocks[-1]) < 2:  # nothing to predict in a single token
        blocks.pop()
    if not blocks:
        raise DataError("the data has fewer than two tokens", hint="use a longer text")
    return Encoded(tuple({"input_ids": block, "attention_mask": [1] * len(block)} for block in blocks))


@dataclass(frozen=True)
class Collator:
    """Pads a batch to its longest example. With `labels_from_inputs`, every real token is also a label."""

    pad_token_id: int
    pad_left: bool = False
    labels_from_inputs: bool = False

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors int64 [batch seq] for each input, labels int64 [batch] or [batch seq]."""
        width = max(len(example["input_ids"]) for example in examples)
        batch: dict[str, torch.Tensor] = {}
        for name in examples[0]:
            values = [example[name] for example in examples]
            if not isinstance(values[0], list):
                batch[name] = torch.tensor(values, dtype=torch.int64)
                continue
            fill = self.pad_token_id if name == "input_ids" else 0
            batch[name] = torch.tensor(
                [self.padded(value, width, fill) for value in values], dtype=torch.int64
            )
        if self.labels_from_inputs:
            # By the mask, not by the token: the padding token is often the end-of-text token, which is a real
            # label.
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
        return batch

    def padded(self, values: list[int], width: int, fill: int) -> list[int]:
        """The list at the batch's width."""
        padding = [fill] * (width - len(values))
        return padding + values if self.pad_left else values + padding


def collator_for(tokenizer: Any, *, labels_from_inputs: bool = False) -> Collator:
    """A collator with the tokenizer's padding token (else its end-of-text token, else 0) and side."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Collator(pad if pad is not None else 0, tokenizer.padding_side == "left", labels_from_inputs)


def batches_by_length(encoded: Encoded, batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: the fewest padding tokens, in a fixed order."""
    lengths = encoded.lengths
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
