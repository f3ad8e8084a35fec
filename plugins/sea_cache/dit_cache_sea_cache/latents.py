"""Where the latent, its grid and the noise level of a step are found, for each transformer class that has all three.

The filter works on frequencies, so the latent has to be laid out on its grid of frames, rows and columns; and it has
to know how much of the latent is noise. Both come with the transformer's own call, and neither can be guessed, so
classes are listed by name: those that are flows, ``x = (1 - sigma) * picture + sigma * noise``, and whose call has
the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Given = Callable[[str], Any]
"""An argument of the transformer's call, by name."""


@dataclass(frozen=True)
class Reading:
    """How one class is read."""

    latent: Callable[[Given], Tensor | None]
    """``[batch, channels, axis, ...]``, up to three axes; None where this call has no grid."""
    timestep: str = "timestep"
    """The argument that the noise level is read from, where no scheduler tells it."""
    scale: float = 1000.0
    """That argument's value at pure noise."""


def plain(given: Given) -> Tensor | None:
    """The latent as it is: ``[batch, channels, rows, columns]``, or with frames before the rows."""
    latent = given("hidden_states")
    return latent if isinstance(latent, Tensor) and latent.dim() in (4, 5) else None


def _by_ids(given: Given) -> Tensor | None:
    """FLUX.1: packed tokens ``[batch, tokens, channels]``, whose rows and columns stand in ``img_ids``."""
    tokens, ids = given("hidden_states"), given("img_ids")
    if not isinstance(tokens, Tensor) or not isinstance(ids, Tensor):
        return None
    ids = ids[0] if ids.dim() == 3 else ids
    # The last token lies in the last row and the last column.
    rows, columns = (int(size) + 1 for size in ids[-1, 1:3].tolist())
    return _unpacked(tokens, (rows, columns))


def _by_shapes(given: Given) -> Tensor | None:
    """Qwen-Image: packed tokens, with ``img_shapes[sample] = [(frames, rows, columns), ...]``, the picture first."""
    tokens, shapes = given("hidden_states"), given("img_shapes")
    if not isinstance(tokens, Tensor) or not shapes:
        return None
    first = shapes[0][0] if isinstance(shapes[0][0], (list, tuple)) else shapes[0]
    return _unpacked(tokens[:, : math.prod(first)], tuple(int(size) for size in first))


def _by_sizes(given: Given) -> Tensor | None:
    """LTX-Video: packed tokens, with the arguments ``num_frames``, ``height`` and ``width``."""
    tokens, sizes = given("hidden_states"), [given(name) for name in ("num_frames", "height", "width")]
    if not isinstance(tokens, Tensor) or None in sizes:
        return None
    return _unpacked(tokens, tuple(int(size) for size in sizes))


def _unpacked(tokens: Tensor, grid: tuple[int, ...]) -> Tensor | None:
    if tokens.dim() != 3 or tokens.shape[1] != math.prod(grid):
        return None
    return tokens.movedim(1, -1).reshape(tokens.shape[0], tokens.shape[2], *grid)


READINGS = {
    "FluxTransformer2DModel": Reading(_by_ids, scale=1.0),
    "HunyuanVideoTransformer3DModel": Reading(plain),
    "LTXVideoTransformer3DModel": Reading(_by_sizes),
    "QwenImageTransformer2DModel": Reading(_by_shapes, scale=1.0),
    "SD3Transformer2DModel": Reading(plain),
    "WanTransformer3DModel": Reading(plain),
}
"""By the name of the class; the arguments are those of diffusers 0.42.1."""
