"""How small the attributes of a config become, by what they are called; and what default configs leave out."""

from __future__ import annotations

import re
from typing import Any

WORDS, WIDTH, HEADS, LAYERS, PIXELS = 97, 32, 4, 2, 64

# What an attribute is called → how small it becomes. The first that matches counts.
SIZES: tuple[tuple[str, Any], ...] = (
    (r"max_position_embeddings|n_positions|max_seq_len|max_(source|target)_positions|n_ctx|seq_length|context_length", 128),
    (r"(.*_)?vocab_size(_\w+)?|entity_vocab_size|num_words|encoder_hash_byte_group_vocab", WORDS),
    (r"(text_)?type_vocab_size", 2),
    (r"embedding_size|word_embed_proj_dim|emb_dim|embed_dim|embeddings_size|embed_dims?", WIDTH),
    (r"(swa_)?num_(key_value|kv)_heads|multi_query_group_num|n_head_kv|decoder_kv_heads|num_query_groups", 2),
    (r"(\w+_)?(num_(attention_)?heads|n_heads?|attention_heads|nhead)|n_mamba_heads", HEADS),
    (r"((global|swa|v|qk_nope)_)?head_dim|global_head_dim|d_kv|attention_head_size|kv_channels|key_size", WIDTH // HEADS),
    (r"qk_rope_head_dim", WIDTH // HEADS),
    (r"q_lora_rank|kv_lora_rank|lora_rank|o_lora_rank", 16),
    (r"rotary_dim|rope_dim", 4),
    (r"num_blocks|num_self_attends_per_block", LAYERS),
    (r"n_layers?|(\w+_)?(en|de)coder_layers|(\w+_)?num_((hidden|encoder|decoder|spatial|temporal|auxiliary)_)?layers", LAYERS),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"(n_routed_experts|num_(local_)?experts|moe_num_experts|num_routed_experts)", 4),
    (r"num_experts_per_tok(en)?|moe_k|top_k|num_selected_experts|moe_top_?k|experts_per_token", 2),
    (r"n_group|num_expert_group|topk_group|n_shared_experts|num_shared_experts", 1),
    (r"n_groups", 2),
    (r"(\w+_)?(intermediate_size|ffn_dim|d_ff|ffn_hidden_size|n_inner|inner_dim|feed_forward_size|d_inner|ff_dim)(_mlp)?", 48),
    (r"d_latents", WIDTH),
    (r"d_model|n_embd|dim|model_dim|hidden_dim|d_embed|(\w+_)?hidden_size(_global)?|projection_dim|out_features", WIDTH),
    (r"intra_bottleneck_size|upsample_groups|adapter_(in|out|input)_(dim|size)", WIDTH),
    (r"image_size|img_size|input_size", PIXELS),
    (r"patch_size", 8),
    (r"num_patches|num_latents", 16),
    (r"num_mel_bins|feature_size|input_feat_per_channel|feature_projection_input_dim", 16),
    (r"num_conv_pos_embeddings|num_conv_pos_embedding_groups|num_groups|num_codebooks", 4),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_d_conv|conv_kernel", 4),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"mamba_head_dim|mamba_headdim", WIDTH // HEADS),
    (r"sliding_window|attention_window|local_attention", 8),
    (r"attn_layer_(period|offset)|expert_layer_(period|offset)", {8: 2, 4: 1, 2: 2, 1: 1}),
    (r"window_size", 2),
    (r"depths|num_block_repeats", (1,)),
    (r"stem_channels", (3, 16)),
    (r"stem_out_channels|conv_channels", 16),
    (r"stage_mid_channels", (8,)),
    (r"stage_in_channels", (16, 16, 16, 32)),
    (r"(\w+_)?hidden_sizes|embed_dims?|widths|stage_out_channels", (16, 16, 32)),
    (r"stage_num\w+", (1,)),
    (r"num_heads|num_attention_heads", (2,)),
    (r"conv_dim|tdnn_dim", (16,)),
    (r"num_codevectors_per_group|(proj_)?codevector_dim|classifier_proj_size|xvector_output_dim", 16),
    (r"coordinate_size", 6),
    (r"shape_size", 4),
)  # fmt: skip
IDS = re.compile(r"\w*token_id|\w*_token_index")
NEEDED = re.compile(
    r"(.*_)?vocab_size|head_dim|kv_channels|num_key_value_heads|num_experts_per_tok|n_routed_experts|n_shared_experts"
)
"""What is given its size also where a default config has None."""


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
        if held is None and isinstance(size, int) and NEEDED.fullmatch(name):
            return size
        if (
            isinstance(held, (list, tuple))
            and isinstance(size, tuple)
            and all(isinstance(each, int) for each in held)
        ):
            return type(held)(min(each, size[min(i, len(size) - 1)]) for i, each in enumerate(held))
    return held


DRAWS = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "speech_encoder_layerdrop": 0.0,
}
"""What models draw from numpy or branch on by chance in training, none of which a graph can hold."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0}

CHANGES: dict[str, dict[str, Any]] = {
    "align_vision_model": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"qformer_config": {"use_qformer_text_input": True}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 2 * WIDTH // HEADS},
    "dots3_note_vision_encoder": {"per_layer_config": {}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "esm": {"pad_token_id": 1, "mask_token_id": 3},
    "esmc": {"num_key_value_heads": HEADS},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": WIDTH // 4}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_speech5_encoder": {"num_key_value_heads": HEADS},
    "levit": {"patch_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "mamba2": {"num_heads": HEADS, "head_dim": 2 * WIDTH // HEADS},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"hidden_size": 2 * WIDTH},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "neomme": {"head_dim": 16, "per_layer_config": {}},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [3, 4],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
    },
    "shieldgemma2": {"yes_token_index": 3, "no_token_index": 2},
    "videoprism_vision_model": {"image_size": 36, "num_frames": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * WIDTH // HEADS,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * WIDTH // HEADS,
        "mamba_headdim": 2 * WIDTH // HEADS,
    },
}
"""What a config's defaults leave out of the mathematics that released models of the architecture have, what counts
layers in a way of its own, and sizes that other sizes follow from."""
