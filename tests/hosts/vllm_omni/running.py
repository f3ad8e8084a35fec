"""The real runner of vLLM-Omni with a tiny pipeline in it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from cache_dit.caching.block_adapters import FakeDiffusionPipeline
from torch import Tensor
from vllm.config import VllmConfig
from vllm_omni.diffusion.data import DiffusionCacheConfig, OmniDiffusionConfig
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.worker.diffusion_model_runner import DiffusionModelRunner
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

QWEN, FLUX = "TinyQwenImagePipeline", "TinyFluxPipeline"
_numbers = itertools.count()


def runner(
    backend: str | None = None,
    options: dict[str, Any] | None = None,
    pipeline: str = QWEN,
    eager: bool = True,
    **more: Any,
) -> DiffusionModelRunner:
    """Loaded the way a worker loads it, with the cache that was asked for."""
    config = OmniDiffusionConfig(
        model_class_name=pipeline,
        cache_backend=backend,
        cache_config=DiffusionCacheConfig.from_dict(options or {}),
        enforce_eager=eager,
        dtype=torch.float32,
        **more,
    )
    if vars(FakeDiffusionPipeline).get("_is_cached"):
        # cache-dit notes on this class that it is enabled, and refuses the next model of the process.
        del FakeDiffusionPipeline._is_cached
    made = DiffusionModelRunner(VllmConfig(), config, torch.device("cpu"))
    made.load_model(load_format="custom_pipeline", custom_pipeline_name=f"{__package__}.pipelines.{pipeline}")
    return made


def request(
    prompt: str = "a red cube",
    steps: int | None = 12,
    seed: int = 0,
    negative: str | None = "blur",
    **more: Any,
) -> OmniDiffusionRequest:
    """One picture of 64 by 64 pixels, as latents."""
    params = {"height": 64, "width": 64, "seed": seed, "output_type": "latent", "num_inference_steps": steps}
    text = {"prompt": prompt} | ({} if negative is None else {"negative_prompt": negative})
    return OmniDiffusionRequest(
        prompt=text,
        sampling_params=OmniDiffusionSamplingParams(**(params | more)),
        request_id=f"request-{next(_numbers)}",
    )


def draw(made: DiffusionModelRunner, asked: OmniDiffusionRequest | None = None) -> Tensor:
    """The latents of one request, by the runner's request mode."""
    output = made.execute_model(asked or request())
    assert output.error is None
    found: Tensor = output.output
    return found.clone()
