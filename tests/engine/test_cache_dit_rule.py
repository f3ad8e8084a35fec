"""Each decision of `cache_dit` against the rule of DBCache, written down a second time from its description."""

from __future__ import annotations

import random
from typing import Any

import pytest
from torch import Tensor

from dit_cache_backends import enable_cache

from .counting import executed
from .toys import ONE, Toy, adds, image

STEPS, DEPTH, JUMP = 14, 4, 9


def picture(step: int) -> Tensor:
    """A drifting input that jumps once."""
    return image() + (0.08 * step + 3.0 * (step >= JUMP)) * image(seed=5)


def expected_run(options: dict[str, Any], changes: list[Tensor]) -> tuple[list[int], dict[int, float]]:
    """The rule of DBCache, written down from its description: cached steps and differences.

    `changes` is what the first blocks add at each step.
    """
    warmup, interval = options["max_warmup_steps"], options["warmup_interval"]
    mask, static = options["steps_computation_mask"], options["steps_computation_policy"] == "static"
    threshold, hint = options["residual_diff_threshold"], options["force_refresh_step_hint"]
    found: list[int] = []
    differences: dict[int, float] = {}
    start, restarts = 0, 0
    reference: Tensor | None = None
    own: list[int] = []
    total = 0.0
    for step in range(STEPS):
        once = options["force_refresh_step_policy"] == "once"
        if hint is not None and step - start == hint and not (once and restarts):
            start, restarts, reference, own, total = step, restarts + 1, None, [], 0.0
        at = step - start
        length = warmup if mask is None else min(warmup, [*mask, 0].index(0))
        in_row = 0
        while step - 1 - in_row in own:
            in_row += 1
        limits = (
            0 <= options["max_cached_steps"] <= len(own),
            0 <= options["max_continuous_cached_steps"] <= in_row,
            0 < (options["max_accumulated_residual_diff_threshold"] or 0) <= total,
            threshold <= 0,
        )
        if at in range(0, length, interval):
            skip = False
        elif mask is not None and (at >= len(mask) or mask[at] or static):
            skip = at < len(mask) and not mask[at] and reference is not None
        elif any(limits) or reference is None:
            skip = False
        else:
            now = changes[step]
            difference = (
                -1.0 if threshold >= 1 else float((reference - now).abs().mean() / reference.abs().mean())
            )
            differences[step] = difference
            total += max(difference, 0.0)
            skip = difference < threshold
        if skip:
            found.append(step)
            own.append(step)
        else:
            reference = changes[step]
    return found, differences


def random_options(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    mask = draw.choice([None, None, [draw.choice([0, 1]) for _ in range(draw.choice([9, 14, 20]))]])
    return {
        "Fn_compute_blocks": draw.choice([1, 1, 2]),
        "Bn_compute_blocks": draw.choice([0, 1]),
        "max_warmup_steps": draw.choice([0, 1, 3, 6]),
        "warmup_interval": draw.choice([1, 1, 2, 3]),
        "max_cached_steps": draw.choice([-1, -1, 0, 4]),
        "max_continuous_cached_steps": draw.choice([-1, 0, 1, 2, 3]),
        "residual_diff_threshold": draw.choice([0.0, 0.05, 0.2, 0.5, 0.9, 1.0, 7.0]),
        "max_accumulated_residual_diff_threshold": draw.choice([None, None, 0.0, 0.3, 1.0]),
        "steps_computation_mask": mask,
        "steps_computation_policy": draw.choice(["static", "dynamic"]),
        "force_refresh_step_hint": draw.choice([None, None, 5, 8]),
        "force_refresh_step_policy": draw.choice(["once", "repeat"]),
    }


@pytest.mark.parametrize("seed", range(80))
def test_any_options_give_the_decisions_that_the_rule_gives(seed: int) -> None:
    options = random_options(seed)
    model = Toy(*[adds] * DEPTH)
    changes = []
    for step in range(STEPS):
        after = before = picture(step)
        for block in model.blocks[: options["Fn_compute_blocks"]]:
            after = block(after)
        changes.append(after - before)
    steps, differences = expected_run(options, changes)

    backend: Any = enable_cache(model, "cache_dit", card=ONE, **options)
    skipped = []
    for step in range(STEPS):
        with backend.step(step, STEPS), executed(model) as ran:
            model(picture(step))
        if len(ran) < DEPTH:
            skipped.append(step)
    assert skipped == backend.summary().cached_steps() == steps
    assert backend.summary().diffs() == pytest.approx(differences, rel=1e-4)
