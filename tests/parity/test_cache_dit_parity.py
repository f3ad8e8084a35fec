"""This project's `cache_dit` against the cache-dit library 1.5.3: one test per declared case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dit_cache_conformance.tiny import build

from .cases import CASES, STEPS, Case
from .options import CALIBRATOR_KEYS, DEFAULTS, MASK_KEYS
from .reference import Decisions, Place, Run, cache_dit_run

pytest.importorskip("cache_dit")

# Measured: differences agree within 2e-6, latents within 2e-6 of their largest value, while caching itself
# moves the latents by 2e-4 (PixArt) to 1e-1. A wrong residual anywhere is seen.
DIFFERENCE = 1e-5
LATENTS = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def our_run(case: Case, places: list[Place]) -> Run:
    from dit_cache_backends import enable_cache

    tiny = build(case.pipeline)
    backend: Any = enable_cache(tiny.pipe, "cache_dit", **case.options)
    try:
        latents = tiny.run(STEPS, batch=case.batch)
        summary = backend.summary()
    finally:
        backend.disable(tiny.pipe)
    decisions = {
        (transformer, branch, stack): Decisions(
            summary.cached_steps(transformer=transformer, branch=branch, stack=stack),
            summary.diffs(transformer, branch, stack),
        )
        for transformer, branch, stack in places
    }
    return Run(decisions, latents)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_same_steps_are_cached_for_the_same_differences_and_the_same_latents_come_out(case: Case) -> None:
    theirs = cache_dit_run(case.pipeline, case.options, STEPS, batch=case.batch)
    assert any(place.cached_steps for place in theirs.places.values()) == case.skips, "the case tests nothing"

    ours = our_run(case, list(theirs.places))

    for place, expected in theirs.places.items():
        found = ours.places[place]
        assert found.cached_steps == expected.cached_steps, place
        assert list(found.diffs) == sorted(found.diffs), place
        assert found.diffs == pytest.approx(expected.diffs, rel=DIFFERENCE, abs=DIFFERENCE), place
    scale = theirs.latents.abs().max()
    error = (ours.latents - theirs.latents).abs().max() / scale
    assert float(error) <= LATENTS


def test_the_cases_are_many_distinct_and_touch_every_option_and_pipeline() -> None:
    assert len(CASES) >= 150
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({repr((case.pipeline, sorted(case.options.items()), case.batch)) for case in CASES}) == len(
        CASES
    )
    assert {case.pipeline for case in CASES} == {
        "flux",
        "qwen_image",
        "sd3",
        "wan",
        "wan22",
        "cogvideox",
        "hunyuan_video",
        "dit",
        "pixart",
    }
    used = {key for case in CASES for key in case.options}
    assert used == set(DEFAULTS) | MASK_KEYS | CALIBRATOR_KEYS
