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

from . import pipeline_calls as calls
from .latent_vae import control_vae, latent_space, same_for_both, sound_space, video_vae
from .pipelines import SIZE, TINY, Tiny, TinyPipeline
from .transformers import TINY_TRANSFORMERS, build_transformer

Arguments = Callable[[int], dict[str, Any]]


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


def _small_pictures(pipe: Any) -> None:
    pipe.resolutions = [(SIZE, SIZE)]


def _small_squares(pipe: Any) -> None:
    pipe.default_sample_size = SIZE // pipe.vae_scale_factor


def _guider() -> Any:
    from diffusers import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=3.0)


_CFG = ("cond", "uncond")
_CALLS = ("0", "1")
_PREDICTED = ("pred_cond", "pred_uncond")

MORE: tuple[TinyPipeline, ...] = (
    row(
        "allegro",
        "AllegroPipeline",
        calls.allegro,
        scheduler="EulerAncestralDiscreteScheduler",
        guided_batch=True,
    ),
    row(
        "anyflow",
        "AnyFlowPipeline",
        calls.anyflow,
        scheduler="FlowMapEulerDiscreteScheduler",
        guided_batch=True,
    ),
    row(
        "anyflow_far",
        "AnyFlowFARPipeline",
        calls.anyflow_chunks,
        scheduler="FlowMapEulerDiscreteScheduler",
        guided_batch=True,
    ),
    row("auraflow", "AuraFlowPipeline", calls.masked, guided_batch=True),
    row("bria", "BriaPipeline", calls.guided, guided_batch=True, vae=control_vae),
    row("chroma", "ChromaPipeline", calls.chroma, branches=_CALLS),
    row(
        "cogview3plus",
        "CogView3PlusPipeline",
        calls.guided,
        scheduler="CogVideoXDDIMScheduler",
        guided_batch=True,
    ),
    row("cogview4", "CogView4Pipeline", calls.guided, branches=_CFG),
    row("easyanimate", "EasyAnimatePipeline", calls.masked_frames, guided_batch=True, vae=latent_space),
    row("ernie_image", "ErnieImagePipeline", calls.ernie_image, guided_batch=True, vae=latent_space),
    row("flux2", "Flux2Pipeline", calls.unguided),
    row("flux2_klein", "Flux2KleinPipeline", calls.guided, "flux2", branches=_CFG, vae=latent_space),
    row("flux_picture", "FluxImg2ImgPipeline", calls.flux_picture, "flux", vae=control_vae),
    row("hidream", "HiDreamImagePipeline", calls.hidream, guided_batch=True, then=_small_squares),
    row("hunyuan_dit", "HunyuanDiTPipeline", calls.hunyuan_dit, scheduler="DDPMScheduler", guided_batch=True),
    row("hunyuan_image", "HunyuanImagePipeline", calls.hunyuan_image, branches=_PREDICTED, guider=_guider),
    row(
        "hunyuan_video15",
        "HunyuanVideo15Pipeline",
        calls.hunyuan_video15,
        branches=_PREDICTED,
        guider=_guider,
        vae=latent_space,
    ),
    row(
        "kandinsky5_image",
        "Kandinsky5T2IPipeline",
        calls.kandinsky5,
        "kandinsky5",
        branches=_CALLS,
        then=_small_pictures,
    ),
    row("kandinsky5_video", "Kandinsky5T2VPipeline", calls.kandinsky5_video, "kandinsky5", branches=_CALLS),
    row("kandinsky6_silent", "Kandinsky6TI2VAPipeline", calls.kandinsky6, branches=_CFG),
    row("krea2", "Krea2Pipeline", calls.krea2, branches=_CALLS),
    row("latte", "LattePipeline", calls.latte, scheduler="DDIMScheduler", guided_batch=True),
    row(
        "ltx2",
        "LTX2Pipeline",
        calls.ltx2,
        branches=("cond_uncond", "uncond_stg", "uncond_modality"),
        vae=latent_space,
        audio_vae=sound_space,
        connectors=same_for_both,
    ),
    row("ltx_video", "LTXPipeline", calls.ltx, branches=("cond_uncond",), guided_batch=True),
    row("lumina2", "Lumina2Pipeline", calls.masked, branches=_CALLS),
    row("lumina_next", "LuminaPipeline", calls.masked, guided_batch=True),
    row("mochi", "MochiPipeline", calls.mochi, branches=("cond_uncond",), guided_batch=True),
    row(
        "motif",
        "MotifVideoPipeline",
        calls.masked_frames,
        branches=_PREDICTED,
        guider=_guider,
        vae=latent_space,
    ),
    row("nucleus_moe", "NucleusMoEImagePipeline", calls.nucleus, branches=_CALLS),
    row("ovis_image", "OvisImagePipeline", calls.no_words, branches=_CFG),
    row(
        "pixart_sigma",
        "PixArtSigmaPipeline",
        calls.square,
        "pixart",
        scheduler="DPMSolverMultistepScheduler",
        guided_batch=True,
    ),
    row("prx", "PRXPipeline", calls.prx, guided_batch=True),
    row("sana", "SanaPipeline", calls.square, scheduler="DPMSolverMultistepScheduler", guided_batch=True),
    row("sana_video", "SanaVideoPipeline", calls.sana_video, guided_batch=True),
    row(
        "sd3_picture",
        "StableDiffusion3Img2ImgPipeline",
        calls.sd3_picture,
        "sd3",
        guided_batch=True,
        vae=control_vae,
    ),
    row(
        "skyreels_v2",
        "SkyReelsV2Pipeline",
        calls.five_frames,
        scheduler="UniPCMultistepScheduler",
        branches=_CFG,
    ),
    row("wan_vace", "WanVACEPipeline", calls.wan_vace, branches=_CFG, vae=video_vae),
    row(
        "wan_video",
        "WanVideoToVideoPipeline",
        calls.wan_video,
        "wan",
        scheduler="UniPCMultistepScheduler",
        branches=_CALLS,
    ),
    row("z_image", "ZImagePipeline", calls.z_image, guided_batch=True),
)

ALL_PIPELINES: dict[str, TinyPipeline] = TINY | {spec.name: spec for spec in MORE}
