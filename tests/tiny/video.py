"""Tiny transformers of the classes that make video, and of those in `wan_like.py` and `audio.py` the table.

As in `further.py`: one function makes the model, one the arguments of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import audio, wan_like
from .configs import HEADS, POOLED_DIM, ROPE, TEXT_DIM, TEXT_TOKENS
from .spec import Moment, TinyTransformer
from .wan_like import DEPTH, FRAMES, GRID, wan_call
from .weights import seeded

SIDE = 2 * GRID


def allegro(seed: int = 0) -> nn.Module:
    from diffusers import AllegroTransformer3DModel

    def make() -> Any:
        return AllegroTransformer3DModel(
            num_layers=DEPTH, cross_attention_dim=24, caption_channels=TEXT_DIM, **_HEADS_OF_12
        )

    return seeded(make, seed)


def allegro_call(at: Moment) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    rope = get_3d_rotary_pos_embed_allegro(
        embed_dim=12, crops_coords=((0, 0), (GRID, GRID)), grid_size=(GRID, GRID), temporal_size=FRAMES
    )
    *angles, times, rows, columns = rope
    places = torch.cartesian_prod(times, rows, columns).long().T[:, None]
    return wan_call(at) | {
        "attention_mask": torch.ones(at.batch, FRAMES, SIDE, SIDE),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "image_rotary_emb": (tuple(angles), tuple(places)),
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


def easyanimate(seed: int = 0) -> nn.Module:
    from diffusers import EasyAnimateTransformer3DModel

    def make() -> Any:
        return EasyAnimateTransformer3DModel(
            in_channels=4,
            out_channels=4,
            patch_size=2,
            num_layers=DEPTH,
            mmdit_layers=4,
            time_embed_dim=16,
            text_embed_dim=TEXT_DIM,
            **HEADS,
        )

    return seeded(make, seed)


def framepack(seed: int = 0) -> nn.Module:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    def make() -> Any:
        return HunyuanVideoFramepackTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=5,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            rope_axes_dim=ROPE,
            has_image_proj=True,
            image_proj_dim=16,
            has_clean_x_embedder=True,
            **HEADS,
        )

    return seeded(make, seed)


def framepack_call(at: Moment) -> dict[str, Any]:
    """Frames to come after frames that are there, which are kept at three resolutions."""
    index = torch.arange(16)
    return wan_call(at) | {
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "pooled_projections": at.fixed(POOLED_DIM, part=1),
        "guidance": torch.full((at.batch,), 6000.0),
        "image_embeds": at.fixed(3, 16, part=2),
        "indices_latents": index[7 : 7 + FRAMES],
        "latents_clean": at.fixed(4, 1, SIDE, SIDE, part=3),
        "indices_latents_clean": index[6:7],
        "latents_history_2x": at.fixed(4, 2, SIDE, SIDE, part=4),
        "indices_latents_history_2x": index[4:6],
        "latents_history_4x": at.fixed(4, 4, SIDE, SIDE, part=5),
        "indices_latents_history_4x": index[:4],
    }


def hunyuan_video15(seed: int = 0) -> nn.Module:
    from diffusers import HunyuanVideo15Transformer3DModel

    def make() -> Any:
        return HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_layers=DEPTH,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=TEXT_DIM,
            text_embed_2_dim=16,
            image_embed_dim=16,
            rope_axes_dim=ROPE,
            **HEADS,
        )

    return seeded(make, seed)


def hunyuan_video15_call(at: Moment) -> dict[str, Any]:
    seen = torch.ones(at.batch, TEXT_TOKENS)
    seen[:, -2:] = 0
    return {
        "hidden_states": at.latents(9, FRAMES, GRID, GRID),
        "timestep": at.times(1000.0),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "encoder_attention_mask": seen,
        "encoder_hidden_states_2": at.fixed(4, 16, part=1),
        "encoder_attention_mask_2": torch.ones(at.batch, 4),
        "image_embeds": at.fixed(3, 16, part=2),
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


def motif(num_single_layers: int = 5, num_decoder_layers: int = 0, seed: int = 0) -> nn.Module:
    from diffusers import MotifVideoTransformer3DModel

    def make() -> Any:
        return MotifVideoTransformer3DModel(
            in_channels=9,
            out_channels=4,
            num_layers=3,
            num_single_layers=num_single_layers,
            num_decoder_layers=num_decoder_layers,
            mlp_ratio=2.0,
            text_embed_dim=TEXT_DIM,
            image_embed_dim=16,
            rope_axes_dim=ROPE,
            enable_text_cross_attention_dual=True,
            enable_text_cross_attention_single=True,
            **HEADS,
        )

    return seeded(make, seed)


def motif_call(at: Moment) -> dict[str, Any]:
    return wan_call(at) | {
        "hidden_states": at.latents(9, FRAMES, SIDE, SIDE),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "image_embeds": at.fixed(3, 16, part=1),
    }


def sana_video(seed: int = 0) -> nn.Module:
    from diffusers import SanaVideoTransformer3DModel

    def make() -> Any:
        return SanaVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=DEPTH,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=TEXT_DIM,
            mlp_ratio=2.0,
            rope_max_seq_len=32,
            **_HEADS_OF_12,
        )

    return seeded(make, seed)


def sana_video_call(at: Moment) -> dict[str, Any]:
    """With the control samples that its ControlNet would give."""
    samples = tuple(0.2 * at.fixed(FRAMES * GRID * GRID, 24, part=10 + block) for block in range(3))
    return wan_call(at) | {
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "controlnet_block_samples": samples,
    }


def sana_wm(seed: int = 0) -> nn.Module:
    from diffusers import SanaWMTransformer3DModel

    def make() -> Any:
        return SanaWMTransformer3DModel(
            in_channels=4,
            num_layers=DEPTH,
            hidden_size=24,
            num_attention_heads=2,
            patch_size=(1, 2, 2),
            softmax_every_n=3,
            linear_head_dim=12,
            chunk_plucker_channels=8,
            chunk_plucker_post_attn_blocks=4,
            caption_channels=TEXT_DIM,
            mlp_ratio=2.0,
        )

    return seeded(make, seed)


def sana_wm_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, FRAMES, SIDE, SIDE),
        "timestep": at.times(1000.0)[:, None, None].expand(-1, 1, FRAMES),
        "encoder_hidden_states": at.fixed(1, TEXT_TOKENS, TEXT_DIM),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.long),
        "chunk_plucker": at.fixed(8, FRAMES, SIDE, SIDE, part=1),
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


_HEADS_OF_12: dict[str, int] = {"num_attention_heads": 2, "attention_head_dim": 12}
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
_DEPTH_OF_ONE = {"transformer_blocks": DEPTH}
_WAN = {"blocks": DEPTH}
_TWO_STACKS = {"transformer_blocks": 3, "single_transformer_blocks": 5}

KV_ARGUMENTS: dict[str, Callable[[Any, str | None], dict[str, Any]]] = {
    "anyflow_far": wan_like.anyflow_far_kv,
    "sana_wm_refiner": sana_wm_refiner_kv,
    "wan_animate_2": wan_like.wan_animate_2_kv,
}

VIDEO_SPECS: tuple[TinyTransformer, ...] = (
    TinyTransformer("ace_step", audio.ace_step, audio.ace_step_call, {"layers": DEPTH}),
    TinyTransformer("allegro", allegro, allegro_call, _DEPTH_OF_ONE),
    TinyTransformer("anyflow", wan_like.anyflow, wan_like.anyflow_call, _WAN),
    TinyTransformer(
        "anyflow_far",
        wan_like.anyflow_far,
        wan_like.anyflow_far_call,
        _WAN,
        kv_cache=wan_like.anyflow_far_cache,
    ),
    TinyTransformer("chronoedit", wan_like.chronoedit, wan_call, _WAN),
    TinyTransformer("cosmos3", cosmos3, cosmos3_call, {"layers": DEPTH}),
    TinyTransformer("easyanimate", easyanimate, wan_call, _DEPTH_OF_ONE),
    TinyTransformer("framepack", framepack, framepack_call, _TWO_STACKS),
    TinyTransformer("helios", wan_like.helios, wan_like.helios_call, _WAN),
    TinyTransformer("hunyuan_video15", hunyuan_video15, hunyuan_video15_call, _DEPTH_OF_ONE),
    TinyTransformer("kandinsky5", kandinsky5, kandinsky5_call, {"visual_transformer_blocks": DEPTH}),
    TinyTransformer("kandinsky6", kandinsky6, kandinsky6_call, {"visual_transformer_blocks": DEPTH}),
    TinyTransformer(
        "kandinsky6_silent", kandinsky6, kandinsky6_silent_call, {"visual_transformer_blocks": DEPTH}
    ),
    TinyTransformer("kandinsky6_sr", kandinsky6_sr, kandinsky6_sr_call, {"visual_transformer_blocks": 4}),
    TinyTransformer("longcat_audio", audio.longcat_audio, audio.longcat_audio_call, _WAN),
    TinyTransformer("ltx2", ltx2, ltx2_call, _DEPTH_OF_ONE),
    TinyTransformer("minimax_music3", audio.minimax_music3, audio.minimax_music3_call, _DEPTH_OF_ONE),
    TinyTransformer("motif", motif, motif_call, {"transformer_blocks": 8}),
    TinyTransformer(
        "motif_decoder",
        lambda: motif(7, num_decoder_layers=3),
        motif_call,
        {"transformer_blocks": 7, "single_transformer_blocks": 3},
    ),
    TinyTransformer("sana_video", sana_video, sana_video_call, _DEPTH_OF_ONE),
    TinyTransformer("sana_wm", sana_wm, sana_wm_call, _WAN),
    TinyTransformer(
        "sana_wm_refiner",
        sana_wm_refiner,
        sana_wm_refiner_call,
        _DEPTH_OF_ONE,
        kv_cache=sana_wm_refiner_cache,
    ),
    TinyTransformer("skyreels_v2", wan_like.skyreels_v2, wan_call, _WAN),
    TinyTransformer("stable_audio3", audio.stable_audio3, audio.stable_audio3_call, _DEPTH_OF_ONE),
    TinyTransformer("t5_film", audio.t5_film, audio.t5_film_call, {"decoders": DEPTH}, returns_tuple=False),
    TinyTransformer("temporal", audio.temporal, audio.temporal_call, _DEPTH_OF_ONE),
    TinyTransformer("wan_animate", wan_like.wan_animate, wan_like.wan_animate_call, _WAN),
    TinyTransformer(
        "wan_animate_2",
        wan_like.wan_animate_2,
        wan_like.wan_animate_2_call,
        _WAN,
        kv_cache=wan_like.wan_animate_2_cache,
    ),
    TinyTransformer(
        "wan_vace", wan_like.wan_vace, wan_like.wan_vace_call, {"vace_blocks": 4, "blocks": DEPTH}
    ),
)
