"""The suite is tested: each broken backend is caught by the check that is meant for it, the honest one by none."""

from __future__ import annotations

import inspect

import broken
import broken_state
import hand_made
import pytest
from honest import Honest

from dit_cache_backends import CacheBackend
from dit_cache_conformance import check_backend

FEW = ("qwen_image", "flux_controlled", "wan22", "wan")
"""Enough models where nothing is to be found."""

BROKEN: list[type[CacheBackend]] = [
    cls
    for module in (broken, broken_state, hand_made)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if cls.__dict__.get("caught_by")
]


def test_there_are_many_ways_to_be_broken() -> None:
    assert len(BROKEN) >= 25
    assert len({cls.caught_by for cls in BROKEN}) == len(BROKEN)  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_backend_is_caught_by_the_check_that_is_meant_for_it(cls: type[CacheBackend]) -> None:
    check: str = cls.caught_by  # type: ignore[attr-defined]
    report = check_backend(cls, only=check)
    assert report.failed == [check]


def test_the_checks_by_which_they_are_caught_pass_for_an_honest_backend() -> None:
    report = check_backend(Honest, only={each.caught_by for each in BROKEN}, models=FEW)  # type: ignore[attr-defined]
    assert report.failed == []


def test_a_backend_without_the_engine_passes_what_it_can_keep() -> None:
    only = [
        "isolation",
        "decisions",
        "configuration",
        "a_still_input_is_reproduced",
        "half_precision_is_kept",
    ]
    report = check_backend(hand_made.HandMade, only=only, models=FEW)
    assert report.failed == []


def test_ranks_that_ask_each_other_agree() -> None:
    assert check_backend(broken.Agrees, only="ranks_take_one_decision").failed == []
