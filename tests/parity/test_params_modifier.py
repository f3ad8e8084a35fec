"""Settings per transformer and per stack against the library's `ParamsModifier`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .cases import STEPS, Case
from .reference import cache_dit_run
from .test_cache_dit_parity import DIFFERENCE, LATENTS, our_run

pytest.importorskip("cache_dit")

SECOND = "single_transformer_blocks"
STATIC = {"steps_computation_policy": "static"}
EVERY_THIRD = "".join("1" if step % 3 == 0 else "0" for step in range(STEPS))
CASES = [
    Case("hunyuan_video", label, base | {"overrides": {SECOND: change}})
    for label, base, change in (
        ("threshold", {"residual_diff_threshold": 0.3}, {"residual_diff_threshold": 0.55}),
        ("front", {"residual_diff_threshold": 0.4}, {"Fn_compute_blocks": 2}),
        ("back", {"residual_diff_threshold": 0.4}, {"Bn_compute_blocks": 1}),
        ("warm-up", {"residual_diff_threshold": 0.5}, {"max_warmup_steps": 9}),
        ("limit", {"residual_diff_threshold": 0.5}, {"max_cached_steps": 3}),
        ("taylorseer", {"residual_diff_threshold": 0.5}, {"enable_taylorseer": True}),
        ("mask", {"residual_diff_threshold": 0.5}, {"steps_computation_mask": EVERY_THIRD, **STATIC}),
    )
] + [
    Case("wan22", label, base | {"overrides": {"transformer_2": change}})
    for label, base, change in (
        ("threshold", {"residual_diff_threshold": 0.055}, {"residual_diff_threshold": 0.2}),
        ("front", {"residual_diff_threshold": 0.2}, {"Fn_compute_blocks": 2}),
        ("row", {"residual_diff_threshold": 0.2}, {"max_continuous_cached_steps": 1}),
        ("taylorseer", {"residual_diff_threshold": 0.2}, {"enable_taylorseer": True, "taylorseer_order": 2}),
    )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_part_caches_the_same_steps_for_the_same_differences_as_with_a_modifier_of_its_own(
    case: Case,
) -> None:
    theirs = cache_dit_run(case.pipeline, case.options, STEPS)
    plain: dict[str, Any] = {name: value for name, value in case.options.items() if name != "overrides"}
    without = cache_dit_run(case.pipeline, plain, STEPS)
    ours = our_run(case, list(theirs.places))
    for place, expected in theirs.places.items():
        assert ours.places[place].cached_steps == expected.cached_steps, place
        for step, difference in expected.diffs.items():
            assert ours.places[place].diffs[step] == pytest.approx(difference, abs=DIFFERENCE), (place, step)
    scale = theirs.latents.abs().max()
    assert (ours.latents - theirs.latents).abs().max() < LATENTS * scale
    assert not torch.equal(theirs.latents, without.latents), "the modifier changes nothing here"
