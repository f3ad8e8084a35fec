"""What there is to know of a pipeline's call: its arguments, how many steps it takes, what it gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dit_cache_backends.errors import ConfigError, UnknownTransformerError
from dit_cache_backends.pipelines import transformers_of

__all__ = ["arguments_of", "device_of", "pictures_of", "steps_of", "transformers_in"]


def arguments_of(pipeline: Any) -> dict[str, inspect.Parameter]:
    """The arguments that the pipeline is called with, by name."""
    parameters = inspect.signature(pipeline.__call__).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def steps_of(pipeline: Any, arguments: Mapping[str, Any]) -> int:
    """How many steps the call will take, as far as its arguments tell; 0 if they do not."""
    for name in ("timesteps", "sigmas"):
        if arguments.get(name) is not None:
            return len(arguments[name])
    default = arguments_of(pipeline).get("num_inference_steps")
    steps = arguments.get("num_inference_steps", default.default if default is not None else None)
    return steps if isinstance(steps, int) else 0


def transformers_in(pipeline: Any) -> list[nn.Module]:
    """The transformers of the pipeline; none in one that can run, just not with a cache."""
    try:
        return list(transformers_of(pipeline).values())
    except UnknownTransformerError:
        return []


def device_of(pipeline: Any) -> torch.device:
    """Where the first transformer's weights are; the CPU if there are none."""
    for module in transformers_in(pipeline):
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")


def pictures_of(result: Any) -> tuple[list[Any], str]:
    """The pictures, videos or sounds in what a pipeline returned, and which of them they are.

    Raises:
        ConfigError: It holds none of them.
    """
    # Kandinsky 5 and 6 say image.
    names = {"images": "image", "image": "image", "frames": "video", "audios": "audio"}
    for name, kind in names.items():
        if hasattr(result, name):
            return list(getattr(result, name)), kind
    raise ConfigError(
        f"the pipeline gave a {type(result).__name__}, which holds neither images, frames nor audios"
    )
