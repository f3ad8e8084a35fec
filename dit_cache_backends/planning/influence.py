"""How far each output of the transformer moves the latents, read off a dense run.

A sampler's step is linear in what the transformer gives: ``x' = x + a_1 y_1 + a_2 y_2 + b x``, with an output ``y`` for
each guidance branch. For Euler on a flow ``a_1 = g dt`` and ``a_2 = (1 - g) dt`` with the guidance scale ``g``; others
differ, and what a pipeline does between is not known. So ``a`` is found by least squares from one step's latents to
the next, whatever the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["Influence", "influence"]

UNEXPLAINED = 0.5
"""Part of a step's change that the outputs may leave unexplained; beyond, they are not what made it."""


@dataclass(frozen=True)
class Influence:
    """How the outputs of a run count."""

    sizes: np.ndarray
    """``[steps]``: how far the latents are moved for a unit of output, 1 in the mean."""
    shares: np.ndarray
    """``[parts]``: how the branches count beside each other, 1 together; guidance of 2 is 2 and -1."""

    @classmethod
    def even(cls, steps: int, parts: int) -> Influence:
        """Every step and every branch alike, where nothing is known."""
        return cls(np.ones(steps), np.full(parts, 1 / parts))


def influence(latents: Sequence[Tensor], outputs: Sequence[Sequence[Tensor]]) -> Influence:
    """Read it off a run.

    Args:
        latents: after each step.
        outputs: for each step what the transformer gave, by branch; the branches of one call of several are apart.
    """
    steps = len(outputs)
    parts = {len(each) for each in outputs}
    if len(parts) != 1:
        return Influence.even(steps, max(parts, default=1))
    fitting = len(latents) == steps and all(
        output.numel() == after.numel()
        for after, each in zip(latents, outputs, strict=False)
        for output in each
    )
    if not fitting or steps < 3:
        return Influence.even(steps, *parts)
    read = (_least_squares(*each) for each in zip(latents, latents[1:], outputs[1:], strict=False))
    found = [each for each in read if each is not None]
    if len(found) < steps - 1:
        return Influence.even(steps, *parts)
    # The latents before the first step are not shown. It always computes.
    moved = np.stack([found[0], *found])
    sums = moved.sum(axis=1)
    if not (np.isfinite(moved).all() and (np.abs(sums) > 0).all()):
        return Influence.even(steps, *parts)
    return Influence(np.abs(sums) / np.abs(sums).mean(), np.median(moved / sums[:, None], axis=0))


def _least_squares(before: Tensor, after: Tensor, outputs: Sequence[Tensor]) -> np.ndarray | None:
    """How each output counts in one step; None where they do not explain it."""
    columns = np.stack([each.flatten().double().numpy() for each in (*outputs, before)], axis=1)
    change = after.flatten().double().numpy() - columns[:, -1]
    if not np.isfinite(columns).all() or not np.isfinite(change).all():
        return None
    found = np.linalg.lstsq(columns, change)[0]
    left = change - columns @ found
    return None if np.linalg.norm(left) > UNEXPLAINED * np.linalg.norm(change) else found[:-1]
