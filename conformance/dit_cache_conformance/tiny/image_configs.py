"""Configurations of the tiny image transformers in `image.py`."""

from __future__ import annotations

from typing import Any

from .configs import HEADS, ROPE, TEXT_DIM, TEXT_TOKENS

Config = dict[str, Any]

PATCHES: Config = {"sample_size": 8, "patch_size": 2, "in_channels": 4}
_PACKED: Config = {"in_channels": 16, "num_layers": 3, "num_single_layers": 5, **HEADS}
BRIA: Config = {"joint_attention_dim": TEXT_DIM, "axes_dims_rope": list(ROPE), **_PACKED}
FIBO2: Config = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "cap_feat_dim": TEXT_DIM,
    "injection_layer_ids": (1, 3),
    "perceiver_num_layers": 1,
    "min_num_gist_tokens": 4,
    "max_num_gist_tokens": 8,
    "gist_step": 2,
    "gist_min_text_len": 4,
    "gist_max_text_len": 12,
    "axes_dims": ROPE,
    "axes_lens": (32, 16, 16),
}
_COGVIEW: Config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "text_embed_dim": TEXT_DIM,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "sample_size": 8,
    **HEADS,
}
FLUX3: Config = {
    "in_channels": 16,
    "cond_in_channels": 12,
    "num_layers": 3,
    "num_single_layers": 5,
    "joint_attention_dim": TEXT_DIM,
    "timestep_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
    **HEADS,
}
HUNYUAN_DIT: Config = {
    **PATCHES,
    "hidden_size": 32,
    "num_layers": 8,
    "mlp_ratio": 2.0,
    "cross_attention_dim": TEXT_DIM,
    "cross_attention_dim_t5": 24,
    "pooled_projection_dim": 16,
    "text_len": TEXT_TOKENS,
    "text_len_t5": TEXT_TOKENS,
    **HEADS,
}
JOY: Config = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": TEXT_DIM,
    "num_layers": 6,
    "rope_dim_list": list(ROPE),
}
_LATTE: Config = {
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "cross_attention_dim": 32,
    "attention_bias": True,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
    "caption_channels": TEXT_DIM,
    **HEADS,
}
SANA: Config = {
    **PATCHES,
    "out_channels": 4,
    "num_layers": 6,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": TEXT_DIM,
    **HEADS,
}

AURAFLOW: Config = {
    **PATCHES,
    "num_mmdit_layers": 3,
    "num_single_dit_layers": 5,
    "joint_attention_dim": TEXT_DIM,
    "caption_projection_dim": 32,
    "pos_embed_max_size": 16,
    **HEADS,
}
BRIA_FIBO: Config = {
    **BRIA,
    "text_encoder_dim": 24,
}
COGVIEW3PLUS: Config = {
    **_COGVIEW,
    "pos_embed_max_size": 8,
}
COGVIEW4: Config = {
    **_COGVIEW,
    "rope_axes_dim": (8, 8),
}
DREAMLITE: Config = {
    "in_channels": 4,
    "norm_num_groups": 2,
    "num_layers": 6,
    "cross_attention_dim": TEXT_DIM,
    **HEADS,
}
ERNIE_IMAGE: Config = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_layers": 6,
    "ffn_hidden_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "text_in_dim": TEXT_DIM,
    "rope_axes_dim": ROPE,
}
HUNYUAN_IMAGE: Config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "num_single_layers": 5,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "patch_size": (2, 2),
    "text_embed_dim": TEXT_DIM,
    "rope_axes_dim": (8, 8),
    **HEADS,
}
IDEOGRAM4: Config = {
    "in_channels": 16,
    "num_layers": 6,
    "intermediate_size": 64,
    "adaln_dim": 16,
    "llm_features_dim": TEXT_DIM,
    "mrope_section": (4, 2, 2),
    **HEADS,
}
KREA2: Config = {
    "in_channels": 16,
    "num_layers": 6,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "timestep_embed_dim": 32,
    "text_hidden_dim": TEXT_DIM,
    "num_text_layers": 3,
    "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2,
    "text_intermediate_size": 64,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1,
    "axes_dims_rope": ROPE,
    **HEADS,
}
LATTE: Config = {
    **_LATTE,
    "sample_size": 8,
    "video_length": 2,
}
LATTE_SQUARE: Config = {
    **_LATTE,
    "sample_size": 4,
    "video_length": 4,
}
NUCLEUS_MOE: Config = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 6,
    "joint_attention_dim": TEXT_DIM,
    "axes_dims_rope": ROPE,
    "mlp_ratio": 8.0,
    "num_experts": 4,
    "moe_intermediate_dim": 16,
    "capacity_factors": 2.0,
    **HEADS,
}
OMNIGEN: Config = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_layers": 6,
    "pad_token_id": 0,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
    "pos_embed_max_size": 8,
    "time_step_dim": 16,
}
OVIS_IMAGE: Config = {
    **_PACKED,
    "out_channels": 16,
    "joint_attention_dim": TEXT_DIM,
    "axes_dims_rope": ROPE,
}
PRIOR: Config = {
    "num_layers": 6,
    "embedding_dim": 16,
    "num_embeddings": TEXT_TOKENS,
    **HEADS,
}
PRX: Config = {
    "in_channels": 4,
    "context_in_dim": TEXT_DIM,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 6,
    "axes_dim": [8, 8],
}
TRANSFORMER_2D: Config = {
    "in_channels": 4,
    "norm_num_groups": 2,
    "num_layers": 6,
    "cross_attention_dim": TEXT_DIM,
    **HEADS,
}
UVIT2D: Config = {
    "hidden_size": 32,
    "cond_embed_dim": 16,
    "micro_cond_encode_dim": 8,
    "micro_cond_embed_dim": 40,
    "encoder_hidden_size": TEXT_DIM,
    "vocab_size": 33,
    "codebook_size": 32,
    "in_channels": 16,
    "block_out_channels": 16,
    "num_res_blocks": 1,
    "block_num_heads": 2,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "sample_size": 8,
}
