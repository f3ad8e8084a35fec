"""The arguments of a call of each tiny pipeline in `more_pipelines.py`: embeddings instead of prompts, small sizes."""

from __future__ import annotations

from typing import Any

import torch

from .configs import POOLED_DIM, TEXT_DIM, TEXT_TOKENS
from .pipelines import SIZE
from .weights import noise

LATENT = {"height": SIZE, "width": SIZE, "output_type": "latent"}


def text(batch: int, seed: int = 10, tokens: int = TEXT_TOKENS, dim: int = TEXT_DIM) -> torch.Tensor:
    return noise(batch, tokens, dim, seed=seed)


def mask(batch: int, kind: torch.dtype = torch.long, tokens: int = TEXT_TOKENS) -> torch.Tensor:
    return torch.ones(batch, tokens, dtype=kind)


def guided(batch: int) -> dict[str, Any]:
    """A prompt and a negative one."""
    return {"prompt_embeds": text(batch), "negative_prompt_embeds": text(batch, 11), **LATENT}


def masked(batch: int, kind: torch.dtype = torch.long) -> dict[str, Any]:
    """As `guided`, with attention masks."""
    masks = {name: mask(batch, kind) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return guided(batch) | masks


def embedded_only(batch: int) -> dict[str, Any]:
    """As `masked`, for pipelines whose default is a negative prompt of words."""
    return masked(batch) | {"negative_prompt": None}


def no_words(batch: int) -> dict[str, Any]:
    return guided(batch) | {"negative_prompt": None}


def unguided(batch: int) -> dict[str, Any]:
    return {"prompt_embeds": text(batch), **LATENT}


def square(batch: int) -> dict[str, Any]:
    return embedded_only(batch) | {"use_resolution_binning": False}


def five_frames(batch: int) -> dict[str, Any]:
    return guided(batch) | {"num_frames": 5}


def mochi(batch: int) -> dict[str, Any]:
    return masked(batch, torch.bool) | {"num_frames": 7}


def ltx(batch: int) -> dict[str, Any]:
    return masked(batch) | {"num_frames": 9}


def sana_video(batch: int) -> dict[str, Any]:
    return square(batch) | {"frames": 5}


def chroma(batch: int) -> dict[str, Any]:
    return masked(batch, torch.bool)


def z_image(batch: int) -> dict[str, Any]:
    lists = {name: list(value) for name, value in guided(batch).items() if isinstance(value, torch.Tensor)}
    return lists | LATENT


def kandinsky5(batch: int) -> dict[str, Any]:
    lengths = torch.arange(batch + 1, dtype=torch.int32) * TEXT_TOKENS
    return {
        "prompt_embeds_qwen": text(batch),
        "prompt_embeds_clip": noise(batch, 16, seed=12),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": text(batch, 11),
        "negative_prompt_embeds_clip": noise(batch, 16, seed=13),
        "negative_prompt_cu_seqlens": lengths,
        **LATENT,
    }


def kandinsky5_video(batch: int) -> dict[str, Any]:
    return kandinsky5(batch) | {"num_frames": 5}


def allegro(batch: int) -> dict[str, Any]:
    return embedded_only(batch) | {"num_frames": 8, "clean_caption": False}


def prx(batch: int) -> dict[str, Any]:
    return masked(batch, torch.bool) | {"use_resolution_binning": False, "negative_prompt": None}


def nucleus(batch: int) -> dict[str, Any]:
    return guided(batch) | {"prompt_embeds_mask": mask(batch), "negative_prompt_embeds_mask": mask(batch)}


def masked_frames(batch: int) -> dict[str, Any]:
    return masked(batch) | {"num_frames": 5}


def hunyuan_image(batch: int) -> dict[str, Any]:
    return {
        **guided(batch),
        "height": 4 * SIZE,
        "width": 4 * SIZE,
        "prompt_embeds_mask": mask(batch),
        "negative_prompt_embeds_mask": mask(batch),
        "prompt_embeds_2": text(batch, 14),
        "prompt_embeds_mask_2": mask(batch),
        "negative_prompt_embeds_2": text(batch, 15),
        "negative_prompt_embeds_mask_2": mask(batch),
    }


def hunyuan_video15(batch: int) -> dict[str, Any]:
    second = {"prompt_embeds_2": text(batch, 14, 4, 16), "negative_prompt_embeds_2": text(batch, 15, 4, 16)}
    masks = {f"{name.replace('embeds', 'embeds_mask')}": mask(batch, tokens=4) for name in second}
    return hunyuan_image(batch) | second | masks | {"height": SIZE, "width": SIZE, "num_frames": 5}


def hunyuan_dit(batch: int) -> dict[str, Any]:
    second = {f"{name}_2": value for name, value in masked(batch).items() if isinstance(value, torch.Tensor)}
    texts = {"prompt_embeds_2": text(batch, 14, dim=24), "negative_prompt_embeds_2": text(batch, 15, dim=24)}
    return masked(batch) | second | texts | {"use_resolution_binning": False}


def hidream(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds_t5": text(batch),
        "negative_prompt_embeds_t5": text(batch, 11),
        "prompt_embeds_llama3": torch.stack([text(batch, 12 + layer, dim=24) for layer in range(2)]),
        "negative_prompt_embeds_llama3": torch.stack([text(batch, 14 + layer, dim=24) for layer in range(2)]),
        "pooled_prompt_embeds": noise(batch, 16, seed=16),
        "negative_pooled_prompt_embeds": noise(batch, 16, seed=17),
        **LATENT,
    }


def krea2(batch: int) -> dict[str, Any]:
    layers = {
        name: torch.stack([text(batch, seed + layer) for layer in range(3)], dim=2)
        for name, seed in (("prompt_embeds", 10), ("negative_prompt_embeds", 13))
    }
    masks = {f"{name}_mask": mask(batch, torch.bool) for name in layers}
    return guided(batch) | layers | masks


def ernie_image(batch: int) -> dict[str, Any]:
    return z_image(batch) | {"use_pe": False}


def anyflow(batch: int) -> dict[str, Any]:
    return five_frames(batch) | {"guidance_scale": 3.0}


def anyflow_chunks(batch: int) -> dict[str, Any]:
    return anyflow(batch) | {"num_frames": 9, "chunk_partition": [1, 2]}


def kandinsky6(batch: int) -> dict[str, Any]:
    return {
        **guided(batch),
        "pooled_prompt_embeds": noise(batch, 16, seed=12),
        "negative_pooled_prompt_embeds": noise(batch, 16, seed=13),
        "num_frames": 5,
        "sample_audio": False,
    }


def latte(batch: int) -> dict[str, Any]:
    return no_words(batch) | {"video_length": 2, "output_type": "latents", "clean_caption": False}


def flux_picture(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": text(batch),
        "pooled_prompt_embeds": noise(batch, POOLED_DIM, seed=20),
        "image": noise(1, 3, SIZE, SIZE, seed=30).clamp(-1, 1),
        "strength": 0.5,
        **LATENT,
    }


def sd3_picture(batch: int) -> dict[str, Any]:
    negative = {
        "negative_prompt_embeds": text(batch, 11),
        "negative_pooled_prompt_embeds": noise(batch, POOLED_DIM, seed=21),
    }
    return flux_picture(batch) | negative


def wan_video(batch: int) -> dict[str, Any]:
    video = noise(batch, 4, 2, SIZE // 8, SIZE // 8, seed=31)
    return guided(batch) | {"latents": video, "strength": 0.5}


def ltx2(batch: int) -> dict[str, Any]:
    return masked_frames(batch) | {"spatio_temporal_guidance_blocks": [2]}


def wan_vace(batch: int) -> dict[str, Any]:
    video = noise(batch, 5, 3, SIZE, SIZE, seed=32).clamp(-1, 1)
    return five_frames(batch) | {"video": video, "mask": torch.ones_like(video)}
