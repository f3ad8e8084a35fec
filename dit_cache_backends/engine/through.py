"""Blocks in the midst of a skipped span hand their streams on, and nothing else is to be done in their calls.

So these are made as short as they can be: a skipped step is little but them where a model's tensors are small. The
wrapper of a block takes its own entry out of ``now.left``; what is left over at the span's end was not called.
"""

import threading

from dit_cache_backends.engine.plan import Site


class _Now(threading.local):
    left: dict[int, Site] = {}  # noqa: RUF012 (empty for good: each skipped span puts a dictionary of its own)


now = _Now()
"""In this thread the blocks of skipped spans that the model has still to call, by their ``id``."""


class Inner:
    """The blocks of one span between its first and its last that only hand their streams on when it is skipped."""

    __slots__ = ("bits", "sites")

    def __init__(self) -> None:
        self.sites: dict[int, Site] = {}
        """By the ``id`` of the block."""
        self.bits = 0

    def add(self, block: object, site: Site) -> None:
        """A block of the span."""
        self.sites[id(block)] = site
        self.bits |= site.bit

    def begin(self) -> None:
        """The span is skipped: from now on its blocks are passed through."""
        now.left = {**now.left, **self.sites} if now.left else self.sites.copy()

    def end(self) -> int:
        """The span's last block is called: those that were called, a bit each."""
        left = now.left
        if not left:
            return self.bits
        return self.bits & ~sum([left.pop(key).bit for key in self.sites if key in left])


def stop() -> None:
    """The forward is over, in whatever way: what was not called will not be passed through in the next."""
    now.left = _Now.left
