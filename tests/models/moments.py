"""What the tests of single classes have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dit_cache_backends import Card
from dit_cache_conformance.tiny import transformer_inputs

FOLLOWED = 0.9
"""Error of a skipped step, of what the output changed by: 1 is as bad as not following at all."""


def moment(name: str, step: int = 0, **more: Any) -> dict[str, Any]:
    """The latents move from step to step, the time stands still."""
    return transformer_inputs(name, step=step, total=10**9, **more)


def off(found: Tensor, still: Tensor, moved: Tensor) -> float:
    return float((found - moved).norm() / (still - moved).norm())


@contextmanager
def enabled(backend: Any, model: nn.Module, card: Card | None = None) -> Iterator[Any]:
    try:
        backend.enable(model, card=card)
        yield backend
    finally:
        if backend.is_enabled():
            backend.disable()
