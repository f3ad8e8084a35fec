"""Counts the blocks that really ran, from outside the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

INSIDE = (
    *("attn", "attn1", "attention", "self_attention", "self_attn", "inner", "block"),
    *("video_dec_block.self_attention", "layer.0.attention"),
)
"""A part that every block calls exactly once: a hook on the block itself does not fire when it is skipped."""

ASIDE = ("refiner", "text", "txt", "perceiver", "down_block", "up_block")
"""In the paths of lists that are not among the main stacks: they see the text only, or are parts of a U-Net."""


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
def executed(*transformers: nn.Module) -> Iterator[Executed]:
    """Count the blocks of ``transformers`` that run within."""
    seen = Executed()
    hooks = [hook for transformer in transformers for hook in _watch(transformer, seen)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def block_lists(transformer: nn.Module) -> dict[str, list[nn.Module]]:
    """The lists of repeated blocks, found by what is in them and not by a card."""
    found: dict[str, list[nn.Module]] = {}
    for path, module in transformer.named_modules():
        if any(part in path for part in ASIDE) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, nn.ModuleList) and len(module) and inside(module[0]) is not None:
            found[path] = list(module)
    return found


def inside(block: nn.Module) -> nn.Module | None:
    """The part of a block by which it is counted."""
    parts = (_part(block, name.split(".")) for name in INSIDE)
    return next((part for part in parts if part is not None), None)


def _part(module: Any, names: list[str]) -> nn.Module | None:
    for name in names:
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


def _watch(transformer: nn.Module, seen: Executed) -> Iterator[Any]:
    for path, blocks in block_lists(transformer).items():
        for number, block in enumerate(blocks):
            part = inside(block)
            assert part is not None

            def note(*_: object, place: tuple[str, int] = (path, number)) -> None:
                seen.blocks.append(place)

            yield part.register_forward_pre_hook(note)
