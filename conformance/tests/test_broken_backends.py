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
"""Enough models where nothing is to be found, and where what is broken shows unless the backend says otherwise."""

BROKEN: list[type[CacheBackend]] = [
    cls
    for module in (broken, broken_state, hand_made)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if cls.__dict__.get("caught_by")
]


def test_there_are_many_ways_to_be_broken() -> None:
    assert len(BROKEN) >= 25
    assert len({cls.caught_by for cls in BROKEN}) >= 25  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_backend_is_caught_by_the_check_that_is_meant_for_it(cls: type[CacheBackend]) -> None:
    check: str = cls.caught_by  # type: ignore[attr-defined]
    models: tuple[str, ...] = getattr(cls, "caught_on", FEW)
    report = check_backend(cls, only=check, models=models)
    assert report.failed == [check]


def test_the_checks_by_which_they_are_caught_pass_for_an_honest_backend() -> None:
    report = check_backend(Honest, only={each.caught_by for each in BROKEN}, models=FEW)  # type: ignore[attr-defined]
    assert report.failed == []


def test_a_backend_that_refuses_what_it_declares_passes_and_the_report_says_what_was_left_out() -> None:
    only = ["hosts", "disabling_twice_is_harmless", "a_refused_model_is_left_alone", "every_option_is_read"]
    report = check_backend(broken.RefusesAsDeclared, only=only, models=["dit", "wan", "wan22"])
    assert report.failed == []
    by_name = {result.check.name: result for result in report.results}
    assert by_name["a_refused_model_is_left_alone"].status == "passed"
    assert by_name["disabling_twice_is_harmless"].refused == {"dit": "it is no flow"}
    assert "dit: refused, so 5 checks were not tried on it: it is no flow" in str(report)
    assert report.to_dict()["checks"][0]["refused"] == {"dit": "it is no flow"}


@pytest.mark.parametrize(
    ("cls", "found"),
    [
        (broken.DeclaresARefusalThatNeverComes, "was enabled, which it declares to refuse"),
        (broken.RefusesTooLate, "things are not as before"),
        (broken.RefusesNameless, "does not name {'DiTTransformer2DModel'}: this model will not do"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_refusal_has_to_come_name_the_model_and_leave_it_alone(cls: type[CacheBackend], found: str) -> None:
    (result,) = check_backend(cls, only="a_refused_model_is_left_alone").results
    assert found in result.message


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


def test_ranks_that_add_up_decide_as_one_process_and_ranks_that_vote_agree() -> None:
    both = ["ranks_take_one_decision", "ranks_decide_as_one_process_would"]
    report = check_backend(broken.AddsUp, only=both)
    assert [result.status for result in report.results] == ["passed", "passed"], str(report)
    report = check_backend(broken.Votes, only=both)
    assert [result.status for result in report.results] == ["passed", "skipped"], str(report)


def test_a_backend_that_cannot_agree_is_not_asked_to() -> None:
    report = check_backend(hand_made.HandMade, only="ranks_take_one_decision")
    assert report.results[0].status == "skipped"
    assert "no agree_over" in report.results[0].message
