"""Tiny random models of every architecture that transformers has, made from its config classes.

Nothing here is written for an architecture: a config is shrunk by what its attributes are called, and a model is
the class that the library's own tables name for it. Trains nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import shaken

NAMES = """
gpt2 opt bloom gpt_neox gptj gpt_neo gpt_bigcode codegen falcon mpt llama mistral mixtral qwen2
qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 olmo2 granite cohere smollm3 starcoder2
stablelm glm deepseek_v3 mamba jamba biogpt xglm bert roberta xlm-roberta electra albert
distilbert deberta deberta-v2 modernbert mpnet esm t5 mt5 bart mbart pegasus marian whisper vit
dinov2 clip_vision_model beit swin wav2vec2
"""
THE_57 = tuple(NAMES.split())
"""The architectures that every change is measured on."""

WORDS, WIDTH, HEADS, LAYERS, PIXELS = 97, 32, 4, 2, 64

# What an attribute is called → how small it becomes. The first that matches counts.
SIZES: tuple[tuple[str, Any], ...] = (
    (r"max_position_embeddings|n_positions|max_seq_len|max_(source|target)_positions|n_ctx|seq_length|context_length", 128),
    (r"(.*_)?vocab_size(_\w+)?|entity_vocab_size|num_words", WORDS),
    (r"(text_)?type_vocab_size", 2),
    (r"embedding_size|word_embed_proj_dim|emb_dim|embed_dim|embeddings_size|embed_dims?", WIDTH),
    (r"num_(key_value|kv)_heads|multi_query_group_num|n_head_kv|num_kv_heads|decoder_kv_heads", 2),
    (r"(\w+_)?(num_(attention_)?heads|n_heads?|attention_heads|nhead)", HEADS),
    (r"head_dim|global_head_dim|v_head_dim|qk_nope_head_dim|d_kv|attention_head_size|kv_channels|key_size", WIDTH // HEADS),
    (r"qk_rope_head_dim", WIDTH // HEADS),
    (r"q_lora_rank|kv_lora_rank|lora_rank|o_lora_rank", 16),
    (r"rotary_dim|rope_dim", 4),
    (r"n_layers?|(en|de)coder_layers|(\w+_)?num_((hidden|encoder|decoder)_)?layers", LAYERS),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"(n_routed_experts|num_(local_)?experts|moe_num_experts|num_routed_experts)", 4),
    (r"num_experts_per_tok|moe_k|top_k|num_selected_experts|moe_top_?k|experts_per_token", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts", 1),
    (r"(\w+_)?(intermediate_size|ffn_dim|d_ff|ffn_hidden_size|n_inner|inner_dim|feed_forward_size|d_inner|ff_dim)(_mlp)?", 48),
    (r"hidden_size|d_model|n_embd|dim|model_dim|hidden_dim|d_embed|(\w+_)?hidden_size|projection_dim|out_features", WIDTH),
    (r"image_size|img_size|input_size", PIXELS),
    (r"patch_size", 8),
    (r"num_mel_bins|feature_size|input_feat_per_channel", 16),
    (r"num_conv_pos_embeddings|num_conv_pos_embedding_groups", 4),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_d_conv|conv_kernel", 4),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"sliding_window|attention_window|local_attention", 8),
    (r"attn_layer_(period|offset)|expert_layer_(period|offset)", {8: 2, 4: 1, 2: 2, 1: 1}),
    (r"attn_layer_indices", (1,)),
    (r"window_size", 2),
    (r"depths", (1, 1, 1, 1, 1, 1, 1, 1)),
    (r"(\w+_)?hidden_sizes|embed_dims?|widths", (16, 16, 32, 32, 32, 32, 32, 32)),
    (r"num_heads|num_attention_heads", (2, 2, 2, 2, 2, 2, 2, 2)),
    (r"conv_dim|tdnn_dim", (16,) * 12),
    (r"num_codevectors_per_group|(proj_)?codevector_dim|classifier_proj_size|xvector_output_dim", 16),
)  # fmt: skip
IDS = re.compile(r"\w*token_id|\w*_token_index")


def small(name: str, held: Any) -> Any:
    """What an attribute of a config becomes; itself where nothing makes it smaller."""
    if isinstance(held, bool):
        return held
    if isinstance(held, int) and IDS.fullmatch(name):
        return min(held, 3)
    for pattern, size in SIZES:
        if not re.fullmatch(pattern, name):
            continue
        if isinstance(held, int) and isinstance(size, dict):
            return size.get(held, held)
        if isinstance(held, int) and isinstance(size, int):
            return min(held, size)
        if held is None and (size == WORDS or name in ("head_dim", "kv_channels")):
            return size
        if (
            isinstance(held, (list, tuple))
            and isinstance(size, tuple)
            and all(isinstance(each, int) for each in held)
        ):
            return type(held)(map(min, held, size))
    return held


def shrunk(kind: Any, **changes: Any) -> Any:
    """A small config of a config class, by the names of its attributes; `changes` are as they are given."""
    given = kind()
    smaller: dict[str, Any] = {}
    for name, held in given.to_dict().items():
        if name.startswith("_") or name in (
            "architectures",
            "model_type",
            "transformers_version",
            "layer_types",
        ):
            continue
        if name in getattr(given, "sub_configs", {}):
            inner = getattr(given, name)
            if inner is not None:
                smaller[name] = shrunk(type(inner)).to_dict()
            continue
        value = small(name, held)
        if value is not held and value != held:
            smaller[name] = value
    if "kv_lora_rank" in smaller and "num_key_value_heads" in smaller:
        smaller["num_key_value_heads"] = HEADS  # latent attention has as many key heads as query heads
    kinds = list(dict.fromkeys(getattr(given, "layer_types", None) or ()))
    if len(kinds) > 1:  # one layer of each kind
        count = max(LAYERS, len(kinds))
        layered = {"num_hidden_layers": count, "layer_types": (kinds * LAYERS)[:count]}
        try:
            kind(**{**smaller, **layered})
            smaller |= layered
        except Exception:  # noqa: BLE001 - a config may make its layers' kinds of something else
            pass
    smaller |= {name: off for name, off in DRAWS.items() if hasattr(given, name)}
    return kind(**{**smaller, **CHANGES.get(given.model_type, {}), **changes})


# What a config's defaults leave out of the mathematics that released models of the architecture have, and what
# counts layers in a way of its own.
DRAWS = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
"""What models draw from numpy or branch on by chance in training, none of which a graph can hold."""

CHANGES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "esm": {"pad_token_id": 1, "mask_token_id": 3},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
}


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

        torch.manual_seed(seed)
        kind, config = getattr(transformers, self.class_name), self.config(**changes)
        try:
            made = kind(config).eval()
        except AttributeError:  # a decoder whose table names the config of a larger model that has it
            made = kind(config.get_text_config(decoder=True)).eval()
        if getattr(made.config, "pad_token_id", 0) is None:
            made.config.pad_token_id = 1  # who classifies a text looks for its last token
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


def inputs(model: nn.Module, batch: int = 2, length: int = 12, seed: int = 5) -> dict[str, Any]:
    """Arguments of a call, by what the model and its config say they take; `length` counts tokens."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    takes = inspect.signature(model.forward).parameters

    def ids() -> Tensor:
        drawn = torch.randint(4, WORDS - 1, (batch, length), generator=generator)
        end = getattr(config, "eos_token_id", None)
        if isinstance(end, int) and getattr(config, "is_encoder_decoder", False):
            drawn[:, -1] = end
        return drawn

    def reals(*sizes: int) -> Tensor:
        return torch.randn(batch, *sizes, generator=generator)

    def told(name: str, default: int) -> int:
        places = [config, *(getattr(config, sub) for sub in getattr(config, "sub_configs", {}))]
        for place in places:
            held = getattr(place, name, None)
            if isinstance(held, (list, tuple)):
                held = held[0]
            if isinstance(held, int):
                return held
        return default

    given: dict[str, Any] = {}
    both = type(model).__name__ in table("clip").values()
    if "pixel_values" in takes and (both or "input_ids" not in takes):
        side = told("image_size", PIXELS)
        given["pixel_values"] = reals(told("num_channels", 3), side, side)
    if "input_values" in takes and "input_ids" not in takes:
        given["input_values"] = (
            reals(3200)
            if "num_mel_bins" not in vars(config)
            else reals(told("max_length", 64), told("num_mel_bins", 16))
        )
    if "input_features" in takes and "input_ids" not in takes:
        bins = told("num_mel_bins", told("feature_size", 80))
        given["input_features"] = (
            reals(bins, 2 * config.max_source_positions)
            if hasattr(config, "max_source_positions") and "input_channels" not in vars(config)
            else reals(64, bins)
        )
    if "input_ids" in takes:
        given["input_ids"] = ids()
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        given["decoder_input_ids"] = ids()
    return given
