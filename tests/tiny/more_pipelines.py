"""More tiny pipelines, in rows: the class, its tiny transformer, the arguments of a call.

    tiny = build("lumina2")
    latents = tiny.run(num_inference_steps=6)

`ALL_PIPELINES` has those of `pipelines.py` as well. What a pipeline needs beside a transformer and a scheduler is None
where nothing else is said; prompts come as embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .configs import POOLED_DIM, TEXT_DIM, TEXT_TOKENS
from .pipelines import SIZE, TINY, Tiny, TinyPipeline
from .transformers import TINY_TRANSFORMERS, build_transformer
from .weights import noise

Arguments = Callable[[int], dict[str, Any]]

_LATENT = {"height": SIZE, "width": SIZE, "output_type": "latent"}


def build(name: str) -> Tiny:
    """Build the tiny pipeline of that name (see `ALL_PIPELINES`)."""
    return Tiny(ALL_PIPELINES[name])


def row(
    name: str,
    cls: str,
    arguments: Arguments,
    transformer: str | None = None,
    scheduler: str = "FlowMatchEulerDiscreteScheduler",
    branches: tuple[str, ...] = ("0",),
    guided_batch: bool = False,
    **parts: Callable[[], Any],
) -> TinyPipeline:
    """A pipeline of diffusers by the name of its class, with the tiny transformer of that name."""

    def make() -> Any:
        import diffusers

        pipeline = getattr(diffusers, cls)
        wanted = inspect.signature(pipeline.__init__).parameters.values()
        given = {each.name: None for each in wanted if each.default is each.empty and each.name != "self"}
        given |= {part: make() for part, make in parts.items()}
        given["transformer"] = build_transformer(transformer or name)
        given["scheduler"] = getattr(diffusers, scheduler)()
        return pipeline(**given)

    stacks = TINY_TRANSFORMERS[transformer or name].stacks
    return TinyPipeline(name, make, arguments, ("transformer",), stacks, branches, guided_batch)


def text(batch: int, seed: int = 10, tokens: int = TEXT_TOKENS, dim: int = TEXT_DIM) -> torch.Tensor:
    return noise(batch, tokens, dim, seed=seed)


def mask(batch: int, kind: torch.dtype = torch.long, tokens: int = TEXT_TOKENS) -> torch.Tensor:
    return torch.ones(batch, tokens, dtype=kind)


def guided(batch: int) -> dict[str, Any]:
    """A prompt and a negative one."""
    return {"prompt_embeds": text(batch), "negative_prompt_embeds": text(batch, 11), **_LATENT}


def masked(batch: int, kind: torch.dtype = torch.long) -> dict[str, Any]:
    """As `guided`, with attention masks."""
    masks = {name: mask(batch, kind) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return guided(batch) | masks


def embedded_only(batch: int) -> dict[str, Any]:
    """As `masked`, for pipelines whose default is a negative prompt of words."""
    return masked(batch) | {"negative_prompt": None}


def _unguided(batch: int) -> dict[str, Any]:
    return {"prompt_embeds": text(batch), **_LATENT}


def _square(batch: int) -> dict[str, Any]:
    return embedded_only(batch) | {"use_resolution_binning": False}


def _five_frames(batch: int) -> dict[str, Any]:
    return guided(batch) | {"num_frames": 5}


def _mochi(batch: int) -> dict[str, Any]:
    return masked(batch, torch.bool) | {"num_frames": 7}


def _ltx(batch: int) -> dict[str, Any]:
    return masked(batch) | {"num_frames": 9}


def _sana_video(batch: int) -> dict[str, Any]:
    return _square(batch) | {"frames": 5}


def _chroma(batch: int) -> dict[str, Any]:
    return masked(batch, torch.bool)


def _z_image(batch: int) -> dict[str, Any]:
    lists = {name: list(value) for name, value in guided(batch).items() if isinstance(value, torch.Tensor)}
    return lists | _LATENT


def _kandinsky5(batch: int) -> dict[str, Any]:
    lengths = torch.arange(batch + 1, dtype=torch.int32) * TEXT_TOKENS
    return {
        "prompt_embeds_qwen": text(batch),
        "prompt_embeds_clip": noise(batch, 16, seed=12),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": text(batch, 11),
        "negative_prompt_embeds_clip": noise(batch, 16, seed=13),
        "negative_prompt_cu_seqlens": lengths,
        **_LATENT,
    }


def _kandinsky5_video(batch: int) -> dict[str, Any]:
    return _kandinsky5(batch) | {"num_frames": 5}


def _allegro(batch: int) -> dict[str, Any]:
    return embedded_only(batch) | {"num_frames": 8, "clean_caption": False}


def _prx(batch: int) -> dict[str, Any]:
    return masked(batch, torch.bool) | {"use_resolution_binning": False, "negative_prompt": None}


def _nucleus(batch: int) -> dict[str, Any]:
    return guided(batch) | {"prompt_embeds_mask": mask(batch), "negative_prompt_embeds_mask": mask(batch)}


def _motif(batch: int) -> dict[str, Any]:
    return masked(batch) | {"num_frames": 5}


def _easyanimate(batch: int) -> dict[str, Any]:
    return masked(batch) | {"num_frames": 5}


def _hunyuan_image(batch: int) -> dict[str, Any]:
    return {
        **guided(batch),
        "prompt_embeds_mask": mask(batch),
        "negative_prompt_embeds_mask": mask(batch),
        "prompt_embeds_2": text(batch, 14),
        "prompt_embeds_mask_2": mask(batch),
        "negative_prompt_embeds_2": text(batch, 15),
        "negative_prompt_embeds_mask_2": mask(batch),
    }


def _hunyuan_video15(batch: int) -> dict[str, Any]:
    second = {"prompt_embeds_2": text(batch, 14, 4, 16), "negative_prompt_embeds_2": text(batch, 15, 4, 16)}
    masks = {f"{name.replace('embeds', 'embeds_mask')}": mask(batch, tokens=4) for name in second}
    return _hunyuan_image(batch) | second | masks | {"num_frames": 5}


def _guider() -> Any:
    from diffusers import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=3.0)


_CFG = ("cond", "uncond")
_CALLS = ("0", "1")
_PREDICTED = ("pred_cond", "pred_uncond")

MORE: tuple[TinyPipeline, ...] = (
    row(
        "allegro", "AllegroPipeline", _allegro, scheduler="EulerAncestralDiscreteScheduler", guided_batch=True
    ),
    row("auraflow", "AuraFlowPipeline", masked, guided_batch=True),
    row("bria", "BriaPipeline", guided, guided_batch=True),
    row("chroma", "ChromaPipeline", _chroma, branches=_CALLS),
    row(
        "cogview3plus", "CogView3PlusPipeline", guided, scheduler="CogVideoXDDIMScheduler", guided_batch=True
    ),
    row("cogview4", "CogView4Pipeline", guided, branches=_CFG),
    row("easyanimate", "EasyAnimatePipeline", _easyanimate, guided_batch=True),
    row("flux2", "Flux2Pipeline", _unguided),
    row("flux2_klein", "Flux2KleinPipeline", guided, "flux2", branches=_CFG),
    row("hunyuan_image", "HunyuanImagePipeline", _hunyuan_image, branches=_PREDICTED),
    row(
        "hunyuan_video15",
        "HunyuanVideo15Pipeline",
        _hunyuan_video15,
        branches=_PREDICTED,
        guider=_guider,
    ),
    row("kandinsky5_image", "Kandinsky5T2IPipeline", _kandinsky5, "kandinsky5", branches=_CALLS),
    row("kandinsky5_video", "Kandinsky5T2VPipeline", _kandinsky5_video, "kandinsky5", branches=_CALLS),
    row("ltx_video", "LTXPipeline", _ltx, branches=("cond_uncond",), guided_batch=True),
    row("lumina2", "Lumina2Pipeline", masked, branches=_CALLS),
    row("lumina_next", "LuminaPipeline", masked, guided_batch=True),
    row("mochi", "MochiPipeline", _mochi, branches=("cond_uncond",), guided_batch=True),
    row("motif", "MotifVideoPipeline", _motif, branches=_PREDICTED, guider=_guider),
    row("nucleus_moe", "NucleusMoEImagePipeline", _nucleus, branches=_CALLS),
    row("ovis_image", "OvisImagePipeline", guided, branches=_CFG),
    row(
        "pixart_sigma",
        "PixArtSigmaPipeline",
        _square,
        "pixart",
        scheduler="DPMSolverMultistepScheduler",
        guided_batch=True,
    ),
    row("prx", "PRXPipeline", _prx, guided_batch=True),
    row("sana", "SanaPipeline", _square, scheduler="DPMSolverMultistepScheduler", guided_batch=True),
    row("sana_video", "SanaVideoPipeline", _sana_video, guided_batch=True),
    row(
        "skyreels_v2", "SkyReelsV2Pipeline", _five_frames, scheduler="UniPCMultistepScheduler", branches=_CFG
    ),
    row("z_image", "ZImagePipeline", _z_image, guided_batch=True),
)

ALL_PIPELINES: dict[str, TinyPipeline] = TINY | {spec.name: spec for spec in MORE}
