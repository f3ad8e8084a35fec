"""Tiny transformers that make sound, and one that is a part of older video models.

As in `further.py`: one function makes the model, one the arguments of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .configs import HEADS, TEXT_DIM, TEXT_TOKENS
from .weights import scale_output, seeded

if TYPE_CHECKING:
    from .spec import Moment

DEPTH = 6
LENGTH = 24


def ace_step(seed: int = 0) -> nn.Module:
    from diffusers import AceStepTransformer1DModel

    def make() -> Any:
        return AceStepTransformer1DModel(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=DEPTH,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            in_channels=12,
            audio_acoustic_hidden_dim=4,
            sliding_window=4,
        )

    return seeded(make, seed)


def ace_step_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(LENGTH, 4),
        "timestep": at.times(1.0),
        "timestep_r": at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "context_latents": at.fixed(LENGTH, 8, part=1),
    }


def longcat_audio(seed: int = 0) -> nn.Module:
    from diffusers import LongCatAudioDiTTransformer

    def make() -> Any:
        return LongCatAudioDiTTransformer(
            dit_dim=32, dit_depth=DEPTH, dit_heads=2, dit_text_dim=TEXT_DIM, latent_dim=4, ff_mult=2.0
        )

    return seeded(make, seed)


def longcat_audio_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(LENGTH, 4),
        "timestep": at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool),
        "latent_cond": at.fixed(LENGTH, 4, part=1),
    }


def minimax_music3(seed: int = 0) -> nn.Module:
    from diffusers import MiniMaxMusic3Transformer1DModel

    def make() -> Any:
        return MiniMaxMusic3Transformer1DModel(
            in_channels=4,
            condition_dim=TEXT_DIM,
            num_layers=DEPTH,
            ff_inner_dim=48,
            rotary_dim=8,
            fourier_embedding_dim=16,
            **HEADS,
        )

    return seeded(make, seed)


def minimax_music3_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, LENGTH),
        "timestep": at.times(1.0),
        "encoder_hidden_states": at.fixed(LENGTH, TEXT_DIM),
    }


def stable_audio3(seed: int = 0) -> nn.Module:
    from diffusers import StableAudio3DiTModel

    def make() -> Any:
        return StableAudio3DiTModel(
            io_channels=4,
            embed_dim=32,
            depth=DEPTH,
            num_heads=2,
            cond_token_dim=TEXT_DIM,
            global_cond_dim=16,
            local_add_cond_dim=5,
            timestep_features_dim=16,
            ff_mult=2.0,
            num_memory_tokens=3,
        )

    return scale_output(seeded(make, seed), "proj_in", 4.0)  # else nothing is left of what goes in


def stable_audio3_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, LENGTH),
        "timestep": at.times(1.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "global_hidden_states": at.fixed(16, part=1),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool),
        "local_add_cond": at.fixed(5, LENGTH, part=2),
    }


def t5_film(seed: int = 0) -> nn.Module:
    from diffusers import T5FilmDecoder

    def make() -> Any:
        return T5FilmDecoder(
            input_dims=4, targets_length=LENGTH, d_model=32, num_layers=DEPTH, num_heads=2, d_kv=16, d_ff=48
        )

    return seeded(make, seed)


def t5_film_call(at: Moment) -> dict[str, Any]:
    notes, mask = at.fixed(TEXT_TOKENS, 32), torch.ones(at.batch, TEXT_TOKENS)
    return {
        "encodings_and_masks": [(notes, mask)],
        "decoder_input_tokens": at.latents(LENGTH, 4),
        "decoder_noise_time": at.times(1.0),
    }


def temporal(seed: int = 0) -> nn.Module:
    from diffusers import TransformerTemporalModel

    def make() -> Any:
        return TransformerTemporalModel(
            in_channels=8, num_layers=DEPTH, norm_num_groups=2, cross_attention_dim=TEXT_DIM, **HEADS
        )

    return seeded(make, seed)


def temporal_call(at: Moment) -> dict[str, Any]:
    frames = 4
    return {"hidden_states": at.latents(frames, 8, 4, 4).flatten(0, 1), "num_frames": frames}
