"""Tiny pipelines as the planner draws with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dit_cache_backends.trials import Prompt, Trial
from dit_cache_conformance.tiny import TINY, build


def prompts_of(name: str, count: int, first_seed: int = 0) -> list[Prompt]:
    """Prompts as embeddings, which a tiny pipeline takes, from noises of their own."""
    arguments = TINY[name].arguments(1)
    return [Prompt(f"number {seed}", seed, arguments) for seed in range(first_seed, first_seed + count)]


@contextmanager
def tiny_trial(name: str, **call: Any) -> Iterator[Trial]:
    """A trial of a tiny pipeline."""
    with Trial(build(name).pipe, call) as trial:
        yield trial
