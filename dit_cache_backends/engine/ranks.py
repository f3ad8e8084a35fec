"""Ranks: processes that hold shards of one request take one decision, or their collectives would wait for ever."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The process groups that a backend's host named."""

    __slots__ = ("groups", "votes")

    def __init__(self, votes: bool) -> None:
        self.groups: tuple[dist.ProcessGroup, ...] = ()
        self.votes = votes
        """The strategy adds nothing up, so the ranks vote on each decision."""


class _Now(threading.local):
    groups: "tuple[dist.ProcessGroup, ...]" = ()


_now = _Now()


@contextmanager
def agreeing(groups: "Sequence[dist.ProcessGroup]") -> Iterator[None]:
    """Within, in this thread, what is measured is added up over ``groups``."""
    outer, _now.groups = _now.groups, tuple(groups)
    try:
        yield
    finally:
        _now.groups = outer


def is_shared() -> bool:
    """Whether other ranks hold shards of the request at hand."""
    return bool(_now.groups)


def summed_over_ranks(value: Tensor) -> Tensor:
    """The sum of ``value`` over the ranks that hold shards of the request; ``value`` itself where one holds it all.

    Every rank gets the same bits. Ranks that hold copies are added up like shards, so build ratios of such sums. All
    ranks have to ask, in the same order: nothing that one rank alone sees may decide whether it asks.
    """
    if not _now.groups:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    for group in _now.groups:
        dist.all_reduce(total, group=group)
    return total
