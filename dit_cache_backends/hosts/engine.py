"""Several requests on one pipeline, a denoising step of each in turn."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from typing_extensions import Self

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.configuration.settings import NOT_SAID, Settings, find_settings
from dit_cache_backends.errors import ConfigError, DitCacheError, PlacementError
from dit_cache_backends.hosts.caches import Caches
from dit_cache_backends.hosts.calls import arguments_of, device_of
from dit_cache_backends.hosts.copies import front_of
from dit_cache_backends.hosts.generation import Generation, State, StepEvent
from dit_cache_backends.hosts.placement import Placement
from dit_cache_backends.hosts.queue import Queue
from dit_cache_backends.hosts.requests import (
    OmniDiffusionSamplingParams,
    OmniRequestOutput,
    call_arguments,
)
from dit_cache_backends.hosts.run import Request, Shared
from dit_cache_backends.hosts.surroundings import surroundings
from dit_cache_backends.hosts.turns import Turns

__all__ = [
    "Engine",
    "EngineStats",
    "Generation",
    "OmniDiffusionSamplingParams",
    "OmniRequestOutput",
    "State",
    "StepEvent",
]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done and holds at one moment."""

    waiting: int
    running: int
    finished: int
    """Requests done without an error since the engine was made."""
    cancelled: int
    failed: int
    sessions: int
    """Cache states of requests that are held."""
    tensors: int
    """Tensors that caches hold for the requests under way."""
    bytes: int
    """Their size."""


class Engine:
    """Runs requests on a diffusers pipeline, one denoising step of each in turn; also a context manager.

    Requests join and leave between steps. Each has its own prompt, seed, size, number of steps and cache settings, and
    gives the bits that it gives alone. One computes at a time.

    Args:
        pipeline: A diffusers pipeline. It is left as it was when the engine is closed.
        cache_backend: As for :func:`~dit_cache_backends.registry.get_cache_backend`; ``None`` means no cache. Left out,
            a file given as ``cache_config`` may name it; the environment is not asked.
        cache_config: The backend's options, or a whole file with the sections that follow.
        max_concurrent: Runs that take turns; further requests wait. Each holds its latents and its cache. 4 unless
            said; where several processes share each request it can only be 1.
        max_waiting: Requests that may wait; one more is refused.
        max_batch: Waiting requests that may share one run, if they differ in nothing but prompt and generator.
        parallelism_config: Processes that share each request; see :mod:`~dit_cache_backends.hosts.placement`. Then the
            engine of every process has to get the same requests in the same order.
        attention_backend: For diffusers' ``set_attention_backend``.
        quantize_config: Which weights torchao keeps in fewer bits.
        compile: True, or arguments for ``torch.compile``: the repeated blocks are compiled.
        settings: All of it as found before, instead of the others.
        placement: The one made of the settings before the model was loaded.

    Raises:
        ConfigError: An option does not fit the backend, or the backend the model.
        UnknownBackendError: No backend of that name is installed.
        UnknownTransformerError: Nothing is known of the pipeline's transformer.
        PlacementError: The model cannot be run that way here.
    """

    def __init__(
        self,
        pipeline: Any,
        cache_backend: object = NOT_SAID,
        cache_config: object = None,
        *,
        max_concurrent: int | None = None,
        max_waiting: int = 64,
        max_batch: int = 1,
        parallelism_config: Mapping[str, Any] | None = None,
        attention_backend: str | None = None,
        quantize_config: Mapping[str, Any] | None = None,
        compile: bool | Mapping[str, Any] | None = None,
        settings: Settings | None = None,
        placement: Placement | None = None,
    ) -> None:
        if settings is None:
            settings = find_settings(
                cache_backend,
                cache_config,
                parallelism_config=parallelism_config,
                quantize_config=quantize_config,
                attention_backend=attention_backend,
                compile=compile,
                environment={},
            )
        placement = placement or Placement(settings, device_of(pipeline))
        if max_concurrent is None:
            max_concurrent = 1 if placement.shared else 4
        check_bounds(
            max_concurrent=(max_concurrent, 1), max_waiting=(max_waiting, 0), max_batch=(max_batch, 1)
        )
        if placement.shared and max_concurrent > 1:
            raise PlacementError(
                f"max_concurrent is {max_concurrent}, but where several processes share each request, requests run one"
                " after the other: the processes would take turns in different orders. Leave it out."
            )
        placement.check(pipeline)
        placement.prepare(pipeline)
        self.pipeline = pipeline
        self.settings = settings
        front = front_of(pipeline)
        self._caches = Caches(front, settings, placement.lifted)
        try:
            placement.finish(pipeline)
        except BaseException:
            self._caches.close()
            raise
        self._caches.agree_over(*placement.groups)
        shared = Shared(pipeline, front, self._caches, Turns(), placement.agree)
        self._queue = Queue(shared, max_concurrent, max_waiting, max_batch)
        _engines.add(self)

    @property
    def backend(self) -> CacheBackend | None:
        """The backend of requests that ask for no other."""
        return None if self._caches.default is None else self._caches.default.backend

    def submit(
        self,
        prompt: Any,
        params: OmniDiffusionSamplingParams | None = None,
        *,
        cache_backend: object = NOT_SAID,
        cache_config: object = None,
        request_id: str | None = None,
        progress_bar: bool = False,
    ) -> Generation:
        """Hand in a request. All of it is checked here.

        Args:
            prompt: A text, or a mapping with ``prompt``, ``negative_prompt`` and what belongs to it.
            params: How to sample. Without a seed and a generator it gets a generator of its own, seeded by chance.
            cache_backend: The cache of this request alone: ``None`` or ``"none"`` for no cache; unless given, that of
                ``params``, else the engine's.
            cache_config: Its options. Without a ``cache_backend`` they stand over the engine's.
            request_id: A name for it, which no other request under way has. Unless given, one is made.
            progress_bar: Show the pipeline's own progress bar.

        Raises:
            ConfigError: Something does not fit the pipeline, the backend or the model.
            UnknownBackendError: No backend of that name is installed.
            QueueFullError: ``max_waiting`` requests wait.
            EngineClosedError: The engine is closed.
        """
        params = OmniDiffusionSamplingParams() if params is None else params
        if request_id is not None and (not isinstance(request_id, str) or not request_id):
            raise ConfigError(f"request_id is a text that is not empty, got {request_id!r}")
        self._queue.refuse(request_id)
        if cache_backend is NOT_SAID:
            cache_backend = params.cache_backend
            cache_config = params.cache_config if cache_config is None else cache_config
        arguments = self._arguments(prompt, params)
        around = surroundings(device_of(self.pipeline))
        served = self._caches.take(cache_backend, cache_config)
        generation = Generation(request_id or uuid4().hex, prompt, self._queue.cancel)
        try:
            self._queue.put(Request(generation, arguments, served, around, progress_bar))
        except DitCacheError:
            self._caches.give_back(served)
            raise
        return generation

    def check(self, prompt: Any, params: OmniDiffusionSamplingParams) -> None:
        """Raise what :meth:`submit` would raise about a request, without taking it.

        Raises:
            ConfigError: Something does not fit the pipeline, the backend or the model.
            UnknownBackendError: No backend of that name is installed.
        """
        self._arguments(prompt, params)
        self._caches.give_back(self._caches.take(params.cache_backend, params.cache_config))

    def stats(self) -> EngineStats:
        """What was done so far, and what is held now."""
        tensors = self._caches.held_tensors()
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return EngineStats(**self._queue.counts(), tensors=len(tensors), bytes=sum(storages.values()))

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Take no more requests, cancel what waits and runs, and leave the pipeline as it was. Harmless when repeated.

        Args:
            drain: First let the requests that were handed in come to their end,
            timeout: for so many seconds at most. A step that is being computed is waited for in any case.

        Raises:
            RuntimeError: It was called by a step listener, in the thread that would have to end.
        """
        self._queue.close(drain, timeout)
        self._caches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arguments(self, prompt: Any, params: OmniDiffusionSamplingParams) -> dict[str, Any]:
        known = arguments_of(self.pipeline)
        name = type(self.pipeline).__name__
        arguments = dict(getattr(self.pipeline, "call_defaults", {}))
        arguments |= call_arguments(prompt, params, known, name)
        if arguments.get("generator") is None and "generator" in known:
            # Never torch's global one: then the numbers of one request would depend on the others.
            arguments["generator"] = torch.Generator()
            arguments["generator"].seed()
        return arguments


def check_bounds(**bounds: tuple[object, int]) -> None:
    """Refuse what is no whole number or too small: for each name what was given, and the least.

    Raises:
        ConfigError: naming it.
    """
    for name, (given, least) in bounds.items():
        if not isinstance(given, int) or isinstance(given, bool) or given < least:
            raise ConfigError(f"{name} is a whole number of at least {least}, got {given!r}")


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """No thread may compute while the interpreter is taken down."""
    for engine in list(_engines):
        engine.close()
