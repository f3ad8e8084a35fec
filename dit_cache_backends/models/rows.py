"""What the rows of the card files are written with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dit_cache_backends.models.card import BlockList
from dit_cache_backends.models.signals import Signal, TimeSignal

H, E, X = "hidden_states", "encoder_hidden_states", "x"


def joint(path: str, gives: tuple[str, str]) -> BlockList:
    """Blocks through which image and text run side by side."""
    return BlockList(path, takes=(H, E), gives=gives)


def single(path: str, name: str = H) -> BlockList:
    """Blocks with one stream, returned as a bare tensor."""
    return BlockList(path, takes=(name,), gives=name)


def modulated(read: Callable[..., Tensor]) -> tuple[Signal, ...]:
    """Compared by the modulated input of the first block."""
    return (Signal("modulated_input", read),)


def timed(embed: Callable[..., Any], argument: str = "timestep") -> TimeSignal:
    """Compared by the embedding of the time."""
    return TimeSignal("time_embedding", argument, embed)
