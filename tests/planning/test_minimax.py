"""The path over the steps against every path there is."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_cache_backends import ConfigError
from dit_cache_backends.planning import minimax_path
from dit_cache_backends.planning.starts import starting_masks

Weights = dict[tuple[int, int], float]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Weights, int, set[int], int]:
    """Weights of all gaps up to some length, the steps, those that have to compute, and the longest gap."""
    steps = draw(st.integers(3, 9))
    longest = draw(st.integers(1, 6))
    # Few different numbers, so that many paths are equally bad at their worst.
    weight = st.sampled_from([0.1, 0.2, 0.3, 0.5])
    weights = {
        (first, second): draw(weight)
        for first in range(steps)
        for second in range(first + 2, min(first + longest + 2, steps))
    }
    forced = draw(st.sets(st.integers(0, steps - 1), max_size=2)) | {0, steps - 1}
    return weights, steps, forced, longest


def badness(mask: tuple[int, ...], weights: Weights) -> list[float] | None:
    """The weights of a mask's gaps, the largest first; None if a gap is not to be had."""
    ones = [step for step, digit in enumerate(mask) if digit]
    gaps = [(first, second) for first, second in pairwise(ones) if second > first + 1]
    if any(gap not in weights for gap in gaps):
        return None
    found = [weights[gap] for gap in gaps]
    return sorted(found + [0.0] * (len(ones) - 1 - len(gaps)), reverse=True)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(2, 9))
def test_no_other_path_of_as_many_steps_is_better_where_it_is_worst(
    graph: tuple[Weights, int, set[int], int], computed: int
) -> None:
    weights, steps, forced, _ = graph
    others = [
        found
        for ones in combinations(range(steps), computed)
        if forced <= set(ones)
        and (found := badness(tuple(int(step in ones) for step in range(steps)), weights)) is not None
    ]
    if not others:
        with pytest.raises(ConfigError, match="no plan computes"):
            minimax_path(weights, steps, computed, forced)
        return
    mask = minimax_path(weights, steps, computed, forced)
    assert sum(mask) == computed
    assert all(mask[step] for step in forced)
    assert badness(mask, weights) == min(others)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(2, 9), st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_every_start_keeps_to_what_is_asked(
    graph: tuple[Weights, int, set[int], int], computed: int, change: list[float]
) -> None:
    _, steps, forced, longest = graph
    if not len(forced) <= computed < steps:
        return
    for origin, mask in starting_masks(steps, computed, forced, change[:steps], longest).items():
        assert len(mask) == steps, origin
        assert sum(mask) == computed, origin
        assert all(mask[step] for step in forced), origin
        assert max(map(len, "".join(map(str, mask)).split("1"))) <= longest, origin
