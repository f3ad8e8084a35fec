"""Runs of tiny models under every backend, and what is held after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_cache_backends import SpanBackend, list_cache_backends
from dit_cache_conformance.presets import PRESETS
from dit_cache_conformance.tiny import build_transformer

from ..engine.runs import inputs, output

STEPS = 8
OURS = (
    "cache_dit",
    "dbprune",
    "tea_cache",
    "fb_cache",
    "easy_cache",
    "mag_cache",
    "sea_cache",
    "step_plan",
)
CLASSES: dict[str, Any] = {name: list_cache_backends()[name].cls for name in OURS}


def eager(name: str) -> dict[str, Any]:
    """Options under which it skips."""
    known: Mapping[str, Any] = getattr(CLASSES[name], "conformance", None) or PRESETS[name]
    return dict(known["eager"])


def made(name: str, **options: Any) -> SpanBackend:
    backend: SpanBackend = CLASSES[name]({**eager(name), **options})
    return backend


def run(
    backend: SpanBackend,
    model: str = "flux",
    look: Callable[[Sequence[Tensor]], object] = lambda held: None,
    dtype: torch.dtype = torch.float32,
    steps: int = STEPS,
) -> list[Tensor]:
    """The outputs of two branches, step by step; ``look`` is shown the tensors held after each."""
    transformer = build_transformer(model).to(dtype)
    found: list[Tensor] = []
    backend.enable(transformer)
    try:
        for step, arguments in enumerate(inputs(model, steps)):
            given = {key: _cast(value, dtype) for key, value in arguments.items()}
            for branch in ("cond", "uncond"):
                with backend.step(step, steps, branch):
                    found.append(output(transformer, given))
                look(backend.held_tensors())
        assert not backend.held_tensors()
    finally:
        backend.disable()
    return found


def skipped(backend: SpanBackend) -> list[tuple[Any, ...]]:
    """What was skipped, in order."""
    return [(row.branch, row.stack, row.step, tuple(row.skipped)) for row in backend.summary().rows]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
        return value.to(dtype)
    return value
