"""The architectures: types of configs, and the model classes that the library's tables name for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.models import shaken
from tests.zoo.configs import shrunk

NAMES = """
gpt2 opt bloom gpt_neox gptj gpt_neo gpt_bigcode codegen falcon mpt llama mistral mixtral qwen2
qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 olmo2 granite cohere smollm3 starcoder2
stablelm glm deepseek_v3 mamba jamba biogpt xglm bert roberta xlm-roberta electra albert
distilbert deberta deberta-v2 modernbert mpnet esm t5 mt5 bart mbart pegasus marian whisper vit
dinov2 clip_vision_model beit swin wav2vec2
"""
THE_57 = tuple(NAMES.split())
"""The architectures that every change is measured on."""


@dataclass(frozen=True)
class Entry:
    """One architecture: the type of its config, and a model class of one of the library's tables."""

    model_type: str
    class_name: str
    table: str

    def config(self, **changes: Any) -> Any:
        """Its small config."""
        from transformers import CONFIG_MAPPING

        return shrunk(CONFIG_MAPPING[self.model_type], **changes)

    def model(self, seed: int = 0, **changes: Any) -> Any:
        """A tiny model with random weights, in evaluation mode."""
        import transformers
        from transformers import CONFIG_MAPPING

        torch.manual_seed(seed)
        if self.table == "causal" and hasattr(CONFIG_MAPPING[self.model_type](), "is_decoder"):
            changes = {"is_decoder": True, **changes}
        kind, config = getattr(transformers, self.class_name), self.config(**changes)
        try:
            made = kind(config).eval()
        except AttributeError:  # a decoder whose table names the config of a larger model that has it
            made = kind(config.get_text_config(decoder=True)).eval()
        for held in (made.config, made.config.get_text_config()):
            if getattr(held, "pad_token_id", 0) is None:
                held.pad_token_id = 1  # who classifies a text looks for its last token
        generation = getattr(made, "generation_config", None)
        if generation is not None and getattr(made.config, "is_encoder_decoder", False):
            generation.decoder_start_token_id = generation.decoder_start_token_id or 0
            generation.forced_eos_token_id = None
        return shaken(made)


TABLES = {
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "clip": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "classifier": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
}
"""Name of a kind of model → the library's table of its classes, in the order in which one is looked for."""

ENCODERS = frozenset(("bert", "roberta", "xlm-roberta", "electra"))  # whose causal class is a by-product


def table(name: str) -> Mapping[str, Any]:
    """Type of config → class, of one kind of model."""
    from transformers.models.auto import modeling_auto

    held: Mapping[str, Any] = getattr(modeling_auto, TABLES[name])
    return held


def entry(model_type: str, kind: str | None = None) -> Entry:
    """The architecture of a type of config, as its main kind of model or a given one."""
    kinds = [kind] if kind else (["masked"] if model_type in ENCODERS else list(TABLES))
    for each in kinds:
        found = table(each).get(model_type)
        if found is not None:
            return Entry(model_type, found[0] if isinstance(found, tuple) else found, each)
    raise KeyError(f"transformers has no {kind or 'model'} of type {model_type}")


def entries() -> Iterator[Entry]:
    """Every entry of every table but the last, each class once."""
    seen = set()
    for kind in list(TABLES)[:-1]:
        for model_type in table(kind):
            found = entry(model_type, kind)
            if found.class_name not in seen:
                seen.add(found.class_name)
                yield found
