"""A tiny encoder with random weights, its tokenizer and some reviews, made in a temporary folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

WORDS = ["good", "fine", "great", "bad", "poor", "dull", "film", "story", "the", "a", "very", "is"]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as transformers writes it: 2 layers, d 16, a WordPiece vocabulary of a dozen words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,  # words far enough apart to be told in a few steps
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """64 rows of 8 movies, whose label is plain from one word."""
    path = tmp_path / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "movie"])
        for index in range(64):
            word = WORDS[index % 6]
            text = " ".join(["the film is", *["very"] * (index % 4), word])
            writer.writerow([text, "fresh" if index % 6 < 3 else "rotten", f"movie {index // 8}"])
    return path
