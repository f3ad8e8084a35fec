"""Tiny transformers of the classes that TeaCache coefficients were published for and that no tiny pipeline has.

As in `configs.py` and `transformers.py`: one function makes the model, one the arguments of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .configs import HEADS, ROPE, TEXT_DIM, TEXT_TOKENS
from .weights import seeded

if TYPE_CHECKING:
    from .spec import Moment

SIDE = 4
TOKENS = SIDE * SIDE


def ltx_video(seed: int = 0) -> nn.Module:
    from diffusers import LTXVideoTransformer3DModel

    def make() -> Any:
        return LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_layers=6,
            cross_attention_dim=32,
            caption_channels=TEXT_DIM,
            **HEADS,
        )

    return seeded(make, seed)


def ltx_video_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(2 * TOKENS, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "num_frames": 2,
        "height": SIDE,
        "width": SIDE,
    }


def mochi(seed: int = 0) -> nn.Module:
    from diffusers import MochiTransformer3DModel

    def make() -> Any:
        return MochiTransformer3DModel(
            in_channels=4,
            num_layers=6,
            pooled_projection_dim=16,
            text_embed_dim=TEXT_DIM,
            time_embed_dim=16,
            **HEADS,
        )

    return seeded(make, seed)


def mochi_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 2, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool),
    }


def lumina2(seed: int = 0) -> nn.Module:
    from diffusers import Lumina2Transformer2DModel

    def make() -> Any:
        return Lumina2Transformer2DModel(
            in_channels=4,
            hidden_size=32,
            num_layers=6,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=ROPE,
            axes_lens=(32, 16, 16),
            cap_feat_dim=TEXT_DIM,
        )

    return seeded(make, seed)


def lumina2_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 8, 8),
        "timestep": 1.0 - at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool),
    }


def lumina_next(seed: int = 0) -> nn.Module:
    from diffusers import LuminaNextDiT2DModel

    def make() -> Any:
        model = LuminaNextDiT2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=6,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=TEXT_DIM,
        )
        nn.init.zeros_(model.pad_token)  # left as it was in memory, and never used
        return model

    return seeded(make, seed)


def lumina_next_call(at: Moment) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        "hidden_states": at.latents(4, 8, 8),
        "timestep": 1.0 - at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "encoder_mask": torch.ones(at.batch, TEXT_TOKENS),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 16, 16),
        "cross_attention_kwargs": {},
    }


def cosmos(seed: int = 0) -> nn.Module:
    from diffusers import CosmosTransformer3DModel

    def make() -> Any:
        return CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=6,
            mlp_ratio=2.0,
            text_embed_dim=TEXT_DIM,
            adaln_lora_dim=8,
            max_size=(4, 16, 16),
            concat_padding_mask=False,
            **HEADS,
        )

    return seeded(make, seed)


def cosmos_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 2, 8, 8),
        "timestep": at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "fps": 24,
    }


def hidream(seed: int = 0) -> nn.Module:
    from diffusers import HiDreamImageTransformer2DModel

    def make() -> Any:
        return HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=5,
            caption_channels=[TEXT_DIM, 24],
            text_emb_dim=16,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=ROPE,
            max_resolution=(8, 8),
            llama_layers=[0, 1, 0, 1, 0, 1, 0, 1],
            **HEADS,
        )

    return seeded(make, seed)


def hidream_call(at: Moment) -> dict[str, Any]:
    llama = torch.stack([at.fixed(TEXT_TOKENS, 24, part=layer) for layer in range(2)])
    return {
        "hidden_states": at.latents(4, 8, 8),
        "timesteps": at.times(1000.0),
        "encoder_hidden_states_t5": at.fixed(TEXT_TOKENS, TEXT_DIM, part=2),
        "encoder_hidden_states_llama3": llama,
        "pooled_embeds": at.fixed(16, part=3),
    }


def stable_audio(seed: int = 0) -> nn.Module:
    from diffusers import StableAudioDiTModel

    def make() -> Any:
        return StableAudioDiTModel(
            sample_size=TOKENS,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            num_key_value_attention_heads=2,
            cross_attention_dim=32,
            cross_attention_input_dim=TEXT_DIM,
            time_proj_dim=16,
            global_states_input_dim=16,
            **HEADS,
        )

    return seeded(make, seed)


def stable_audio_call(at: Moment) -> dict[str, Any]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return {
        "hidden_states": at.latents(4, TOKENS),
        "timestep": at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "global_hidden_states": at.fixed(1, 16, part=1),
        "rotary_embedding": get_1d_rotary_pos_embed(
            8, TOKENS + 1, use_real=True, repeat_interleave_real=False
        ),
    }


def consisid(seed: int = 0) -> nn.Module:
    from diffusers import ConsisIDTransformer3DModel

    def make() -> Any:
        return ConsisIDTransformer3DModel(
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=TEXT_DIM,
            num_layers=6,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            max_text_seq_length=TEXT_TOKENS,
            **HEADS,
        )

    return seeded(make, seed)


def cogvideox_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(3, 4, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
    }


def longcat_image(seed: int = 0) -> nn.Module:
    from diffusers import LongCatImageTransformer2DModel

    def make() -> Any:
        return LongCatImageTransformer2DModel(
            in_channels=16,
            num_layers=4,
            num_single_layers=8,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=list(ROPE),
            **HEADS,
        )

    return seeded(make, seed)


def minimax_h3(seed: int = 0) -> nn.Module:
    from diffusers import MiniMaxH3Transformer3DModel

    def make() -> Any:
        return MiniMaxH3Transformer3DModel(
            hidden_size=32,
            num_layers=6,
            num_refiner_layers=1,
            ffn_dim=48,
            in_channels=4,
            audio_in_channels=4,
            text_dim=TEXT_DIM,
            freq_dim=16,
            time_embed_hidden_dim=16,
            time_embed_dim=16,
            rope_freq_dim=2,
            **HEADS,
        )

    return seeded(make, seed)


def minimax_h3_call(at: Moment) -> dict[str, Any]:
    audio = 6
    rows = torch.arange(TEXT_TOKENS + TOKENS + audio)
    text, video, sound = rows.split([TEXT_TOKENS, TOKENS, audio])
    tags = torch.zeros_like(rows)
    tags[text], tags[sound] = 1, 2
    return {
        "hidden_states": at.latents(TOKENS, 16),
        "audio_hidden_states": at.latents(audio, 4),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": torch.tensor([at.time]),
        "timestep_indices": torch.zeros_like(rows),
        "token_tags": tags,
        "position_ids": rows[:, None].expand(-1, 3),
        "video_indices": video,
        "audio_indices": sound,
        "text_indices": text,
    }


def dit_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 8, 8),
        "timestep": at.times(1000.0),
        "class_labels": torch.arange(at.batch),
    }


def pixart_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
