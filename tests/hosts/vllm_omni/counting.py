"""Counts the blocks that really ran, by a hook on a part of each: one on the block itself fires at every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

PARTS = ("attn", "attn1", "attention", "self_attention", "self_attn", "cross_attention", "block")
"""What every block of some model calls exactly once."""


class Executed:
    """The blocks that ran, in order, as ``(path of the list, number)``."""

    def __init__(self) -> None:
        self.blocks: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self) -> list[tuple[str, int]]:
        """What has run since this was asked last."""
        blocks, self.blocks = self.blocks, []
        return blocks


@contextmanager
def executed(model: nn.Module, lists: Sequence[str]) -> Iterator[Executed]:
    """Count the blocks of these lists of ``model`` that run within."""
    seen, hooks = Executed(), []
    for path in lists:
        for number, block in enumerate(model.get_submodule(path).children()):
            part = next(getattr(block, name) for name in PARTS if hasattr(block, name))

            def note(*_: object, place: tuple[str, int] = (path, number)) -> None:
                seen.blocks.append(place)

            hooks.append(part.register_forward_hook(note))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
