"""Weights that are on the device only while their block runs, brought there for several blocks by the first of them."""

from collections.abc import Container, Iterable
from typing import Any

from torch import nn

HOOKS = "_diffusers_hook"


def bring_in(block: nn.Module, skipped: Iterable[Container[int]]) -> None:
    """Have the weights of ``block`` brought in if the one that does it for its group was skipped.

    diffusers (0.42, ``enable_group_offload`` with several blocks in a group) does it in the first block of a group
    alone. Without this a later one would run on weights that are elsewhere, or, if on disk, on none at all.

    Args:
        block: about to run.
        skipped: the ``id`` of each block that was skipped before in this forward, in several containers.
    """
    registry: Any = block.__dict__[HOOKS]
    group = getattr(registry.get_hook("group_offloading"), "group", None)
    if group is None or not any(id(group.onload_leader) in each for each in skipped):
        return
    weight = next(block.parameters(), None)
    if group.offload_to_disk_path is not None or (
        weight is not None and weight.device.type == group.offload_device.type
    ):
        group.onload_()
    if group.stream is not None:
        group.stream.synchronize()
