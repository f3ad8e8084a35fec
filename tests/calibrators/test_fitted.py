"""Weights that were fitted to a mask hold for its steps, and for nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_cache_backends import Fitted, Step
from tests.calibrators.series import combined

MASK = (1, 1, 0, 1, 0, 0, 1, 0)
WEIGHTS = {2: (-0.5, 1.5), 4: (0.25, -1.0, 1.75), 5: (2.0,), 7: (0.1, 0.2, 0.7)}
SERIES = combined(lambda t: 1.0, lambda t: float(t), lambda t: 0.8**t)


def at(index: int, total: int | None = len(MASK), run: int | None = None) -> Step:
    return Step(index, total, "0", index if run is None else run, total)


def shown(steps: list[int], total: int | None = len(MASK)) -> Fitted:
    predictor = Fitted(WEIGHTS, MASK)
    for step in steps:
        predictor.observe(at(step, total), SERIES(step))
    return predictor


@pytest.mark.parametrize("total", [len(MASK), None])
def test_each_skipped_step_is_the_sum_that_its_weights_say(total: int | None) -> None:
    computed: list[int] = []
    for step, digit in enumerate(MASK):
        if digit:
            computed.append(step)
            continue
        weights = WEIGHTS[step]
        sources = computed[-len(weights) :]
        expected = sum(weight * SERIES(each) for weight, each in zip(weights, sources, strict=True))
        torch.testing.assert_close(shown(computed, total).predict(at(step, total)), expected)


@given(st.lists(st.booleans(), min_size=7, max_size=7), st.integers(1, 7))
def test_where_other_steps_were_computed_than_the_mask_says_the_line_is_taken(
    ran: list[bool], asked: int
) -> None:
    steps = [0, *(step for step, each in enumerate(ran, 1) if each and step < asked)]
    planned = [step for step in range(asked) if MASK[step]]
    weights = WEIGHTS.get(asked)
    if weights is not None and steps[-len(weights) :] == planned[-len(weights) :]:
        return
    found = shown(steps).predict(at(asked))
    if len(steps) < 2:
        assert torch.equal(found, SERIES(0))
        return
    (a, b), (one, other) = steps[-2:], (SERIES(steps[-2]), SERIES(steps[-1]))
    torch.testing.assert_close(found, other + (other - one) * (asked - b) / (b - a))


def test_in_a_run_of_another_length_the_line_is_taken() -> None:
    found = shown([0, 1], total=9).predict(at(2, 9))
    torch.testing.assert_close(found, 2 * SERIES(1) - SERIES(0))


def test_a_mask_for_the_run_is_followed_by_the_second_of_two_experts() -> None:
    """Its own steps begin at 0 again; those of the run do not."""
    predictor = Fitted({7: (3.0,)}, (1, 0, 0, 0, 0, 0, 1, 0))
    expert = [Step(index, 2, "0", 6 + index, 8) for index in range(2)]
    predictor.observe(expert[0], SERIES(6))
    assert torch.equal(predictor.predict(expert[1]), 3 * SERIES(6))


def test_after_steps_are_counted_anew_the_newest_value_is_reused() -> None:
    predictor = shown([0, 1, 3], None)
    predictor.observe(at(0, None), SERIES(9))
    assert torch.equal(predictor.predict(at(1, None)), SERIES(9))
