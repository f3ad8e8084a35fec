"""The search for one plan: which start is the best, and what is reached from there."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from dit_cache_backends.planning.candidates import Candidate, Mask, Quality
from dit_cache_backends.planning.climb import climb

__all__ = ["pursue"]

TRIED = 3
"""Predictors with which the starts are looked at; the others are tried with the best starts."""
LOOKS = 12
"""Of the starts with those predictors, looked at in the order of what is foreseen of them."""
CLIMBED = 3
"""Starts from which the search sets out in turn."""
TOLERANCE = 0.5
"""In dB: how much worse in the mean a candidate may be on a few prompts than the one it is to replace."""


def pursue(
    starts: Mapping[str, Mask],
    predictors: Sequence[str],
    first_look: Callable[[Candidate], Quality],
    evaluate: Callable[[Candidate], Quality],
    goes_on: Callable[[], bool],
    forced: Collection[int],
    max_skip: int,
    seed: int,
    rank: Callable[[Candidate], float] = lambda candidate: 0.0,
) -> tuple[Candidate, str]:
    """The best candidate that was met, and what the search began with.

    Args:
        starts: masks by where they come from.
        predictors: that may fill the skipped steps.
        first_look: how good a candidate is on a few prompts.
        evaluate: how good it is on all.
        goes_on: asked before each evaluation but the first.
        forced: steps that have to compute.
        max_skip: how many steps may be skipped in a row.
        seed: of the order in which neighbours are tried.
        rank: what is foreseen of a candidate without drawing it, more is better.
    """
    looks: dict[Candidate, Quality] = {}

    def look(mask: Mask, names: Sequence[str]) -> None:
        for name in names:
            if not looks or goes_on():
                looks.setdefault(Candidate(mask, name), first_look(Candidate(mask, name)))

    def best_of_each() -> list[Candidate]:
        """For each mask the best predictor so far, the best mask first."""
        ranked = sorted(looks, key=lambda each: looks[each].rank, reverse=True)
        first = {each.mask: each for each in reversed(ranked)}
        return [each for each in ranked if first[each.mask] is each]

    first = [Candidate(mask, name) for mask in starts.values() for name in predictors[:TRIED]]
    for candidate in sorted(first, key=rank, reverse=True)[:LOOKS]:
        look(candidate.mask, [candidate.predictor])
    for candidate in best_of_each()[:CLIMBED]:
        look(candidate.mask, predictors[TRIED:])
    found = best_of_each()[:CLIMBED]
    # On a few prompts the worst is not known: they are told apart on all.
    shown = [found[0], *(each for each in found[1:] if goes_on() and evaluate(each))]
    shown.sort(key=lambda each: evaluate(each).rank, reverse=True)

    def promises(candidate: Candidate, than: Candidate) -> bool:
        return first_look(candidate).mean >= first_look(than).mean - TOLERANCE

    best = climb(shown, evaluate, promises, goes_on, forced, predictors, max_skip, random.Random(seed), rank)
    origins = {mask: origin for origin, mask in reversed(list(starts.items()))}
    origin = origins.get(best.mask, f"{origins[shown[0].mask]}, climbed")
    return best, origin
