"""Random weights that make every block count, the same ones on every machine and in every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

ZERO_FILL = 0.02


def seeded(make: Callable[[], Any], seed: int = 0) -> nn.Module:
    """Build a module under a private random state and fill what its class initialises to zero.

    Gates, residual projections and control outputs start at zero in many diffusion transformers: without the
    fill each block would be an identity and a cache could skip it without anybody noticing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = make()
        with torch.no_grad():
            for parameter in module.parameters():
                if not parameter.any():
                    parameter.normal_(0.0, ZERO_FILL)
    return module.eval().requires_grad_(False)


def scale_output(module: nn.Module, layer: str, gain: float) -> nn.Module:
    """Multiply the weights of one layer, so that what it adds is as large as what it is added to.

    A residual of a few per cent would let a wrong step hide below a tolerance on the final latents.
    """
    with torch.no_grad():
        for parameter in module.get_submodule(layer).parameters():
            parameter.mul_(gain)
    return module


def noise(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal numbers of their own generator; the global random state is not touched."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
