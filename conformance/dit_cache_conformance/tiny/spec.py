"""What a tiny transformer is: how it is built, how it is called at a moment of a run, and where its blocks are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .weights import noise

DRIFT = 0.05


@dataclass(frozen=True)
class Moment:
    """One call of a run: the seed of its noise, where in the run it is (1 down to 0), the batch size."""

    seed: int
    step: int
    time: float
    batch: int

    def latents(self, *shape: int) -> torch.Tensor:
        start = noise(self.batch, *shape, seed=self.seed)
        drift = noise(self.batch, *shape, seed=self.seed + 1000)
        return start + DRIFT * self.step * drift

    def fixed(self, *shape: int, part: int = 0) -> torch.Tensor:
        """Something that stays the same over the run: a prompt's embedding, a control residual."""
        return noise(self.batch, *shape, seed=self.seed + 2000 + part)

    def times(self, scale: float) -> torch.Tensor:
        return torch.full((self.batch,), scale * self.time)


@dataclass(frozen=True)
class TinyTransformer:
    """One transformer class: how to build it, what to call it with, the stacks in it.

    Attributes:
        stacks: block stacks, named by their first module list, with their depths.
        kv_cache: makes an empty key-value cache for classes whose blocks fill one, else None. Pass it with
            `transformer_inputs(name, kv_cache=..., kv_mode=...)`.
        returns_tuple: whether the class is asked by `return_dict=False` to return a tuple; UVit2D returns its sample.
    """

    name: str
    build: Callable[..., nn.Module]
    inputs: Callable[[Moment], dict[str, Any]]
    stacks: dict[str, int]
    kv_cache: Callable[[], Any] | None = None
    returns_tuple: bool = True
