"""More tiny instances: one list of blocks, called much as diffusers' classes are. See `tiny.py`."""

from __future__ import annotations

import torch

from .host import od_config
from .tiny import ATTENTION, HEAD, HEADS, SIDE, TEXT, WAN, WIDTH, WORDS, Tiny, ids, video

TINY: dict[str, Tiny] = {
    "glm_image": Tiny(
        "glm_image.glm_image_transformer.GlmImageTransformer2DModel",
        lambda cls: cls(
            od_config(
                {
                    "patch_size": 2,
                    "in_channels": 4,
                    "out_channels": 4,
                    "num_layers": 4,
                    **ATTENTION,
                    "time_embed_dim": 16,
                    "condition_dim": 8,
                    "prior_vq_quantizer_codebook_size": 11,
                    "text_embed_dim": TEXT,
                }
            )
        ),
        lambda at: {
            "hidden_states": at.latents(1, 4, 8, 8),
            "encoder_hidden_states": at.text(1, WORDS, TEXT),
            "prior_token_id": torch.arange(16)[None] % 11,
            "prior_token_drop": torch.zeros(1, 16, dtype=torch.bool),
            "timestep": at.at(1000.0),
            "target_size": torch.tensor([[64.0, 64.0]]),
            "crop_coords": torch.zeros(1, 2),
        },
        {"transformer_blocks": 4},
    ),
    "ernie_image": Tiny(
        "ernie_image.ernie_image_transformer.ErnieImageTransformer2DModel",
        lambda cls: cls(
            in_channels=4,
            num_layers=4,
            num_attention_heads=HEADS,
            ffn_hidden_size=48,
            hidden_size=WIDTH,
            text_in_dim=TEXT,
            rope_axes_dim=(4, 6, 6),
        ),
        lambda at: {
            "hidden_states": at.latents(1, 4, SIDE, SIDE),
            "timestep": at.at(1000.0),
            "text_bth": at.text(1, WORDS, TEXT),
            "text_lens": torch.tensor([WORDS]),
        },
        {"layers": 4},
    ),
    "hunyuan_video_15": Tiny(
        "hunyuan_video.hunyuan_video_15_transformer.HunyuanVideo15Transformer3DModel",
        lambda cls: cls(
            od_config(),
            in_channels=4,
            out_channels=4,
            **ATTENTION,
            num_layers=4,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=TEXT,
            text_embed_2_dim=12,
            image_embed_dim=10,
            rope_axes_dim=(4, 6, 6),
        ),
        lambda at: {
            "hidden_states": at.latents(1, 4, 2, SIDE, SIDE),
            "timestep": at.at(1000.0),
            "encoder_hidden_states": at.text(1, WORDS, TEXT),
            "encoder_attention_mask": torch.ones(1, WORDS),
            "encoder_hidden_states_2": at.text(1, 3, 12, part=1),
            "encoder_attention_mask_2": torch.ones(1, 3),
            "image_embeds": at.text(1, 2, 10, part=2),
        },
        {"transformer_blocks": 4},
    ),
    "helios": Tiny(
        "helios.helios_transformer.HeliosTransformer3DModel",
        lambda cls: cls(
            **WAN, rope_dim=(4, 6, 6), has_multi_term_memory_patch=False, guidance_cross_attn=False
        ),
        video,
        {"blocks": 4},
    ),
    "krea2": Tiny(
        "krea2.krea2_transformer.Krea2Transformer2DModel",
        lambda cls: cls(
            in_channels=16,
            num_layers=4,
            attention_head_dim=HEAD,
            num_attention_heads=HEADS,
            num_key_value_heads=1,
            intermediate_size=48,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=HEADS,
            text_num_key_value_heads=1,
            text_intermediate_size=48,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        lambda at: {
            "hidden_states": at.latents(1, SIDE * SIDE, 16),
            "encoder_hidden_states": at.text(1, WORDS, 2, WIDTH),
            "timestep": at.at(1.0),
            "position_ids": torch.cat(
                [
                    torch.zeros(WORDS, 3),
                    torch.cat([torch.zeros(SIDE * SIDE, 1), ids(SIDE, SIDE)], dim=-1),
                ]
            ),
        },
        {"transformer_blocks": 4},
    ),
    "stable_audio": Tiny(
        "stable_audio.stable_audio_transformer.StableAudioDiTModel",
        lambda cls: cls(
            None,
            sample_size=16,
            in_channels=4,
            num_layers=4,
            **ATTENTION,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=WIDTH,
            time_proj_dim=16,
            global_states_input_dim=20,
            cross_attention_input_dim=TEXT,
        ),
        lambda at: {
            "hidden_states": at.latents(1, 4, 16),
            "timestep": at.at(1.0),
            "encoder_hidden_states": at.text(1, WORDS, TEXT),
            "global_hidden_states": at.text(1, 1, 20, part=1),
        },
        {"transformer_blocks": 4},
    ),
    "sana_video": Tiny(
        "sana_video.transformer_sana_video.SanaVideoTransformer3DModel",
        lambda cls: cls(
            in_channels=4,
            out_channels=4,
            **ATTENTION,
            num_layers=4,
            num_cross_attention_heads=HEADS,
            cross_attention_head_dim=HEAD,
            cross_attention_dim=WIDTH,
            caption_channels=TEXT,
            sample_size=8,
        ),
        video,
        {"transformer_blocks": 4},
    ),
}
