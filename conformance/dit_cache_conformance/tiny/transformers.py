"""Bare tiny transformers with the inputs of a denoising run, for tests that need no pipeline.

    model = build_transformer("chroma")
    for step in range(28):
        output = model(**transformer_inputs("chroma", seed=0, step=step))[0]

The latents drift and the time falls from step to step, smoothly, as they do in a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import configs, further
from .configs import POOLED_DIM, TEXT_DIM, TEXT_TOKENS
from .image import IMAGE_SPECS
from .spec import Moment, TinyTransformer
from .video import KV_ARGUMENTS, VIDEO_SPECS

TOKENS = 16


def build_transformer(name: str, **depth: int) -> nn.Module:
    """Build the tiny transformer of that name (see `TINY_TRANSFORMERS`).

    `depth` are numbers of blocks, under the names of the functions in `configs`, where they are not to be the usual
    ones.
    """
    return TINY_TRANSFORMERS[name].build(**depth)


def transformer_inputs(
    name: str,
    seed: int = 0,
    step: int = 0,
    total: int = 28,
    batch: int = 1,
    kv_cache: Any = None,
    kv_mode: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Keyword arguments for the forward of a tiny transformer at one step of a run.

    Args:
        seed: another seed is another run.
        step: index of the step, from 0; latents and time move with it.
        total: number of steps, sets how fast the time falls.
        kv_cache: a cache made by `TINY_TRANSFORMERS[name].kv_cache()`.
        kv_mode: what the blocks do with the cache: "write" to fill it, "read" to use it.
        more: further arguments, e.g. `skip_layers=[2]` for SD3.
    """
    spec = TINY_TRANSFORMERS[name]
    arguments = spec.inputs(Moment(seed, step, 1.0 - step / total, batch))
    if kv_cache is not None:
        arguments |= _KV_ARGUMENTS[name](kv_cache, kv_mode)
    if spec.returns_tuple:
        arguments["return_dict"] = False
    return arguments | more


def _image_ids(axes: int = 3) -> torch.Tensor:
    side = int(TOKENS**0.5)
    ids = torch.zeros(TOKENS, axes)
    ids[:, 1] = torch.arange(TOKENS) // side
    ids[:, 2] = torch.arange(TOKENS) % side
    return ids


def _packed(at: Moment, axes: int = 3) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(TOKENS, 16),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1.0),
        "img_ids": _image_ids(axes),
        "txt_ids": torch.zeros(TEXT_TOKENS, axes),
    }


def _flux(at: Moment) -> dict[str, Any]:
    return _packed(at) | {"pooled_projections": at.fixed(POOLED_DIM, part=1)}


def _flux_controlled(at: Moment) -> dict[str, Any]:
    return _flux(at) | _control(at)


def _flux2(at: Moment) -> dict[str, Any]:
    return _packed(at, axes=4) | {"guidance": torch.full((at.batch,), 4.0)}


def _chroma(at: Moment) -> dict[str, Any]:
    return _packed(at) | {
        "attention_mask": torch.ones(at.batch, TEXT_TOKENS + TOKENS, dtype=torch.bool),
        "controlnet_single_block_samples": _control(at)["controlnet_single_block_samples"],
    }


def _control(at: Moment) -> dict[str, Any]:
    residual = [0.5 * at.fixed(TOKENS, 32, part=10 + index) for index in range(4)]
    return {"controlnet_block_samples": residual[:2], "controlnet_single_block_samples": residual[2:]}


def _qwen_image(at: Moment) -> dict[str, Any]:
    side = int(TOKENS**0.5)
    return {
        "hidden_states": at.latents(TOKENS, 16),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1.0),
        "img_shapes": [[(1, side, side)]] * at.batch,
    }


def _qwen_image21(at: Moment) -> dict[str, Any]:
    slots = torch.zeros(at.batch, TEXT_TOKENS + TOKENS // 4, dtype=torch.bool)
    slots[:, TEXT_TOKENS:] = True
    return _qwen_image(at) | {"img_mask": slots}


def _sd3(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "pooled_projections": at.fixed(POOLED_DIM, part=1),
        "timestep": at.times(1000.0),
    }


def _wan(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 2, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1000.0),
    }


def _hunyuan_video(at: Moment) -> dict[str, Any]:
    return _wan(at) | {
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS),
        "pooled_projections": at.fixed(POOLED_DIM, part=1),
        "guidance": torch.full((at.batch,), 6000.0),
    }


def _z_image(at: Moment) -> dict[str, Any]:
    return {
        "x": list(at.latents(4, 1, 8, 8)),
        "t": at.times(-1.0) + 1.0,
        "cap_feats": list(at.fixed(TEXT_TOKENS, TEXT_DIM)),
    }


def _glm_image(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "prior_token_id": (torch.arange(TOKENS) % 16).expand(at.batch, -1),
        "prior_token_drop": torch.zeros(at.batch, TOKENS, dtype=torch.bool),
        "timestep": at.times(1000.0),
        "target_size": torch.full((at.batch, 2), 64.0),
        "crop_coords": torch.zeros(at.batch, 2),
    }


def _glm_image_cache() -> Any:
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    return GlmImageKVCache(6)


def _glm_image_kv(kv_cache: Any, mode: str | None) -> dict[str, Any]:
    kv_cache.set_mode(mode)
    return {"kv_caches": kv_cache}


def _qwen_image21_cache() -> Any:
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    return QwenImage21KVCache(6)


def _qwen_image21_kv(kv_cache: Any, mode: str | None) -> dict[str, Any]:
    names = {"write": "extract", "read": "cached", None: None}
    return {"kv_cache": kv_cache, "kv_cache_mode": names[mode]}


_KV_ARGUMENTS: dict[str, Callable[[Any, str | None], dict[str, Any]]] = {
    "glm_image": _glm_image_kv,
    "qwen_image21": _qwen_image21_kv,
    **KV_ARGUMENTS,
}

_DOUBLE_12 = {"transformer_blocks": 12}
_TWO_STACKS = {"transformer_blocks": 3, "single_transformer_blocks": 5}

CORE_SPECS: tuple[TinyTransformer, ...] = (
    TinyTransformer("flux", configs.flux, _flux, _DOUBLE_12),
    TinyTransformer("flux_controlled", configs.flux, _flux_controlled, _DOUBLE_12),
    TinyTransformer("flux2", configs.flux2, _flux2, _TWO_STACKS),
    TinyTransformer("chroma", configs.chroma, _chroma, _TWO_STACKS),
    TinyTransformer("qwen_image", configs.qwen_image, _qwen_image, {"transformer_blocks": 6}),
    TinyTransformer(
        "qwen_image21",
        configs.qwen_image21,
        _qwen_image21,
        {"transformer_blocks": 6},
        kv_cache=_qwen_image21_cache,
    ),
    TinyTransformer("sd3", configs.sd3, _sd3, {"transformer_blocks": 7}),
    TinyTransformer("wan", configs.wan, _wan, {"blocks": 6}),
    TinyTransformer("hunyuan_video", configs.hunyuan_video, _hunyuan_video, _TWO_STACKS),
    TinyTransformer("z_image", configs.z_image, _z_image, {"layers": 6}),
    TinyTransformer(
        "glm_image", configs.glm_image, _glm_image, {"transformer_blocks": 6}, kv_cache=_glm_image_cache
    ),
    TinyTransformer("cogvideox", configs.cogvideox, further.cogvideox_call, {"transformer_blocks": 6}),
    TinyTransformer("consisid", further.consisid, further.cogvideox_call, {"transformer_blocks": 6}),
    TinyTransformer("cosmos", further.cosmos, further.cosmos_call, {"transformer_blocks": 6}),
    TinyTransformer("dit", configs.dit, further.dit_call, {"transformer_blocks": 8}),
    TinyTransformer(
        "hidream",
        further.hidream,
        further.hidream_call,
        {"double_stream_blocks": 3, "single_stream_blocks": 5},
    ),
    TinyTransformer("longcat_image", further.longcat_image, _packed, _DOUBLE_12),
    TinyTransformer("ltx_video", further.ltx_video, further.ltx_video_call, {"transformer_blocks": 6}),
    TinyTransformer("lumina2", further.lumina2, further.lumina2_call, {"layers": 6}),
    TinyTransformer("lumina_next", further.lumina_next, further.lumina_next_call, {"layers": 6}),
    TinyTransformer("minimax_h3", further.minimax_h3, further.minimax_h3_call, {"transformer_blocks": 6}),
    TinyTransformer("mochi", further.mochi, further.mochi_call, {"transformer_blocks": 6}),
    TinyTransformer("pixart", configs.pixart, further.pixart_call, {"transformer_blocks": 7}),
    TinyTransformer(
        "stable_audio", further.stable_audio, further.stable_audio_call, {"transformer_blocks": 6}
    ),
)
"""Those that tests of the engine and of a strategy run on; `tests/models` tests the cards of all classes."""

TINY_TRANSFORMERS: dict[str, TinyTransformer] = {
    spec.name: spec
    for spec in (
        *CORE_SPECS,
        *IMAGE_SPECS,
        *VIDEO_SPECS,
    )
}
