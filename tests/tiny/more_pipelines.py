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
from .latent_vae import control_vae, latent_space, same_for_both, sound_space, video_vae
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
    then: Callable[[Any], None] | None = None,
    **parts: Callable[[], Any],
) -> TinyPipeline:
    """A pipeline of diffusers by the name of its class, with the tiny transformer of that name.

    `then` is done to the pipeline that was made.
    """

    def make() -> Any:
        import diffusers

        pipeline = getattr(diffusers, cls)
        wanted = inspect.signature(pipeline.__init__).parameters.values()
        given = {each.name: None for each in wanted if each.default is each.empty and each.name != "self"}
        given |= {part: make() for part, make in parts.items()}
        given["transformer"] = build_transformer(transformer or name)
        given["scheduler"] = getattr(diffusers, scheduler)()
        built = pipeline(**given)
        if then is not None:
            then(built)
        return built

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


def _no_words(batch: int) -> dict[str, Any]:
    return guided(batch) | {"negative_prompt": None}


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


def _masked_frames(batch: int) -> dict[str, Any]:
    return masked(batch) | {"num_frames": 5}


def _hunyuan_image(batch: int) -> dict[str, Any]:
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


def _hunyuan_video15(batch: int) -> dict[str, Any]:
    second = {"prompt_embeds_2": text(batch, 14, 4, 16), "negative_prompt_embeds_2": text(batch, 15, 4, 16)}
    masks = {f"{name.replace('embeds', 'embeds_mask')}": mask(batch, tokens=4) for name in second}
    return _hunyuan_image(batch) | second | masks | {"height": SIZE, "width": SIZE, "num_frames": 5}


def _small_pictures(pipe: Any) -> None:
    pipe.resolutions = [(SIZE, SIZE)]


def _small_squares(pipe: Any) -> None:
    pipe.default_sample_size = SIZE // pipe.vae_scale_factor


def _hunyuan_dit(batch: int) -> dict[str, Any]:
    second = {f"{name}_2": value for name, value in masked(batch).items() if isinstance(value, torch.Tensor)}
    texts = {"prompt_embeds_2": text(batch, 14, dim=24), "negative_prompt_embeds_2": text(batch, 15, dim=24)}
    return masked(batch) | second | texts | {"use_resolution_binning": False}


def _hidream(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds_t5": text(batch),
        "negative_prompt_embeds_t5": text(batch, 11),
        "prompt_embeds_llama3": torch.stack([text(batch, 12 + layer, dim=24) for layer in range(2)]),
        "negative_prompt_embeds_llama3": torch.stack([text(batch, 14 + layer, dim=24) for layer in range(2)]),
        "pooled_prompt_embeds": noise(batch, 16, seed=16),
        "negative_pooled_prompt_embeds": noise(batch, 16, seed=17),
        **_LATENT,
    }


def _krea2(batch: int) -> dict[str, Any]:
    layers = {
        name: torch.stack([text(batch, seed + layer) for layer in range(3)], dim=2)
        for name, seed in (("prompt_embeds", 10), ("negative_prompt_embeds", 13))
    }
    masks = {f"{name}_mask": mask(batch, torch.bool) for name in layers}
    return guided(batch) | layers | masks


def _ernie_image(batch: int) -> dict[str, Any]:
    return _z_image(batch) | {"use_pe": False}


def _anyflow(batch: int) -> dict[str, Any]:
    return _five_frames(batch) | {"guidance_scale": 3.0}


def _anyflow_chunks(batch: int) -> dict[str, Any]:
    return _anyflow(batch) | {"num_frames": 9, "chunk_partition": [1, 2]}


def _kandinsky6(batch: int) -> dict[str, Any]:
    return {
        **guided(batch),
        "pooled_prompt_embeds": noise(batch, 16, seed=12),
        "negative_pooled_prompt_embeds": noise(batch, 16, seed=13),
        "num_frames": 5,
        "sample_audio": False,
    }


def _latte(batch: int) -> dict[str, Any]:
    return _no_words(batch) | {"video_length": 2, "output_type": "latents", "clean_caption": False}


def _flux_picture(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": text(batch),
        "pooled_prompt_embeds": noise(batch, POOLED_DIM, seed=20),
        "image": noise(1, 3, SIZE, SIZE, seed=30).clamp(-1, 1),
        "strength": 0.5,
        **_LATENT,
    }


def _sd3_picture(batch: int) -> dict[str, Any]:
    negative = {
        "negative_prompt_embeds": text(batch, 11),
        "negative_pooled_prompt_embeds": noise(batch, POOLED_DIM, seed=21),
    }
    return _flux_picture(batch) | negative


def _wan_video(batch: int) -> dict[str, Any]:
    video = noise(batch, 4, 2, SIZE // 8, SIZE // 8, seed=31)
    return guided(batch) | {"latents": video, "strength": 0.5}


def _ltx2(batch: int) -> dict[str, Any]:
    return masked(batch) | {
        "height": 4 * SIZE,
        "width": 4 * SIZE,
        "num_frames": 5,
        "spatio_temporal_guidance_blocks": [2],
    }


def _wan_vace(batch: int) -> dict[str, Any]:
    video = noise(batch, 5, 3, SIZE, SIZE, seed=32).clamp(-1, 1)
    return _five_frames(batch) | {"video": video, "mask": torch.ones_like(video)}


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
    row("anyflow", "AnyFlowPipeline", _anyflow, scheduler="FlowMapEulerDiscreteScheduler", guided_batch=True),
    row(
        "anyflow_far",
        "AnyFlowFARPipeline",
        _anyflow_chunks,
        scheduler="FlowMapEulerDiscreteScheduler",
        guided_batch=True,
    ),
    row("auraflow", "AuraFlowPipeline", masked, guided_batch=True),
    row("bria", "BriaPipeline", guided, guided_batch=True, vae=control_vae),
    row("chroma", "ChromaPipeline", _chroma, branches=_CALLS),
    row(
        "cogview3plus", "CogView3PlusPipeline", guided, scheduler="CogVideoXDDIMScheduler", guided_batch=True
    ),
    row("cogview4", "CogView4Pipeline", guided, branches=_CFG),
    row("easyanimate", "EasyAnimatePipeline", _masked_frames, guided_batch=True, vae=latent_space),
    row("ernie_image", "ErnieImagePipeline", _ernie_image, guided_batch=True, vae=latent_space),
    row("flux2", "Flux2Pipeline", _unguided),
    row("flux2_klein", "Flux2KleinPipeline", guided, "flux2", branches=_CFG, vae=latent_space),
    row("flux_picture", "FluxImg2ImgPipeline", _flux_picture, "flux", vae=control_vae),
    row("hidream", "HiDreamImagePipeline", _hidream, guided_batch=True, then=_small_squares),
    row("hunyuan_dit", "HunyuanDiTPipeline", _hunyuan_dit, scheduler="DDPMScheduler", guided_batch=True),
    row("hunyuan_image", "HunyuanImagePipeline", _hunyuan_image, branches=_PREDICTED, guider=_guider),
    row(
        "hunyuan_video15",
        "HunyuanVideo15Pipeline",
        _hunyuan_video15,
        branches=_PREDICTED,
        guider=_guider,
        vae=latent_space,
    ),
    row(
        "kandinsky5_image",
        "Kandinsky5T2IPipeline",
        _kandinsky5,
        "kandinsky5",
        branches=_CALLS,
        then=_small_pictures,
    ),
    row("kandinsky5_video", "Kandinsky5T2VPipeline", _kandinsky5_video, "kandinsky5", branches=_CALLS),
    row("kandinsky6_silent", "Kandinsky6TI2VAPipeline", _kandinsky6, branches=_CFG),
    row("krea2", "Krea2Pipeline", _krea2, branches=_CALLS),
    row("latte", "LattePipeline", _latte, scheduler="DDIMScheduler", guided_batch=True),
    row(
        "ltx2",
        "LTX2Pipeline",
        _ltx2,
        branches=("cond_uncond", "uncond_stg", "uncond_modality"),
        vae=latent_space,
        audio_vae=sound_space,
        connectors=same_for_both,
    ),
    row("ltx_video", "LTXPipeline", _ltx, branches=("cond_uncond",), guided_batch=True),
    row("lumina2", "Lumina2Pipeline", masked, branches=_CALLS),
    row("lumina_next", "LuminaPipeline", masked, guided_batch=True),
    row("mochi", "MochiPipeline", _mochi, branches=("cond_uncond",), guided_batch=True),
    row("motif", "MotifVideoPipeline", _masked_frames, branches=_PREDICTED, guider=_guider, vae=latent_space),
    row("nucleus_moe", "NucleusMoEImagePipeline", _nucleus, branches=_CALLS),
    row("ovis_image", "OvisImagePipeline", _no_words, branches=_CFG),
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
        "sd3_picture",
        "StableDiffusion3Img2ImgPipeline",
        _sd3_picture,
        "sd3",
        guided_batch=True,
        vae=control_vae,
    ),
    row(
        "skyreels_v2", "SkyReelsV2Pipeline", _five_frames, scheduler="UniPCMultistepScheduler", branches=_CFG
    ),
    row("wan_vace", "WanVACEPipeline", _wan_vace, branches=_CFG, vae=video_vae),
    row(
        "wan_video",
        "WanVideoToVideoPipeline",
        _wan_video,
        "wan",
        scheduler="UniPCMultistepScheduler",
        branches=_CALLS,
    ),
    row("z_image", "ZImagePipeline", _z_image, guided_batch=True),
)

ALL_PIPELINES: dict[str, TinyPipeline] = TINY | {spec.name: spec for spec in MORE}
