"""Masks that a search should begin with, found by what is foreseen of them, without running the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from dit_cache_backends.planning.candidates import FITTED, Candidate, Mask
from dit_cache_backends.planning.climb import shifted

__all__ = ["best_foreseen", "foreseen_starts"]

FORESEEN = 2
"""Masks that each fitted predictor brings."""

REACH = (-3, -2, -1, 1, 2, 3)
"""How far a computed step is shifted at once."""


def foreseen_starts(
    starts: Mapping[str, Mask],
    predictors: Iterable[str],
    rank: Callable[[Candidate], float],
    forced: Collection[int],
    max_skip: int,
) -> dict[str, Mask]:
    """For each fitted predictor the masks with which it is foreseen to be best, by where they come from.

    Args:
        starts: masks to begin with, by where they come from.
        predictors: those that are searched; others than fitted ones bring nothing.
        rank: how good a candidate is foreseen to be, more is better.
        forced: steps that have to compute.
        max_skip: how many steps may be skipped in a row.
    """
    found: dict[str, Mask] = {}
    for predictor in predictors:
        if predictor in FITTED:

            def ranked(mask: Mask, predictor: str = predictor) -> float:
                return rank(Candidate(mask, predictor))

            masks = best_foreseen(starts.values(), ranked, forced, max_skip, FORESEEN)
            names = (f"foreseen, {predictor}", f"foreseen second, {predictor}")
            found |= dict(zip(names, masks, strict=False))
    return found


def best_foreseen(
    starts: Iterable[Mask], rank: Callable[[Mask], float], forced: Collection[int], max_skip: int, count: int
) -> list[Mask]:
    """The best masks that are met on the way uphill from each start.

    Args:
        starts: where to begin.
        rank: how good a mask is foreseen to be, more is better.
        forced: steps that have to compute.
        max_skip: how many steps may be skipped in a row.
        count: masks wanted.
    """
    known: dict[Mask, float] = {}

    def ranked(masks: Iterable[Mask]) -> list[Mask]:
        each = list(masks)
        for mask in each:
            if mask not in known:
                known[mask] = rank(mask)
        return sorted(each, key=lambda mask: known[mask], reverse=True)

    for start in starts:
        current = ranked([start])[0]
        while around := ranked(shifted(current, REACH, forced, max_skip)):
            if known[around[0]] <= known[current]:
                break
            current = around[0]
    return ranked(known)[:count]
