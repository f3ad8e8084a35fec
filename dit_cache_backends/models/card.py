"""What is known of a transformer class, as data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_cache_backends.models.signals import Signal, TimeSignal

HELD = "="

Fit = Callable[[Tensor, torch.Size], Tensor]


@dataclass(frozen=True, slots=True)
class BlockList:
    """A list of repeated blocks: which of their arguments are streams, and in which order they return them."""

    path: str
    """Where the list hangs on the transformer, dotted: ``transformer_blocks``."""
    takes: tuple[str, ...]
    """The parameters of the block's ``forward`` that are streams, the main (denoised) one first."""
    gives: str | tuple[str, ...]
    """The streams as the block returns them: one name for a bare tensor, a tuple of names for a tuple.

    A name that begins with ``=`` is no stream but something the model collects (WanVACE's hints): each block that is
    skipped hands out what it gave when it last ran.
    """
    part: tuple[int, int | None] = (0, None)
    """Which of the list's blocks are meant, as of a slice; all of them unless said."""

    def __post_init__(self) -> None:
        given = (self.gives,) if isinstance(self.gives, str) else self.gives
        unknown = [name for name in given if name not in self.takes and not name.startswith(HELD)]
        if unknown or not self.takes:
            raise ValueError(
                f"{self.path}: gives {unknown}, which is not among the streams it takes {list(self.takes)}."
            )


@dataclass(frozen=True, slots=True)
class Stack:
    """Block lists that the streams run through one after the other, as if they were one list."""

    lists: tuple[BlockList, ...]
    alternate: Fit | None = None
    """The blocks of the lists are called in turns, one of each (Latte). The main stream is laid out for each list in
    another way: this function takes it as one list has it and gives it in the shape, and so the layout, of another."""
    long_skips: bool = False
    """A block of the second half also takes what its mirror image in the first half gave (HunyuanDiT)."""

    def __post_init__(self) -> None:
        if len({len(each.takes) for each in self.lists}) != 1:
            lists = "; ".join(f"{each.path} takes {', '.join(each.takes)}" for each in self.lists)
            raise ValueError(
                f"The lists of one stack have the same streams, in the same order, perhaps by other names: {lists}. "
                "Where they have not, make a stack of each list."
            )

    @property
    def name(self) -> str:
        """The path of the first list."""
        return self.lists[0].path


@dataclass(frozen=True, slots=True)
class Card:
    """One row: how to read the blocks of one transformer class.

    Subclasses are found through their bases. Module lists that a stack does not name are left alone.
    """

    transformer: str
    """The name of the class."""
    stacks: tuple[Stack, ...]
    library: str | None = "diffusers"
    """The top-level package the class comes from, since libraries reuse names; None for any."""
    must_run: tuple[tuple[str, tuple[object, ...]], ...] = field(default=())
    """Arguments of the transformer's forward, with the values at which it must run in full because its blocks fill
    a store that later calls read: ``(("kv_cache_mode", ("extract",)),)``. A dotted name reads an attribute, the item of
    that number, or what a mapping has by that name."""
    writes_in_place: bool = False
    """The blocks write into their stream arguments, so that what came in must be copied before it can be compared."""
    arrange: Callable[[Any], tuple[Stack, ...]] | None = None
    """The stacks of a model, where they depend on its configuration; ``stacks`` are then those of the usual one."""
    signals: tuple[Signal | TimeSignal, ...] = ()
    """What its steps can be compared by before a block has run (``tea_cache``), the usual one first."""


def stack(*lists: BlockList, alternate: Fit | None = None, long_skips: bool = False) -> Stack:
    """A stack of block lists."""
    return Stack(lists, alternate, long_skips)
