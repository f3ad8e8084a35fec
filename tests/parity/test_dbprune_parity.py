"""This project's `dbprune` against the DBPrune of the cache-dit library 1.5.3: one test per declared case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dit_cache_conformance.tiny import build

from .cases import Case
from .dbprune_cases import CASES, LEVELS, STEPS
from .dbprune_reference import DEFAULTS, Pruning, Run, dbprune_run
from .options import MASK_KEYS

pytest.importorskip("cache_dit")

DIFFERENCE = 1e-5
LATENTS = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def our_run(case: Case) -> Run:
    from dit_cache_backends import enable_cache

    tiny = build(case.pipeline)
    backend: Any = enable_cache(tiny.pipe, "dbprune", **case.options)
    try:
        latents = tiny.run(STEPS, batch=case.batch)
        summary = backend.summary()
    finally:
        backend.disable(tiny.pipe)
    places = {
        place: Pruning(
            summary.pruned_blocks(*place),
            {row.step: row.blocks_run + row.blocks_skipped for row in rows_of(summary, place)},
            {row.step: row.differences for row in rows_of(summary, place) if row.differences},
        )
        for place in summary.series()
    }
    assert {place: pruning.ratio for place, pruning in places.items()} == {
        place: summary.pruned_ratio(*place) for place in places
    }
    return Run(places, latents)


def rows_of(summary: Any, place: tuple[str, str, str]) -> list[Any]:
    return [row for row in summary.rows if (row.transformer, row.branch, row.stack) == place]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_same_blocks_are_pruned_for_the_same_differences_and_the_same_latents_come_out(
    case: Case,
) -> None:
    theirs = dbprune_run(case.pipeline, case.options, STEPS, batch=case.batch)
    assert any(place.ratio for place in theirs.places.values()) == case.skips, "the case tests nothing"

    ours = our_run(case)

    assert set(ours.places) == set(theirs.places)
    for place, expected in theirs.places.items():
        found = ours.places[place]
        assert found.pruned == expected.pruned, place
        assert found.blocks == expected.blocks, place
        assert found.ratio == expected.ratio, place
        assert list(found.diffs) == list(expected.diffs), place
        for step, values in expected.diffs.items():
            assert found.diffs[step] == pytest.approx(values, rel=DIFFERENCE, abs=DIFFERENCE), (place, step)
    error = (ours.latents - theirs.latents).abs().max() / theirs.latents.abs().max()
    assert float(error) <= LATENTS


def test_the_cases_are_many_distinct_and_touch_every_option_and_pipeline() -> None:
    assert len(CASES) >= 60
    assert len({case.id for case in CASES}) == len(CASES)
    assert {case.pipeline for case in CASES} == set(LEVELS)
    used = {key for case in CASES for key in case.options}
    assert used >= set(DEFAULTS)
    assert used & MASK_KEYS
