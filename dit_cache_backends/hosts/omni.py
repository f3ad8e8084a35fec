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
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn
from typing_extensions import Self

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.configuration.settings import NOT_SAID, Settings, find_settings
from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.hosts.calls import device_of
from dit_cache_backends.hosts.engine import Engine, check_bounds
from dit_cache_backends.hosts.generation import Generation
from dit_cache_backends.hosts.placement import Placement
from dit_cache_backends.hosts.requests import OmniDiffusionSamplingParams, OmniRequestOutput

__all__ = ["Omni", "OmniDiffusionSamplingParams", "OmniRequestOutput"]

log = logging.getLogger(__name__)

Prompt = str | Mapping[str, Any]


class Omni:
    """A diffusers pipeline with a cache backend, driven as vLLM-Omni's ``Omni`` is.

    Also a context manager: leaving it takes the cache off the pipeline. ``omni.engine`` takes single requests
    (:class:`~dit_cache_backends.hosts.engine.Engine`).

    Args:
        model: A folder or the name of a model for ``DiffusionPipeline.from_pretrained``; a diffusers pipeline,
            which is used as it is; or ``"demo"``, the model that is shipped with this package. A mapping named
            ``call_defaults`` on the pipeline fills in what a request does not say.
        cache_backend: As for :func:`~dit_cache_backends.registry.get_cache_backend`. If it is left out, the
            file given as ``cache_config`` decides, then the environment variable ``DIFFUSION_CACHE_BACKEND``, as with
            vLLM-Omni; ``None`` means no cache.
        cache_config: The backend's options, or a file with the sections that follow
            (:func:`~dit_cache_backends.configuration.settings.find_settings`).
        dtype: ``torch.bfloat16`` or its name. Unless said, bfloat16 on a GPU and float32 on a CPU; a pipeline
            that was handed over stays as it is.
        device: Where to run. Unless said, the first GPU if there is one (under ``torchrun`` the one of this process); a
            pipeline that was handed over stays.
        enable_cache_dit_summary: Log the cache's summary after each prompt.
        max_concurrent: Prompts of one ``generate`` that take turns, a step each, instead of one after the other.
        max_batch: Prompts that may share one call of the pipeline.
        parallelism_config: Processes that share each prompt: ``ulysses_size``, ``ring_size``, ``tp_size``, or ``auto``.
        attention_backend: For diffusers' ``set_attention_backend``.
        quantize_config: Which weights torchao keeps in fewer bits.
        compile: True, or arguments for ``torch.compile``.
        settings: The cache and all of these as found before; then neither they nor the environment are asked.

    Raises:
        ConfigError: An argument is unknown or the options do not fit the backend.
        UnknownBackendError: No backend of that name is installed.
        UnknownTransformerError: Nothing is known of the pipeline's transformer.
        PlacementError: The model cannot be run that way here.
    """

    def __init__(
        self,
        model: object,
        cache_backend: object = NOT_SAID,
        cache_config: object = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        enable_cache_dit_summary: bool = False,
        max_concurrent: int = 1,
        max_batch: int = 1,
        parallelism_config: Mapping[str, Any] | None = None,
        attention_backend: str | None = None,
        quantize_config: Mapping[str, Any] | None = None,
        compile: bool | Mapping[str, Any] | None = None,
        settings: Settings | None = None,
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
        # Before the model is loaded, so that a wrong option costs no minutes.
        check_bounds(max_concurrent=(max_concurrent, 1), max_batch=(max_batch, 1))
        if settings is None:
            settings = find_settings(
                cache_backend,
                cache_config,
                parallelism_config=parallelism_config,
                quantize_config=quantize_config,
                attention_backend=attention_backend,
                compile=compile,
            )
        settings.make_backend()
        wanted = _dtype(dtype)
        device = _device(model, device)
        placement = Placement(settings, device_of(model) if device is None else torch.device(device))
        self.pipeline: Any = _load(model, wanted, device)
        # So many are handed in at once: as many as run, and with batches those that the next run is made of.
        self._ahead = max_concurrent * max_batch + (max_batch if max_batch > 1 else 0)
        self.engine = Engine(
            self.pipeline,
            settings=settings,
            placement=placement,
            max_concurrent=max_concurrent,
            max_batch=max_batch,
            max_waiting=self._ahead,
        )
        self._log_summary = enable_cache_dit_summary

    @property
    def backend(self) -> CacheBackend | None:
        """The backend of prompts that ask for no other."""
        return self.engine.backend

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
        """Draw each prompt, one after the other unless ``max_concurrent`` or ``max_batch`` is more than 1.

        Args:
            prompts: A text, or a mapping with the keys ``prompt`` and ``negative_prompt``, or several of them.
            sampling_params_list: How to sample: one for all prompts (also as a list of one), or one for each.
            py_generator: Give an iterator, which draws a prompt when asked for the next, instead of a list.
            use_tqdm: Show the pipeline's progress bar.

        Returns:
            An :class:`OmniRequestOutput` for each prompt, in their order.

        Raises:
            ConfigError: The pipeline has no argument for something that was given, or a prompt's own cache settings
                do not fit.
        """
        requests = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        each = _one_for_each(sampling_params_list, len(requests))
        for prompt, params in zip(requests, each, strict=True):
            self.engine.check(prompt, params)
        outputs = self._run(list(zip(requests, each, strict=True)), use_tqdm)
        return outputs if py_generator else list(outputs)

    def close(self) -> None:
        """Take the cache off the pipeline. The pipeline itself is left as it was."""
        self.engine.close()

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, requests: Sequence[tuple[Prompt, OmniDiffusionSamplingParams]], use_tqdm: bool
    ) -> Iterator[OmniRequestOutput]:
        under_way: deque[Generation] = deque()
        try:
            for index, (prompt, params) in enumerate(requests):
                while len(under_way) >= self._ahead:
                    yield self._output(under_way)
                name = f"{index}_{uuid4()}"
                under_way.append(self.engine.submit(prompt, params, request_id=name, progress_bar=use_tqdm))
            while under_way:
                yield self._output(under_way)
        finally:
            # Also where the caller was interrupted, or asks for no more.
            for generation in under_way:
                generation.cancel()

    def _output(self, under_way: deque[Generation]) -> OmniRequestOutput:
        output = under_way[0].result()
        under_way.popleft()
        if self._log_summary and output.cache_summary is not None:
            log.info("%s\n%s", output.prompt, output.cache_summary)
        return output


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
    device = torch.device("cpu") if device is None else torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
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


def _device(model: object, device: torch.device | str | None) -> torch.device | str | None:
    """Where a model that is loaded goes unless something else was said; None for a pipeline that is there."""
    if device is not None or not isinstance(model, (str, Path)):
        return device
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{rank}"
