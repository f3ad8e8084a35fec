"""vLLM-Omni's offline entry point, on a diffusers pipeline in this process.

What its documentation shows runs with the import changed::

    from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams

    omni = Omni(model="Qwen/Qwen-Image", cache_backend="cache_dit")
    outputs = omni.generate("a cup of coffee", OmniDiffusionSamplingParams(num_inference_steps=28, seed=1))
    outputs[0].images[0].save("coffee.png")
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn
from typing_extensions import Self

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.errors import ConfigError, UnknownTransformerError, near
from dit_cache_backends.hosts.requests import OmniDiffusionSamplingParams, OmniRequestOutput, call_arguments
from dit_cache_backends.hosts.timing import transformer_seconds
from dit_cache_backends.pipelines import transformers_of
from dit_cache_backends.registry import get_cache_backend

__all__ = ["Omni", "OmniDiffusionSamplingParams", "OmniRequestOutput"]

log = logging.getLogger(__name__)

Prompt = str | Mapping[str, Any]

_FROM_ENVIRONMENT: Any = object()
_ENVIRONMENT = "DIFFUSION_CACHE_BACKEND"


class Omni:
    """A diffusers pipeline with a cache backend, driven as vLLM-Omni's ``Omni`` is.

    Also a context manager: leaving it takes the cache off the pipeline.

    Args:
        model: A folder or the name of a model for ``DiffusionPipeline.from_pretrained``; a diffusers pipeline,
            which is used as it is; or ``"demo"``, the model that is shipped with this package. A mapping named
            ``call_defaults`` on the pipeline fills in what a request does not say.
        cache_backend: As for :func:`~dit_cache_backends.registry.get_cache_backend`. If it is left out, the
            environment variable ``DIFFUSION_CACHE_BACKEND`` decides, as with vLLM-Omni; ``None`` means no cache.
        cache_config: The backend's options.
        dtype: ``torch.bfloat16`` or its name. Unless said, bfloat16 on a GPU and float32 on a CPU; a pipeline
            that was handed over stays as it is.
        device: Where to run. Unless said, the first GPU if there is one; a pipeline that was handed over stays.
        enable_cache_dit_summary: Log the cache's summary after each prompt.

    Raises:
        ConfigError: An argument is unknown or the options do not fit the backend.
        UnknownBackendError: No backend of that name is installed.
        UnknownTransformerError: Nothing is known of the pipeline's transformer.
    """

    def __init__(
        self,
        model: object,
        cache_backend: object = _FROM_ENVIRONMENT,
        cache_config: object = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        enable_cache_dit_summary: bool = False,
        **unknown: object,
    ) -> None:
        if unknown:
            known = [name for name in inspect.signature(Omni).parameters if name != "unknown"]
            name = next(iter(unknown))
            raise ConfigError(
                f"Omni has no argument {', '.join(map(repr, unknown))}.{near(name, known)} It runs a diffusers"
                f" pipeline in this process, so what concerns vLLM-Omni's engine has no meaning here; leave it out."
                f" Known: {', '.join(known)}."
            )
        if cache_backend is _FROM_ENVIRONMENT:
            cache_backend = os.environ.get(_ENVIRONMENT) or None
        # Before the model is loaded, so that a wrong option costs no minutes.
        self.backend: CacheBackend | None = get_cache_backend(cache_backend, cache_config)
        self.pipeline: Any = _load(model, _dtype(dtype), device)
        self._log_summary = enable_cache_dit_summary
        if self.backend is not None:
            self.backend.enable(self.pipeline)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params_list: OmniDiffusionSamplingParams
        | Sequence[OmniDiffusionSamplingParams]
        | None = None,
        *,
        py_generator: bool = False,
        use_tqdm: bool = True,
    ) -> Any:
        """Draw each prompt, one after the other.

        Args:
            prompts: A text, or a mapping with the keys ``prompt`` and ``negative_prompt``, or several of them.
            sampling_params_list: How to sample: one for all prompts (also as a list of one), or one for each.
            py_generator: Give an iterator, which draws a prompt when asked for the next, instead of a list.
            use_tqdm: Show the pipeline's progress bar.

        Returns:
            An :class:`OmniRequestOutput` for each prompt.

        Raises:
            ConfigError: The pipeline has no argument for something that was given.
        """
        requests = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        each = _one_for_each(sampling_params_list, len(requests))
        known = _arguments_of(self.pipeline)
        name = type(self.pipeline).__name__
        defaults = dict(getattr(self.pipeline, "call_defaults", {}))
        calls = [
            defaults | call_arguments(prompt, params, known, name)
            for prompt, params in zip(requests, each, strict=True)
        ]
        outputs = self._run(requests, calls, use_tqdm)
        return outputs if py_generator else list(outputs)

    def close(self) -> None:
        """Take the cache off the pipeline. The pipeline itself is left as it was."""
        if self.backend is not None:
            self.backend.disable(self.pipeline)

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, prompts: Iterable[Prompt], calls: Iterable[dict[str, Any]], use_tqdm: bool
    ) -> Iterator[OmniRequestOutput]:
        for index, (prompt, arguments) in enumerate(zip(prompts, calls, strict=True)):
            if self.backend is not None:
                self.backend.refresh(self.pipeline, _steps(self.pipeline, arguments))
            with (
                _progress(self.pipeline, use_tqdm),
                transformer_seconds(_transformers(self.pipeline)) as watch,
            ):
                began = time.perf_counter()
                result = self.pipeline(**arguments)
                total = time.perf_counter() - began
            summary = None if self.backend is None else self.backend.summary()
            if self._log_summary and summary is not None:
                log.info("%s\n%s", prompt, summary)
            images, kind = _images(result)
            yield OmniRequestOutput(
                request_id=f"{index}_{uuid4()}",
                prompt=prompt,
                images=images,
                final_output_type=kind,
                timings={"total": total} | ({"transformer": watch.seconds} if watch.calls else {}),
                cache_summary=summary,
            )


def _load(model: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    if not isinstance(model, (str, Path)):
        if not callable(model) or isinstance(model, (nn.Module, type)):
            raise ConfigError(
                "model is a folder, the name of a model, 'demo' or a diffusers pipeline; got"
                f" {model.__name__ if isinstance(model, type) else type(model).__name__}"
            )
        wanted = {
            key: value for key, value in {"dtype": dtype, "device": device}.items() if value is not None
        }
        return model.to(**wanted) if wanted else model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    try:
        if model == "demo":
            from dit_cache_backends.demo import load_demo

            pipeline = load_demo(device=str(device))
            return pipeline if pipeline.dtype == dtype else pipeline.to(dtype=dtype)
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(str(model), dtype=dtype).to(device)
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        raise ConfigError(f"the model {str(model)!r} cannot be loaded: {error}") from error


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype):
        raise ConfigError(
            f"dtype is a torch.dtype or its name, such as 'bfloat16' or 'float32', got {dtype!r}"
        )
    return found


def _one_for_each(given: object, count: int) -> list[OmniDiffusionSamplingParams]:
    listed = [OmniDiffusionSamplingParams()] if given is None else given
    listed = [listed] if isinstance(listed, OmniDiffusionSamplingParams) else listed
    if not isinstance(listed, Sequence) or not all(
        isinstance(one, OmniDiffusionSamplingParams) for one in listed
    ):
        raise ConfigError(
            f"sampling parameters are OmniDiffusionSamplingParams or a list of them, got {given!r}"
        )
    if len(listed) == 1:
        return [listed[0]] * count
    if len(listed) != count:
        raise ConfigError(
            f"got {len(listed)} sampling parameters for {count} prompts; give one, or one for each"
        )
    return list(listed)


def _arguments_of(pipeline: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(pipeline.__call__).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def _steps(pipeline: Any, arguments: Mapping[str, Any]) -> int:
    """How many steps the call will take, as far as its arguments tell; 0 if they do not."""
    for name in ("timesteps", "sigmas"):
        if arguments.get(name) is not None:
            return len(arguments[name])
    default = _arguments_of(pipeline).get("num_inference_steps")
    steps = arguments.get("num_inference_steps", default.default if default is not None else None)
    return steps if isinstance(steps, int) else 0


def _transformers(pipeline: Any) -> list[nn.Module]:
    try:
        return list(transformers_of(pipeline).values())
    except UnknownTransformerError:
        return []  # a pipeline without one can run, just not with a cache


def _images(result: Any) -> tuple[list[Any], str]:
    for name, kind in (("images", "image"), ("frames", "video"), ("audios", "audio")):
        if hasattr(result, name):
            return list(getattr(result, name)), kind
    raise ConfigError(
        f"the pipeline gave a {type(result).__name__}, which holds neither images, frames nor audios"
    )


@contextmanager
def _progress(pipeline: Any, show: bool) -> Iterator[None]:
    """The pipeline's own progress bar, hidden for a while if it is not wanted."""
    if show or not hasattr(pipeline, "set_progress_bar_config"):
        yield
        return
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**(before | {"disable": True}))
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)
