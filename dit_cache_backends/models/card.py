"""What is known of a transformer class, as data."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BlockList:
    """A list of repeated blocks: which of their arguments are streams, and in which order they return them."""

    path: str
    """Where the list hangs on the transformer, dotted: ``transformer_blocks``."""
    takes: tuple[str, ...]
    """The parameters of the block's ``forward`` that are streams, the main (denoised) one first."""
    gives: str | tuple[str, ...]
    """The streams as the block returns them: one name for a bare tensor, a tuple of names for a tuple."""

    def __post_init__(self) -> None:
        given = (self.gives,) if isinstance(self.gives, str) else self.gives
        unknown = [name for name in given if name not in self.takes]
        if unknown or not self.takes:
            raise ValueError(
                f"{self.path}: gives {unknown}, which is not among the streams it takes {list(self.takes)}."
            )


@dataclass(frozen=True, slots=True)
class Stack:
    """Block lists that the streams run through one after the other, as if they were one list."""

    lists: tuple[BlockList, ...]

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
    a store that later calls read: ``(("kv_cache_mode", ("extract",)),)``. A dotted name reads an attribute, or the item
    of that number."""
    writes_in_place: bool = False
    """The blocks write into their stream arguments, so that what came in must be copied before it can be compared."""


def stack(*lists: BlockList) -> Stack:
    """A stack of block lists."""
    return Stack(lists)
