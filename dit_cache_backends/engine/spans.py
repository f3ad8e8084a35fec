"""Where: a stack of blocks is divided into spans, and a span is what is skipped as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dit_cache_backends.errors import ConfigError

Streams = tuple[Tensor | None, ...]
"""The streams of a stack in the order of the card's ``takes``: the main (denoised) stream first."""


class Stream(NamedTuple):
    """One of the tensors that run through a stack."""

    name: str
    main: bool
    """The denoised stream (image, video, audio latents); the others carry text or conditions."""


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks ``start`` to ``stop - 1`` of a stack, run or skipped together."""

    start: int
    stop: int


def check_layout(spans: Sequence[Span], depth: int, where: str) -> tuple[Span, ...]:
    """Return ``spans`` in order; refuse spans that are empty, overlap, or leave the stack.

    Raises:
        ConfigError: with the span, the depth of the stack and its name.
    """
    ordered = tuple(sorted(spans, key=lambda span: span.start))
    last = 0
    for span in ordered:
        if not last <= span.start < span.stop <= depth:
            raise ConfigError(
                f"{where}: the layout has a span of blocks [{span.start}, {span.stop}), which is empty, "
                "overlaps the span "
                f"before it, or leaves the stack. Expected spans in order within [0, {depth})."
            )
        last = span.stop
    return ordered
