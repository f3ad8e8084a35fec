"""A pipeline that gives videos: the demo model drawing three frames at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from diffusers import FluxPipeline

from dit_cache_backends.demo import load_demo

FRAMES = 3


class Film(FluxPipeline):  # type: ignore[misc]
    """Gives ``frames``, one video of arrays between 0 and 1, as diffusers' video pipelines do."""

    def __call__(
        self,
        prompt: Any = None,
        height: int = 64,
        width: int = 64,
        num_inference_steps: int = 28,
        guidance_scale: float = 1.0,
        max_sequence_length: int = 14,
        generator: Any = None,
        output_type: str = "np",
        callback_on_step_end: Any = None,
    ) -> Any:
        called = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        images = super().__call__(**called, num_images_per_prompt=FRAMES).images
        return SimpleNamespace(frames=[images])


def film() -> Any:
    """The pipeline."""
    pipeline = load_demo()
    pipeline.__class__ = Film
    return pipeline
