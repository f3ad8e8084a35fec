"""Step mode: vLLM-Omni denoises several requests step by step, and each may stand at another step.

Its own caches keep one state for the model, so it refuses every cache there, by one line of its runner. Ours keep a
state for each request. That line is passed by hiding the cache's name while the step runs, and the step is made for
each request by itself, for a cache decides by its own step and its own latents.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dit_cache_backends.backend import SpanBackend
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.hosts.vllm_omni.hosted import HostedBackend

__all__ = ["own_state_for_each"]


@contextmanager
def own_state_for_each(runner: Any, hosted: HostedBackend) -> Iterator[list[tuple[Hashable, int]]]:
    """Within, a step of the runner's pipeline is made for each request with that request's state.

    Gives a list which, at the end, has the requests (with their chunk) that are over, by their last step or otherwise.

    Raises:
        ConfigError: if the backend keeps no state for each request.
    """
    backend = hosted.backend
    if not isinstance(backend, SpanBackend) or not backend.capabilities.interleaved_requests:
        raise ConfigError(
            f"{backend.name} keeps no state for each request, so it cannot serve step mode (step_execution). Leave "
            "that out, or take another cache backend."
        )
    ended: list[tuple[Hashable, int]] = []
    name, runner.od_config.cache_backend = runner.od_config.cache_backend, None
    open_keys: set[tuple[Hashable, int]] = runner.__dict__.setdefault("_dit_cache_open_requests", set())
    pipeline = runner.pipeline
    pipeline.denoise_step = _one_by_one(pipeline.denoise_step, backend, open_keys)
    try:
        yield ended
    finally:
        del pipeline.denoise_step
        runner.od_config.cache_backend = name
        for key in [key for key in open_keys if _is_over(key, runner.state_cache)]:
            open_keys.discard(key)
            hosted.end((key,))
            ended.append(key)


def _is_over(key: tuple[Hashable, int], states: Any) -> bool:
    request, chunk = key
    return request not in states or states[request].chunk_index != chunk


def _one_by_one(
    denoise: Callable[..., Any], backend: SpanBackend, open_keys: set[tuple[Hashable, int]]
) -> Callable[..., Any]:
    """``denoise_step`` of a pipeline, for each request of the batch with its own session and step."""

    def denoise_step(input_batch: Any, *, states: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        if states is None:
            raise ConfigError(
                "the pipeline's denoise_step was called without the states of its requests, so whose step this is "
                "cannot be told; vLLM-Omni's runner gives them."
            )
        predictions = []
        for state in states:
            key = (state.request_id, state.chunk_index)
            open_keys.add(key)
            alone = input_batch if len(states) == 1 else type(input_batch).make_batch([state])
            index, total = _step_of(state)
            with backend.session(key), backend.step(index, total):
                predictions.append(denoise(alone, states=[state], **kwargs))
        # A pipeline that is interrupted gives nothing, for all of them.
        return None if any(each is None for each in predictions) else torch.cat(predictions)

    return denoise_step


def _step_of(state: Any) -> tuple[int, int]:
    """The step of a request and how many it has; within its chunk where the output is made in chunks."""
    if state.chunk_num_steps is not None:
        return state.step_in_chunk, state.chunk_num_steps
    return state.step_index, state.total_steps
