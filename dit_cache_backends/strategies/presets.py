"""What the presets stand for: how large a part of the steps is computed, and which steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FEW = 8
"""Below so many steps a run belongs to a distilled model, whose steps differ too much for any threshold."""

SHARES = {"quality": 0.6, "balanced": 0.45, "fast": 0.36, "ultra": 0.28}
"""Part of the steps that is computed. Of 28 steps 17, 13, 10 and 8; cache-dit's four masks compute 18, 15, 11 and 8."""

THREE_LEADING = 9
"""Computed steps from which on the first three are among them. With fewer the gaps between the others grow too long: of
8 of 28 and 6 of 20 steps two leading ones are better, by 4 to 6 dB with guidance, with Heun's scheduler and at 20 steps
(``docs/quality.md``)."""

THRESHOLDS = {"quality": 0.12, "balanced": 0.24, "fast": 0.4, "ultra": 0.6}
"""Of the residual difference of the first block, where the number of steps is not known. 0.12 and 0.24 are cache-dit's
and vLLM-Omni's own."""


PRUNING = {"quality": 0.06, "balanced": 0.1, "fast": 0.15, "ultra": 0.25}
"""Thresholds of the difference of a block's input, which prune as much of the demo model as ``SHARES`` leaves out."""


TEA_THRESHOLDS = {"quality": 1.0, "balanced": 1.6, "fast": 2.4, "ultra": 3.2}
"""In lowest published thresholds: for FLUX 0.25, 0.4, 0.6 and 0.8, the four that TeaCache's authors give."""


def even_mask(steps: int, computed: int, leading: int) -> list[int]:
    """A mask of ``steps`` digits with ``computed`` ones: the first ``leading``, the last, and the rest evenly between.

    Evenly placed, since an extrapolation errs with the length of the gap: on the demo model 4 to 9 dB better than
    cache-dit's masks of as many computed steps (``docs/strategies.md``).
    """
    ones = {*range(min(leading, computed - 1)), steps - 1}
    between = computed - len(ones)
    first, last = min(leading, computed - 1) - 1, steps - 1
    ones |= {round(first + (last - first) * number / (between + 1)) for number in range(1, between + 1)}
    return [int(step in ones) for step in range(steps)]


def leading_steps(steps: int, computed: int) -> int:
    """How many steps in a row are computed at the beginning of an evenly placed mask."""
    return 3 if steps >= 16 and computed >= THREE_LEADING else 2


def planned_steps(preset: str, steps: int | None) -> Mapping[str, Any]:
    """The options of a schedule with an evenly placed mask and TaylorSeer; a threshold where steps are unknown."""
    if steps is None:
        return {"residual_diff_threshold": THRESHOLDS[preset], "calibrator": "taylorseer"}
    if steps <= 2:
        return {}
    if steps < FEW:
        computed = (
            steps - 1 if preset in ("quality", "balanced") else max(2, math.ceil(steps * SHARES[preset]))
        )
    else:
        computed = max(3, round(steps * SHARES[preset]))
    return {
        "steps_computation_mask": even_mask(steps, computed, leading_steps(steps, computed)),
        "steps_computation_policy": "static",
        "max_warmup_steps": 0,
        "calibrator": "taylorseer",
        "taylorseer_order": 1,
    }


def pruned_blocks(preset: str, steps: int | None) -> Mapping[str, Any]:
    """The options of a schedule that prunes by thresholds; by an evenly placed mask where the steps are few."""
    if steps is not None and steps < FEW:
        return planned_steps(preset, steps)
    # Extrapolating helps while little is pruned; beyond, each block's error is the next one's input.
    calibrator = "taylorseer" if preset in ("quality", "balanced") else "none"
    return {"residual_diff_threshold": PRUNING[preset], "calibrator": calibrator}
