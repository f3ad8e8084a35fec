"""Requests for the engine, what each gives without it, and hands on its steps."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_cache_backends import enable_cache
from dit_cache_backends.configuration.settings import NOT_SAID
from dit_cache_backends.hosts.engine import (
    Engine,
    Generation,
    OmniDiffusionSamplingParams,
    OmniRequestOutput,
    StepEvent,
)
from dit_cache_conformance.tiny import build

EAGER = {"residual_diff_threshold": 10.0, "max_warmup_steps": 2}
PRUNE = {"residual_diff_threshold": 10.0, "max_warmup_steps": 1}
_PROMPT = ("prompt_embeds", "negative_prompt_embeds")


@dataclass(frozen=True)
class Case:
    """One request: of how many steps, from which seed, with which cache, and what its call has besides."""

    steps: int
    seed: int
    backend: str | None = None
    config: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)


def alone(name: str, case: Case) -> Tensor:
    """What the request gives by itself, on a pipeline of its own and without the engine."""
    tiny = build(name)
    if case.backend is None:
        return tiny.run(case.steps, case.seed, **case.more)
    with enable_cache(tiny.pipe, case.backend, **(case.config or {})) as backend:
        latents = tiny.run(case.steps, case.seed, **case.more)
        assert backend.summary().blocks_skipped
    return latents


def request(name: str, case: Case) -> tuple[dict[str, Any], OmniDiffusionSamplingParams]:
    """A prompt and how to sample it."""
    arguments = build_arguments(name) | case.more
    prompt = {key: arguments.pop(key) for key in _PROMPT if key in arguments}
    params = OmniDiffusionSamplingParams(num_inference_steps=case.steps, seed=case.seed, extra_args=arguments)
    return prompt, params


def build_arguments(name: str) -> dict[str, Any]:
    from dit_cache_conformance.tiny import TINY

    return TINY[name].arguments(1)


def hand_in(engine: Engine, name: str, case: Case, **more: Any) -> Generation:
    """The request, with its own cache settings unless others are given."""
    prompt, params = request(name, case)
    settings = {"cache_backend": case.backend, "cache_config": case.config} | more
    return engine.submit(prompt, params, **settings)


def by_default(engine: Engine, name: str, case: Case, **more: Any) -> Generation:
    """The request, with the engine's cache."""
    return hand_in(engine, name, case, cache_backend=NOT_SAID, cache_config=None, **more)


def latents(output: OmniRequestOutput) -> Tensor:
    return torch.stack([torch.as_tensor(image) for image in output.images])


class Hold:
    """Stops a request in the thread that computes, behind one of its steps, until it is let go."""

    def __init__(self, step: int = 0) -> None:
        self._step = step
        self._reached, self._go = threading.Event(), threading.Event()

    def __call__(self, event: StepEvent) -> None:
        if event.index == self._step:
            self._reached.set()
            assert self._go.wait(60)

    def reached(self) -> None:
        """Wait until it is there."""
        assert self._reached.wait(60)

    def let_go(self) -> None:
        self._go.set()


def held(engine: Engine, name: str, case: Case, step: int = 0, **more: Any) -> tuple[Generation, Hold]:
    """A request that has come to its step ``step`` and is held there."""
    generation, hold = to_be_held(engine, name, case, step, **more)
    hold.reached()
    return generation, hold


def to_be_held(engine: Engine, name: str, case: Case, step: int = 0, **more: Any) -> tuple[Generation, Hold]:
    """A request that will be held at its step ``step``."""
    hold = Hold(step)
    prompt, params = request(name, case)
    # The callback stands in the thread before the first step, so no listener can come too late.
    generation = engine.submit(
        prompt,
        with_callback(params, lambda index: hold(_at(index))),
        cache_backend=case.backend,
        cache_config=case.config,
        **more,
    )
    return generation, hold


def _at(index: int) -> StepEvent:
    return StepEvent(index, None, 0, 0, "", 0.0)


def with_callback(
    params: OmniDiffusionSamplingParams, told: Callable[[int], object], latents_too: list[Any] | None = None
) -> OmniDiffusionSamplingParams:
    """Have ``told`` called by the pipeline behind each step, within its turn."""

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if latents_too is not None:
            latents_too.append(weakref.ref(tensors["latents"]))
        told(step)
        return tensors

    params.extra_args = params.extra_args | {"callback_on_step_end": callback}
    return params
