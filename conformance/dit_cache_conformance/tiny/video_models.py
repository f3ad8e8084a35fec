"""Tiny transformers that make video, of several families; a row for each is in `video.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .configs import HEADS, POOLED_DIM, ROPE, TEXT_DIM, TEXT_TOKENS
from .wan_like import DEPTH, FRAMES, GRID, SIDE, wan_call
from .weights import seeded

if TYPE_CHECKING:
    from .spec import Moment

_HEADS_OF_12: dict[str, int] = {"num_attention_heads": 2, "attention_head_dim": 12}


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
