"""What a request to :class:`~dit_cache_backends.hosts.omni.Omni` says, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from dit_cache_backends.configuration.sources import NOT_SAID
from dit_cache_backends.errors import ConfigError, near

if TYPE_CHECKING:
    import torch

    from dit_cache_backends.summary import Summary

__all__ = ["OmniDiffusionSamplingParams", "OmniRequestOutput", "call_arguments"]


@dataclass
class OmniDiffusionSamplingParams:
    """How to sample: vLLM-Omni's names for what a diffusers pipeline is called with.

    ``None`` leaves a value to the pipeline. A value for which the pipeline has no argument is refused when it is
    called, by name; nothing is dropped. What has no field here goes into ``extra_args``.
    """

    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    guidance_rescale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    generator_device: str | None = None
    """Where the generator of ``seed`` lives. The CPU unless said, so that a seed means one picture everywhere."""
    num_outputs_per_prompt: int = 1
    num_frames: int | None = None
    frame_rate: float | None = None
    fps: float | None = None
    max_sequence_length: int | None = None
    output_type: str | None = None
    strength: float | None = None
    eta: float | None = None
    sigmas: list[float] | None = None
    timesteps: list[int] | torch.Tensor | None = None
    latents: torch.Tensor | None = None
    decode_timestep: float | list[float] | None = None
    decode_noise_scale: float | list[float] | None = None
    layers: int | None = None
    resolution: int | None = None
    cfg_normalize: bool | None = None
    use_en_prompt: bool | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)
    cache_backend: Any = NOT_SAID
    """The cache of this request alone: a backend as :func:`~dit_cache_backends.registry.get_cache_backend` takes it;
    ``None`` or ``"none"`` for no cache; unless said, that of the engine."""
    cache_config: Any = None
    """Options of the cache for this request alone. With the engine's own backend they stand over its options."""


@dataclass
class OmniRequestOutput:
    """What came of one prompt."""

    request_id: str
    prompt: Any
    images: list[Any]
    """The pictures as the pipeline gave them; for a video pipeline its videos, each a list of frames."""
    final_output_type: str = "image"
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: ``total`` for the whole call; ``in_turn`` without the turns of other requests; ``transformer``, where it
    can be told, for the part spent in them."""
    cache_summary: Summary | None = None
    finished: bool = True
    stage_id: int = 0
    error: str | None = None

    @property
    def request_output(self) -> list[OmniRequestOutput]:
        """The output itself in a list, where older releases of vLLM-Omni had it."""
        return [self]

    @property
    def metrics(self) -> dict[str, float]:
        """Another name for ``timings``."""
        return self.timings

    @property
    def stage_durations(self) -> dict[str, float]:
        """Another name for ``timings``."""
        return self.timings

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


# Fields that are an argument of another name, or none at all.
_TRANSLATED = {
    "negative_prompt",
    "seed",
    "generator",
    "generator_device",
    "num_outputs_per_prompt",
    "num_frames",
    "extra_args",
    "cache_backend",
    "cache_config",
}
_PROMPT_KEYS = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
_OTHER_PROMPT_KEYS = ("multi_modal_data", "modalities")


def call_arguments(
    prompt: str | Mapping[str, Any],
    params: OmniDiffusionSamplingParams,
    known: Mapping[str, object],
    pipeline: str,
) -> dict[str, Any]:
    """The arguments with which to call a pipeline for one prompt.

    Args:
        prompt: The text, or a mapping with ``prompt`` and what belongs to it.
        params: How to sample.
        known: The arguments that the pipeline has.
        pipeline: Its name, for the messages.

    Raises:
        ConfigError: Something was given that the pipeline has no argument for.
    """
    arguments = {
        each.name: getattr(params, each.name)
        for each in fields(params)
        if each.name not in _TRANSLATED and getattr(params, each.name) is not None
    }
    if params.negative_prompt is not None:
        arguments["negative_prompt"] = params.negative_prompt
    if params.num_frames is not None and (params.num_frames != 1 or "num_frames" in known):
        arguments["num_frames"] = params.num_frames  # vLLM-Omni's own default is 1, also for pictures
    if params.num_outputs_per_prompt != 1:
        names = [name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in known]
        arguments[names[0] if names else "num_outputs_per_prompt"] = params.num_outputs_per_prompt
    if (generator := _generator(params)) is not None:
        arguments["generator"] = generator
    arguments |= params.extra_args
    arguments |= _prompt_arguments(prompt)
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ConfigError(
            f"{pipeline} has no argument {', '.join(map(repr, unknown))}.{near(unknown[0], known)}"
            f" Leave it out, or use a pipeline that has it. {pipeline} knows: {', '.join(known)}."
        )
    return arguments


def _prompt_arguments(prompt: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if not isinstance(prompt, Mapping):
        raise ConfigError(
            f"a prompt is a text or a mapping with the key 'prompt', got {type(prompt).__name__}"
        )
    unknown = [key for key in prompt if key not in (*_PROMPT_KEYS, *_OTHER_PROMPT_KEYS)]
    if unknown:
        raise ConfigError(
            f"a prompt has no key {unknown[0]!r}.{near(str(unknown[0]), _PROMPT_KEYS)}"
            f" Known: {', '.join((*_PROMPT_KEYS, *_OTHER_PROMPT_KEYS))}."
        )
    if "prompt" not in prompt and "prompt_embeds" not in prompt:
        raise ConfigError("a prompt given as a mapping needs the key 'prompt' or 'prompt_embeds'")
    given = {key: prompt[key] for key in _PROMPT_KEYS if prompt.get(key) is not None}
    return given | dict(prompt.get("multi_modal_data") or {})


def _generator(params: OmniDiffusionSamplingParams) -> Any:
    if params.generator is not None:
        return params.generator
    if params.seed is None:
        return None
    import torch

    return torch.Generator(params.generator_device or "cpu").manual_seed(params.seed)
