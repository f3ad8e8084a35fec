"""Counts the blocks of a FLUX transformer that run, with hooks inside of them; no library is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ran:
    """How many blocks have run."""

    blocks = 0


@contextmanager
def counted(model: Any) -> Iterator[Ran]:
    """Count the blocks that run within: those whose attention is called."""
    ran = Ran()

    def note(*_: object) -> None:
        ran.blocks += 1

    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    hooks = [block.attn.register_forward_pre_hook(note) for block in blocks if hasattr(block, "attn")]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()
