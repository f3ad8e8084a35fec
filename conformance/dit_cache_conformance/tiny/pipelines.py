"""Ten diffusers pipelines with random weights, from a prompt's embeddings to the final latents.

`build("flux").run()` takes a fraction of a second. Text encoders and, where the pipeline can do without, the
VAE are None; the embeddings are seeded noise and so are the first latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import configs
from .configs import POOLED_DIM, TEXT_DIM, TEXT_TOKENS
from .latent_vae import control_vae, latent_recorder
from .weights import noise

SIZE = 64
NEGATIVE_TOKENS = 6


@dataclass(frozen=True)
class TinyPipeline:
    """How to build one tiny pipeline, how to call it, and what a cache finds in it.

    Attributes:
        make: builds the pipeline, always with the same weights.
        arguments: call arguments for a batch size, embeddings included.
        transformers: pipeline attributes that hold a denoising transformer, in the order of their use.
        stacks: block stacks of each transformer, named by their first module list, with their depths.
        branches: names of the calls within one step, in order; a digit where the pipeline opens no
            `cache_context`.
        guided_batch: true if one call carries the conditional and the unconditional half.
    """

    name: str
    make: Callable[..., Any]
    arguments: Callable[[int], dict[str, Any]]
    transformers: tuple[str, ...] = ("transformer",)
    stacks: dict[str, int] = field(default_factory=dict)
    branches: tuple[str, ...] = ("0",)
    guided_batch: bool = False


class Tiny:
    """One built pipeline."""

    def __init__(self, spec: TinyPipeline, **depth: int) -> None:
        self.spec = spec
        self.pipe: Any = spec.make(**depth)
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def transformers(self) -> dict[str, nn.Module]:
        return {name: getattr(self.pipe, name) for name in self.spec.transformers}

    def run(
        self, num_inference_steps: int = 28, seed: int = 0, batch: int = 1, **overrides: Any
    ) -> torch.Tensor:
        """Run the pipeline and return its final latents. `overrides` replace or add call arguments."""
        arguments = self.spec.arguments(batch) | {
            "num_inference_steps": num_inference_steps,
            "generator": torch.Generator().manual_seed(seed),
            "return_dict": False,
        }
        latents: Any = self.pipe(**(arguments | overrides))[0]
        if self.spec.name == "dit":
            latents = self.pipe.vae.latents
        assert isinstance(latents, torch.Tensor)
        return latents


def build(name: str, **depth: int) -> Tiny:
    """Build the tiny pipeline of that name (see `TINY`); `depth` as in `build_transformer`."""
    return Tiny(TINY[name], **depth)


def _text(batch: int, tokens: int = TEXT_TOKENS, seed: int = 10) -> torch.Tensor:
    return noise(batch, tokens, TEXT_DIM, seed=seed)


def _pooled(batch: int, seed: int = 20) -> torch.Tensor:
    return noise(batch, POOLED_DIM, seed=seed)


def _flow_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def _flux(**depth: int) -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline(_flow_scheduler(), None, None, None, None, None, configs.flux(**depth))


def _flux_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "pooled_prompt_embeds": _pooled(batch),
        "height": SIZE,
        "width": SIZE,
        "output_type": "latent",
    }


def _flux_controlnet(**depth: int) -> Any:
    from diffusers import FluxControlNetPipeline

    transformer, controlnet = configs.flux(**depth), configs.flux_controlnet()
    return FluxControlNetPipeline(
        _flow_scheduler(), control_vae(), None, None, None, None, transformer, controlnet
    )


def _flux_controlnet_arguments(batch: int) -> dict[str, Any]:
    return _flux_arguments(batch) | {"control_image": noise(1, 3, SIZE, SIZE, seed=30).clamp(-1, 1)}


def _qwen_image() -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(_flow_scheduler(), None, None, None, configs.qwen_image())


def _qwen_image_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "prompt_embeds_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.long),
        "negative_prompt_embeds": _text(batch, NEGATIVE_TOKENS, seed=11),
        "negative_prompt_embeds_mask": torch.ones(batch, NEGATIVE_TOKENS, dtype=torch.long),
        "true_cfg_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
        "output_type": "latent",
    }


def _sd3(**depth: int) -> Any:
    from diffusers import StableDiffusion3Pipeline

    none = (None,) * 6
    return StableDiffusion3Pipeline(configs.sd3(**depth), _flow_scheduler(), None, *none)


def _sd3_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "negative_prompt_embeds": _text(batch, seed=11),
        "pooled_prompt_embeds": _pooled(batch),
        "negative_pooled_prompt_embeds": _pooled(batch, seed=21),
        "height": SIZE,
        "width": SIZE,
        "output_type": "latent",
    }


def _wan() -> Any:
    from diffusers import WanPipeline

    return WanPipeline(None, None, None, _flow_scheduler(), configs.wan())


def _wan22() -> Any:
    from diffusers import WanPipeline

    return WanPipeline(
        None, None, None, _flow_scheduler(), configs.wan(0), configs.wan(1), boundary_ratio=0.6
    )


def _wan_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "negative_prompt_embeds": _text(batch, seed=11),
        "height": SIZE,
        "width": SIZE,
        "num_frames": 5,
        "output_type": "latent",
    }


def _cogvideox() -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    return CogVideoXPipeline(None, None, None, configs.cogvideox(), CogVideoXDDIMScheduler(clip_sample=False))


def _cogvideox_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "negative_prompt_embeds": _text(batch, seed=11),
        "height": SIZE,
        "width": SIZE,
        "num_frames": 9,
        "max_sequence_length": TEXT_TOKENS,
        "output_type": "latent",
    }


def _hunyuan_video() -> Any:
    from diffusers import HunyuanVideoPipeline

    return HunyuanVideoPipeline(None, None, configs.hunyuan_video(), None, _flow_scheduler(), None, None)


def _hunyuan_video_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "pooled_prompt_embeds": _pooled(batch),
        "prompt_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "height": SIZE,
        "width": SIZE,
        "num_frames": 5,
        "output_type": "latent",
    }


def _dit(**depth: int) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    return DiTPipeline(configs.dit(**depth), latent_recorder(), DDIMScheduler(clip_sample=False))


def _dit_arguments(batch: int) -> dict[str, Any]:
    return {"class_labels": list(range(1, batch + 1)), "output_type": "pt"}


def _pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline

    return PixArtAlphaPipeline(None, None, None, configs.pixart(), DPMSolverMultistepScheduler())


def _pixart_arguments(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _text(batch),
        "prompt_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "negative_prompt": None,
        "negative_prompt_embeds": _text(batch, seed=11),
        "negative_prompt_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "height": SIZE,
        "width": SIZE,
        "use_resolution_binning": False,
        "output_type": "latent",
    }


_CFG = ("cond", "uncond")
_EXPERTS = ("transformer", "transformer_2")

TINY: dict[str, TinyPipeline] = {
    spec.name: spec
    for spec in (
        TinyPipeline("flux", _flux, _flux_arguments, stacks={"transformer_blocks": 12}, branches=("cond",)),
        TinyPipeline(
            "flux_controlnet",
            _flux_controlnet,
            _flux_controlnet_arguments,
            stacks={"transformer_blocks": 12},
        ),
        TinyPipeline(
            "qwen_image", _qwen_image, _qwen_image_arguments, stacks={"transformer_blocks": 6}, branches=_CFG
        ),
        TinyPipeline("sd3", _sd3, _sd3_arguments, stacks={"transformer_blocks": 7}, guided_batch=True),
        TinyPipeline("wan", _wan, _wan_arguments, stacks={"blocks": 6}, branches=_CFG),
        TinyPipeline("wan22", _wan22, _wan_arguments, _EXPERTS, stacks={"blocks": 6}, branches=_CFG),
        TinyPipeline(
            "cogvideox",
            _cogvideox,
            _cogvideox_arguments,
            stacks={"transformer_blocks": 6},
            branches=("cond_uncond",),
            guided_batch=True,
        ),
        TinyPipeline(
            "hunyuan_video",
            _hunyuan_video,
            _hunyuan_video_arguments,
            stacks={"transformer_blocks": 3, "single_transformer_blocks": 5},
            branches=("cond",),
        ),
        TinyPipeline("dit", _dit, _dit_arguments, stacks={"transformer_blocks": 8}, guided_batch=True),
        TinyPipeline(
            "pixart", _pixart, _pixart_arguments, stacks={"transformer_blocks": 7}, guided_batch=True
        ),
    )
}
