"""vLLM-Omni's Qwen-Image and FLUX.1 pipelines with tiny transformers, and without encoders and decoders of size.

How requests are prepared, the denoising loops, guidance, and step mode are the pipelines' own.
"""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn
from vllm_omni.diffusion.data import DiffusionOutput
from vllm_omni.diffusion.models.flux.pipeline_flux import FluxPipeline
from vllm_omni.diffusion.models.qwen_image.pipeline_qwen_image import QwenImagePipeline
from vllm_omni.diffusion.registry import _apply_sequence_parallel_if_enabled

from .tiny import TEXT, TINY, WORDS, noise

SCALE = 8
"""Pixels along the side of a latent."""


def embedded(prompts: list[str], width: int, words: int = WORDS) -> Tensor:
    """What stands for a text encoder: seeded noise, another for each text."""
    return torch.cat([noise(1, words, width, seed=zlib.crc32(prompt.encode())) for prompt in prompts])


def picture(latents: Tensor) -> Image.Image:
    """What stands for a decoder: the first three channels of one sample, ``[channels, height, width]``, as colours."""
    colours = (latents[:3].float().clamp(-2, 2) + 2) / 4 * 255
    return Image.fromarray(colours.permute(1, 2, 0).byte().numpy()).resize((64, 64))


def _begin(self: Any, od_config: Any, kind: str) -> None:
    nn.Module.__init__(self)
    self.od_config = od_config
    self.parallel_config = od_config.parallel_config
    self.weights_sources = []
    self.device = torch.device("cpu")
    self.scheduler = FlowMatchEulerDiscreteScheduler()
    self.transformer = TINY[kind].build()
    self.stage = None
    self.vae_scale_factor = SCALE
    self.tokenizer_max_length = 1024
    self.default_sample_size = 8
    self.setup_diffusion_pipeline_profiler(enable_diffusion_pipeline_profiler=False)
    _apply_sequence_parallel_if_enabled(
        self, od_config
    )  # as the loader does for pipelines of vLLM-Omni's registry


class TinyQwenImagePipeline(QwenImagePipeline):
    """Qwen-Image: guidance by a second forward for the negative prompt, requests in batches, and step mode."""

    def __init__(self, *, od_config: Any, prefix: str = "") -> None:
        _begin(self, od_config, "qwen_image")

    def load_weights(self, weights: Any) -> set[str]:
        """All of them are there; there is no checkpoint."""
        return {name for name, _ in self.named_parameters()}

    def encode_prompt(self, prompt: Any = None, prompt_embeds: Any = None, **_: Any) -> tuple[Tensor, Tensor]:
        embeds = embedded(prompt, TEXT) if prompt_embeds is None else prompt_embeds
        return embeds, torch.ones(embeds.shape[:2], dtype=torch.long)

    def _decode_latents(
        self, latents: Tensor, height: int, width: int, output_type: str = "pil"
    ) -> DiffusionOutput:
        if output_type == "latent":
            return DiffusionOutput(output=latents)
        grid = self._unpack_latents(latents, height, width, SCALE)
        return DiffusionOutput(output=[picture(sample[:, 0]) for sample in grid])


class TinyFluxPipeline(FluxPipeline):
    """FLUX.1: guidance distilled into the model, one forward for each step."""

    def __init__(self, *, od_config: Any, prefix: str = "") -> None:
        _begin(self, od_config, "flux")
        config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0)
        self.vae = SimpleNamespace(
            config=config, decode=lambda latents, return_dict: ([picture(sample) for sample in latents],)
        )

    load_weights = TinyQwenImagePipeline.load_weights

    def encode_prompt(
        self, prompt: Any = None, prompt_embeds: Any = None, pooled_prompt_embeds: Any = None, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        embeds = embedded(prompt, TEXT) if prompt_embeds is None else prompt_embeds
        pooled = embedded(prompt, 20, words=1)[:, 0] if pooled_prompt_embeds is None else pooled_prompt_embeds
        return embeds, pooled, torch.zeros(embeds.shape[1], 3)


__all__ = ["TinyFluxPipeline", "TinyQwenImagePipeline"]
