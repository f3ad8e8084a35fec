"""The search itself, on errors that are known without drawing."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from dit_cache_backends.planning import Candidate, Quality
from dit_cache_backends.planning.climb import climb, longest_gap, neighbours

STEPS = 10
PREDICTORS = ("reuse", "taylorseer 1")


def quality(candidate: Candidate, weights: list[float]) -> Quality:
    """The worse the more of the weights are skipped; reuse costs a bit more."""
    lost = sum(weight for weight, digit in zip(weights, candidate.mask, strict=True) if not digit)
    lost += 0.5 * (candidate.predictor == "reuse")
    return Quality(-lost, -2 * lost)


def limited(times: int) -> Callable[[], bool]:
    left = [times]

    def goes_on() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return goes_on


@st.composite
def starts(draw: st.DrawFn) -> tuple[Candidate, set[int], int]:
    """A legal candidate, the steps that have to compute, and the longest gap."""
    mask = (1, *draw(st.lists(st.integers(0, 1), min_size=STEPS - 2, max_size=STEPS - 2)), 1)
    forced = {
        0,
        STEPS - 1,
        *draw(st.sets(st.sampled_from([step for step in range(STEPS) if mask[step]]), max_size=2)),
    }
    return Candidate(mask, draw(st.sampled_from(PREDICTORS))), forced, max(longest_gap(mask), 3)


@settings(max_examples=100, deadline=None)
@given(
    starts(),
    st.lists(st.floats(0, 4), min_size=STEPS, max_size=STEPS),
    st.integers(0, 60),
    st.integers(0, 99),
)
def test_what_comes_out_is_never_worse_than_the_start_and_keeps_to_the_guards(
    start: tuple[Candidate, set[int], int], weights: list[float], times: int, seed: int
) -> None:
    candidate, forced, max_skip = start
    best = climb(
        [candidate],
        lambda each: quality(each, weights),
        lambda one, than: True,
        limited(times),
        forced,
        PREDICTORS,
        max_skip,
        random.Random(seed),
    )
    assert quality(best, weights).rank >= quality(candidate, weights).rank
    assert best.computed == candidate.computed
    assert all(best.mask[step] for step in forced)
    assert longest_gap(best.mask) <= max_skip


@settings(max_examples=100, deadline=None)
@given(starts(), st.integers(0, 99))
def test_neighbours_are_legal_others_and_none_comes_twice(
    start: tuple[Candidate, set[int], int], seed: int
) -> None:
    candidate, forced, max_skip = start
    found = list(neighbours(candidate, forced, PREDICTORS, max_skip, random.Random(seed)))
    assert len(set(found)) == len(found)
    assert candidate not in found
    for each in found:
        assert each.computed == candidate.computed
        assert all(each.mask[step] for step in forced)
        assert longest_gap(each.mask) <= max_skip


def test_with_time_enough_the_best_of_all_is_found() -> None:
    weights = [9.0, 1.0, 5.0, 0.5, 3.0, 0.2, 7.0, 0.1, 2.0, 9.0]
    start = Candidate((1, 1, 0, 1, 0, 1, 0, 0, 0, 1), "reuse")
    best = climb(
        [start],
        lambda each: quality(each, weights),
        lambda one, than: True,
        lambda: True,
        {0, STEPS - 1},
        PREDICTORS,
        STEPS,
        random.Random(0),
    )
    assert best == Candidate((1, 0, 1, 0, 1, 0, 1, 0, 0, 1), "taylorseer 1")


def test_the_worst_prompt_counts_as_much_as_the_mean() -> None:
    assert Quality(30.0, 22.0).rank > Quality(31.0, 20.0).rank
    assert Quality(33.0, 20.0).rank > Quality(30.0, 22.0).rank
    assert Quality.of([0.1, 0.01]) == Quality(30.0, 20.0)
    assert Quality.of([0.0, float("nan")]).worst < Quality.of([10.0]).worst


@settings(max_examples=50, deadline=None)
@given(starts(), st.lists(st.floats(0, 4), min_size=STEPS, max_size=STEPS), st.integers(0, 99))
def test_what_is_foreseen_to_be_best_is_tried_first(
    start: tuple[Candidate, set[int], int], weights: list[float], seed: int
) -> None:
    candidate, forced, max_skip = start

    def rank(each: Candidate) -> float:
        return quality(each, weights).rank

    blind = list(neighbours(candidate, forced, PREDICTORS, max_skip, random.Random(seed)))
    found = list(neighbours(candidate, forced, PREDICTORS, max_skip, random.Random(seed), rank))
    assert set(found) == set(blind)
    assert [rank(each) for each in found] == sorted(map(rank, found), reverse=True)


def test_a_search_that_foresees_the_truth_needs_fewer_looks() -> None:
    weights = [9.0, 1.0, 5.0, 0.5, 3.0, 0.2, 7.0, 0.1, 2.0, 9.0]
    start = Candidate((1, 1, 0, 1, 0, 1, 0, 0, 0, 1), "reuse")
    best = Candidate((1, 0, 1, 0, 1, 0, 1, 0, 0, 1), "taylorseer 1")

    def looks(rank: Callable[[Candidate], float]) -> float:
        needed = []
        for seed in range(8):
            seen: list[Candidate] = []

            def evaluate(each: Candidate, seen: list[Candidate] = seen) -> Quality:
                seen.append(each)
                return quality(each, weights)

            climb(
                [start],
                evaluate,
                lambda one, than: True,
                lambda: True,
                {0, STEPS - 1},
                PREDICTORS,
                STEPS,
                random.Random(seed),
                rank,
            )
            needed.append(len(set(seen[: seen.index(best)])))
        return sum(needed) / len(needed)

    assert looks(lambda each: quality(each, weights).rank) < 0.5 * looks(lambda _: 0.0)
