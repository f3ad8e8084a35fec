"""Tiny transformers that are built as Wan is: video tokens in one stream, the text by cross-attention.

As in `further.py`: one function makes the model, one the arguments of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .configs import TEXT_DIM, TEXT_TOKENS
from .weights import noise, seeded

if TYPE_CHECKING:
    from .spec import Moment

DEPTH = 6
FRAMES = 2
GRID = 4
SIDE = 2 * GRID
"""Tokens and latents of a side: the patches are of 1 x 2 x 2."""
CONTROLS = 2 * 4 + 64
"""What a pipeline gives to WanVACE: latents to keep and to change, and a mask of 8 x 8 for each latent."""
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": DEPTH,
}


def wan_call(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, FRAMES, SIDE, SIDE),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
    }


def anyflow(seed: int = 0) -> nn.Module:
    from diffusers import AnyFlowTransformer3DModel

    return seeded(lambda: AnyFlowTransformer3DModel(**WAN, rope_max_seq_len=32), seed)


def anyflow_call(at: Moment) -> dict[str, Any]:
    """A flow map goes from one time to another: here from the moment's to a bit below it."""
    times = at.times(1000.0)[:, None].expand(-1, FRAMES)
    return {
        "hidden_states": at.latents(FRAMES, 4, SIDE, SIDE),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": times,
        "r_timestep": 0.9 * times,
    }


def anyflow_far(seed: int = 0) -> nn.Module:
    from diffusers import AnyFlowFARTransformer3DModel

    def make() -> Any:
        # One head is as wide as flex attention wants it at least.
        config = WAN | {"attention_head_dim": 16}
        return AnyFlowFARTransformer3DModel(
            **config, rope_max_seq_len=32, compressed_patch_size=(1, 4, 4), chunk_partition=(1, FRAMES)
        )

    return seeded(make, seed)


def anyflow_far_cache() -> list[dict[str, torch.Tensor]]:
    """What the pipeline allocates: keys and values of clean frames, for each block."""
    full, compressed = GRID * GRID * (1 + FRAMES), (GRID // 2) ** 2
    return [
        {
            "full_cache": 0.1 * noise(2, 1, 2, full, 16, seed=50 + block),
            "compressed_cache": 0.1 * noise(2, 1, 2, compressed, 16, seed=70 + block),
        }
        for block in range(DEPTH)
    ]


def anyflow_far_kv(kv_cache: Any, mode: str | None) -> dict[str, Any]:
    """In mode "write" a call with the chunk that is done, which fills the cache and predicts nothing."""
    if mode != "write":
        return {"kv_cache": kv_cache}
    clean = noise(1, 1, 4, SIDE, SIDE, seed=7)
    return {
        "kv_cache": kv_cache,
        "kv_cache_flag": {"is_cache_step": True, "num_cached_chunks": 0},
        "hidden_states": clean,
        "chunk_partition": [1],
        "timestep": torch.zeros(1, 1),
        "r_timestep": torch.zeros(1, 1),
    }


def anyflow_far_call(at: Moment) -> dict[str, Any]:
    """The second chunk, while the first is in the cache."""
    return anyflow_call(at) | {
        "chunk_partition": [1, FRAMES],
        "kv_cache": anyflow_far_cache(),
        "kv_cache_flag": {"is_cache_step": False, "num_cached_chunks": 1},
    }


def chronoedit(seed: int = 0) -> nn.Module:
    from diffusers import ChronoEditTransformer3DModel

    return seeded(lambda: ChronoEditTransformer3DModel(**WAN, rope_max_seq_len=32), seed)


def skyreels_v2(seed: int = 0) -> nn.Module:
    from diffusers import SkyReelsV2Transformer3DModel

    return seeded(lambda: SkyReelsV2Transformer3DModel(**WAN, rope_max_seq_len=32), seed)


def helios(seed: int = 0) -> nn.Module:
    from diffusers import HeliosTransformer3DModel

    return seeded(lambda: HeliosTransformer3DModel(**WAN, rope_dim=(4, 4, 4)), seed)


def helios_call(at: Moment) -> dict[str, Any]:
    """Frames to come after frames that are there, which are kept at three resolutions."""
    index = torch.arange(16)[None].expand(at.batch, -1)
    return wan_call(at) | {
        "indices_hidden_states": index[:, 7 : 7 + FRAMES],
        "indices_latents_history_short": index[:, 6:7],
        "indices_latents_history_mid": index[:, 4:6],
        "indices_latents_history_long": index[:, :4],
        "latents_history_short": at.fixed(4, 1, SIDE, SIDE, part=1),
        "latents_history_mid": at.fixed(4, 2, SIDE, SIDE, part=2),
        "latents_history_long": at.fixed(4, 4, SIDE, SIDE, part=3),
    }


def wan_vace(seed: int = 0) -> nn.Module:
    from diffusers import WanVACETransformer3DModel

    def make() -> Any:
        return WanVACETransformer3DModel(
            **WAN, rope_max_seq_len=32, vace_layers=[0, 2, 3, 5], vace_in_channels=CONTROLS
        )

    return seeded(make, seed)


def wan_vace_call(at: Moment) -> dict[str, Any]:
    return wan_call(at) | {
        "control_hidden_states": at.fixed(CONTROLS, FRAMES, SIDE, SIDE, part=1),
        "control_hidden_states_scale": torch.tensor([1.0, 0.5, 0.8, 1.2]),
    }


def wan_animate(seed: int = 0) -> nn.Module:
    from diffusers import WanAnimateTransformer3DModel

    def make() -> Any:
        config = WAN | {"in_channels": 12}
        return WanAnimateTransformer3DModel(
            **config,
            latent_channels=4,
            rope_max_seq_len=32,
            image_dim=None,
            motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4},
            motion_encoder_size=16,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        )

    return seeded(make, seed)


def wan_animate_call(at: Moment) -> dict[str, Any]:
    frames = 3
    return wan_call(at) | {
        "hidden_states": at.latents(12, frames, SIDE, SIDE),
        "pose_hidden_states": at.fixed(4, frames - 1, SIDE, SIDE, part=1),
        "face_pixel_values": at.fixed(3, 4 * (frames - 1), 16, 16, part=2),
    }


def wan_animate_2(num_layers: int = DEPTH, seed: int = 0) -> nn.Module:
    from diffusers import WanAnimate2Transformer3DModel

    def make() -> Any:
        return WanAnimate2Transformer3DModel(
            text_len=TEXT_TOKENS,
            in_dim=12,
            dim=32,
            ffn_dim=48,
            freq_dim=32,
            text_dim=TEXT_DIM,
            out_dim=4,
            num_heads=2,
            num_layers=num_layers,
            use_img_emb=False,
        )

    model: Any = seeded(make, seed)
    with torch.compiler.set_stance("force_eager"):  # the model would compile the making of its mask
        model.block_masks[FRAMES, GRID * GRID] = model.create_mask(FRAMES, GRID * GRID, torch.device("cpu"))
    return model  # type: ignore[no-any-return]


def wan_animate_2_cache(num_layers: int = DEPTH) -> Any:
    """Keys and values as they are before the reference is read: random ones."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    cache = WanAnimate2KVCache(num_layers)
    for number, layer in enumerate(cache.layer_caches):
        layer.store(
            *(noise(1, FRAMES * GRID * GRID, 2, 16, seed=2 * number + part + 50) for part in range(2))
        )
    return cache


def wan_animate_2_kv(kv_cache: Any, mode: str | None) -> dict[str, Any]:
    more = {"kv_cache_mode": "extract"} if mode == "write" else {}
    return {"kv_cache": kv_cache} | more


def wan_animate_2_call(at: Moment, num_layers: int = DEPTH) -> dict[str, Any]:
    frames = FRAMES
    grid = torch.tensor([[frames, GRID, GRID]])
    return {
        "hidden_states": list(at.latents(4, frames, SIDE, SIDE)),
        "timestep": at.times(1000.0),
        "encoder_hidden_states": list(at.fixed(TEXT_TOKENS, TEXT_DIM)),
        "condition_latents": list(at.fixed(8, frames, SIDE, SIDE, part=1)),
        "kv_cache": wan_animate_2_cache(num_layers),
        "kv_cache_mode": "cached",
        "seq_len": frames * GRID * GRID,
        "offset_grid_sizes": grid,
        "reference_grid_sizes": grid,
        "origin_len": 4 * (frames - 1),
        "origin_area": [16 * GRID, 16 * GRID],
    }
