"""Counts the blocks that really ran, with hooks of the suite's own; no backend is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

_INSIDE = ("attn", "attn1")
"""A child that every block calls exactly once: a hook on the block itself might not fire when it is skipped."""


@dataclass
class TransformerCall:
    """One call of a transformer that reached it: the blocks that ran in it, as (path of their list, number)."""

    transformer: str
    blocks: list[tuple[str, int]] = field(default_factory=list)


class Counter:
    """The calls of some transformers, in order."""

    def __init__(self) -> None:
        self.calls: list[TransformerCall] = []

    @property
    def blocks(self) -> int:
        """How many blocks ran in all."""
        return sum(len(call.blocks) for call in self.calls)

    def begin(self, name: str) -> None:
        """A transformer is called."""
        self.calls.append(TransformerCall(name))

    def block(self, path: str, number: int) -> None:
        """A block runs; one that runs outside of any call of its transformer makes a nameless call."""
        if not self.calls:
            self.begin("")
        self.calls[-1].blocks.append((path, number))


def block_lists(transformer: nn.Module) -> dict[str, list[nn.Module]]:
    """The lists of repeated blocks, found by what is in them."""
    return {
        path: list(module)
        for path, module in transformer.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and inside(module[0]) is not None
    }


def inside(block: nn.Module) -> nn.Module | None:
    """The child that a block calls exactly once."""
    found = (getattr(block, name, None) for name in _INSIDE)
    return next((child for child in found if isinstance(child, nn.Module)), None)


@contextmanager
def counted(transformers: dict[str, nn.Module]) -> Iterator[Counter]:
    """Count what runs within."""
    counter = Counter()
    hooks: list[Any] = []
    for name, transformer in transformers.items():
        hooks.append(transformer.register_forward_pre_hook(lambda *_, name=name: counter.begin(name)))
        for path, blocks in block_lists(transformer).items():
            for number, block in enumerate(blocks):
                child = inside(block)
                if child is not None:
                    note = lambda *_, path=path, number=number: counter.block(path, number)  # noqa: E731
                    hooks.append(child.register_forward_pre_hook(note))
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()
