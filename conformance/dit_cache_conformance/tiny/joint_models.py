"""Tiny transformers that make video and sound, or text and video, in one sequence or beside each other, and their kin.

A row for each is in `video.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .configs import HEADS, ROPE, TEXT_DIM, TEXT_TOKENS
from .wan_like import DEPTH, FRAMES, GRID, SIDE
from .weights import seeded

if TYPE_CHECKING:
    from .spec import Moment

_LTX2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 32,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "caption_channels": TEXT_DIM,
    "num_layers": DEPTH,
    **HEADS,
}


def cosmos3(seed: int = 0) -> nn.Module:
    from diffusers import Cosmos3OmniTransformer

    def make() -> Any:
        return Cosmos3OmniTransformer(
            head_dim=16,
            hidden_size=32,
            intermediate_size=48,
            latent_channel=4,
            num_attention_heads=2,
            num_hidden_layers=DEPTH,
            num_key_value_heads=1,
            patch_latent_dim=16,
            vocab_size=40,
            rope_axes_dim=(4, 2, 2),
        )

    return seeded(make, seed)


def cosmos3_call(at: Moment) -> dict[str, Any]:
    """A text and a video in one sequence, which has no batch: the first part understands, the second is made."""
    tokens = FRAMES * GRID * GRID
    text, video = torch.arange(TEXT_TOKENS + tokens).split([TEXT_TOKENS, tokens])
    places = torch.zeros(3, TEXT_TOKENS + tokens, dtype=torch.long)
    places[:, :TEXT_TOKENS] = text
    places[0, TEXT_TOKENS:] = TEXT_TOKENS + torch.arange(tokens) // (GRID * GRID)
    places[1, TEXT_TOKENS:] = torch.arange(tokens) // GRID % GRID
    places[2, TEXT_TOKENS:] = torch.arange(tokens) % GRID
    return {
        "input_ids": text % 7,
        "text_indexes": text,
        "position_ids": places,
        "und_len": TEXT_TOKENS,
        "sequence_length": TEXT_TOKENS + tokens,
        "vision_tokens": [at.latents(4, FRAMES, SIDE, SIDE)],
        "vision_token_shapes": [(FRAMES, GRID, GRID)],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": torch.full((tokens,), 1000.0 * at.time),
        "vision_noisy_frame_indexes": [torch.arange(FRAMES)],
    }


def kandinsky5(seed: int = 0) -> nn.Module:
    from diffusers import Kandinsky5Transformer3DModel

    def make() -> Any:
        return Kandinsky5Transformer3DModel(
            in_text_dim=TEXT_DIM,
            in_text_dim2=16,
            time_dim=16,
            model_dim=32,
            ff_dim=48,
            num_text_blocks=1,
            num_visual_blocks=DEPTH,
            axes_dims=ROPE,
        )

    return seeded(make, seed)


def kandinsky5_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(FRAMES, SIDE, SIDE, 4),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
        "pooled_projections": at.fixed(16, part=1),
        "visual_rope_pos": [torch.arange(size) for size in (FRAMES, GRID, GRID)],
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def kandinsky6(seed: int = 0) -> nn.Module:
    from diffusers import Kandinsky6Transformer3DModel

    def make() -> Any:
        return Kandinsky6Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=TEXT_DIM,
            in_text_dim2=16,
            time_dim=16,
            model_dim=32,
            ff_dim=48,
            num_text_blocks=1,
            num_visual_blocks=DEPTH,
            axes_dims=ROPE,
            visual_cond=False,
            in_audio_dim=4,
            out_audio_dim=4,
            model_dim_a=16,
        )

    return seeded(make, seed)


def kandinsky6_call(at: Moment) -> dict[str, Any]:
    return kandinsky6_silent_call(at) | {"audio_hidden_states": at.latents(6, 4)}


def kandinsky6_silent_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(FRAMES, SIDE, SIDE, 4),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "pooled_projections": at.fixed(16, part=1),
        "timestep": at.times(1000.0),
    }


def kandinsky6_sr(seed: int = 0) -> nn.Module:
    from diffusers import Kandinsky6SRTransformer3DModel

    def make() -> Any:
        return Kandinsky6SRTransformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            time_dim=16,
            model_dim=32,
            ff_dim=48,
            num_visual_blocks=4,
            axes_dims=ROPE,
            nabla_window=(1, 1, 1),
        )

    return seeded(make, seed)


def kandinsky6_sr_call(at: Moment) -> dict[str, Any]:
    return {"hidden_states": at.latents(1, 8, 16, 9), "timestep": at.times(1000.0)}


def ltx2(seed: int = 0) -> nn.Module:
    from diffusers import LTX2VideoTransformer3DModel

    return seeded(lambda: LTX2VideoTransformer3DModel(**_LTX2), seed)


def ltx2_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(FRAMES * GRID * GRID, 4),
        "audio_hidden_states": at.latents(6, 4),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "audio_encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM, part=1),
        "timestep": at.times(1000.0),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "audio_encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "num_frames": FRAMES,
        "height": GRID,
        "width": GRID,
        "audio_num_frames": 6,
    }


def sana_wm_refiner(seed: int = 0) -> nn.Module:
    from diffusers import SanaWMLTX2RefinerTransformer3DModel

    return seeded(lambda: SanaWMLTX2RefinerTransformer3DModel(**_LTX2), seed)


def sana_wm_refiner_call(at: Moment) -> dict[str, Any]:
    tokens = FRAMES * GRID * GRID
    angles = torch.arange(tokens)[None, :, None] * torch.linspace(0.01, 1.0, 16).repeat_interleave(2)
    return {
        "hidden_states": at.latents(tokens, 4),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
        "video_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
    }


def sana_wm_refiner_cache() -> Any:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache

    return SanaWMRefinerKVCache(DEPTH)


def sana_wm_refiner_kv(kv_cache: Any, mode: str | None) -> dict[str, Any]:
    names = {"write": "capture_pre_rope", "read": "inject", None: None}
    return {"kv_cache": kv_cache, "kv_cache_mode": names[mode]}
