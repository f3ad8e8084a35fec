"""Runs the cache-dit library (1.5.3) on a tiny pipeline and records what it did.

The library replaces `__call__` on the pipeline's class and `forward` on each transformer. Every run here is
made on a pipeline built for it alone, the class attributes are put back afterwards, and what is
recorded is read while it happens: after a forced refresh the library keeps only the last segment.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_cache_conformance.tiny import Tiny, build

from .options import cache_dit_arguments

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")

Place = tuple[str, str, str]
"""Transformer, branch and stack: the address of one list of decisions."""


@dataclass
class Decisions:
    """What was decided at one place: cached steps in order, recorded differences by step."""

    cached_steps: list[int] = field(default_factory=list)
    diffs: dict[int, float] = field(default_factory=dict)
    steps: int = 0


@dataclass
class Run:
    """One run of a pipeline: its decisions and its final latents. Steps count from the start of the run."""

    places: dict[Place, Decisions]
    latents: torch.Tensor


def dense_latents(pipeline: str, steps: int = 28, **call: Any) -> torch.Tensor:
    """Final latents without any cache."""
    return build(pipeline).run(steps, **call)


def cache_dit_run(pipeline: str, options: dict[str, Any], steps: int = 28, **call: Any) -> Run:
    """Run cache-dit with our option names on a new tiny pipeline."""
    import cache_dit

    tiny = build(pipeline)
    arguments = cache_dit_arguments(tiny, options, steps)
    with as_before(type(tiny.pipe)):
        cache_dit.enable_cache(tiny.pipe, **arguments)
        with _recorded(tiny) as places:
            latents = tiny.run(steps, **call)
        cache_dit.disable_cache(tiny.pipe)
    return Run(_counted_over_the_run(tiny, places), latents)


@contextlib.contextmanager
def as_before(pipeline_class: type) -> Iterator[None]:
    """Put back the class attributes that enabling sets, whatever happened in between."""
    before = dict(vars(pipeline_class))
    try:
        yield
    finally:
        for name in set(vars(pipeline_class)) - set(before):
            delattr(pipeline_class, name)
        for name in ("__call__",):
            if vars(pipeline_class).get(name) is not before.get(name):
                setattr(pipeline_class, name, before[name])


@contextlib.contextmanager
def _recorded(tiny: Tiny) -> Iterator[dict[Place, Decisions]]:
    """Record each decision of cache-dit's contexts under its place."""
    from cache_dit.caching.cache_contexts.cache_context import CachedContext

    places: dict[Place, Decisions] = {}
    where = place_of(tiny)

    def here(context: Any) -> tuple[Decisions, int]:
        place, step = where(context)
        return places.setdefault(place, Decisions()), step

    def begun(context: Any) -> None:
        decisions, step = here(context)
        decisions.steps = step + 1

    def cached(context: Any) -> None:
        decisions, step = here(context)
        decisions.cached_steps.append(step)

    def compared(context: Any, diff: Any) -> None:
        decisions, step = here(context)
        decisions.diffs.setdefault(step, float(diff))

    listeners = {"mark_step_begin": begun, "add_cached_step": cached, "add_residual_diff": compared}
    with heard(CachedContext, listeners):
        yield places


def place_of(tiny: Tiny) -> Callable[[Any], tuple[Place, int]]:
    """Tells of a context of cache-dit, within a call of its transformer, which place and which step it is at."""
    stacks = {
        name: (transformer, stack)
        for transformer, module in tiny.transformers.items()
        for name, stack in zip(vars(module)["_context_names"], tiny.spec.stacks, strict=True)
    }

    def where(context: Any) -> tuple[Place, int]:
        transformer, stack = stacks[context.name]
        second = context.cache_config.enable_separate_cfg and context.get_current_transformer_step() % 2
        branch = tiny.spec.branches[1 if second else 0]
        return (transformer, branch, stack), context.get_accumulated_executed_steps() - 1

    return where


@contextlib.contextmanager
def heard(context_class: type, listeners: dict[str, Callable[..., None]]) -> Iterator[None]:
    """Have each listener called behind the method of its name, with the same arguments."""
    originals = {name: getattr(context_class, name) for name in listeners}
    for name, listener in listeners.items():
        setattr(context_class, name, _followed_by(originals[name], listener))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(context_class, name, original)


def _followed_by(original: Callable[..., Any], listener: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(context: Any, *args: Any) -> Any:
        result = original(context, *args)
        listener(context, *args)
        return result

    return method


def _counted_over_the_run(tiny: Tiny, places: dict[Place, Decisions]) -> dict[Place, Decisions]:
    """Shift the steps of a later expert, which cache-dit counts from that expert's own first call."""
    shifted: dict[Place, Decisions] = {}
    start = 0
    for transformer in tiny.spec.transformers:
        own = {place: decisions for place, decisions in places.items() if place[0] == transformer}
        for place, decisions in own.items():
            shifted[place] = Decisions(
                [start + step for step in decisions.cached_steps],
                {start + step: diff for step, diff in sorted(decisions.diffs.items())},
                decisions.steps,
            )
        start += max((decisions.steps for decisions in own.values()), default=0)
    return shifted
