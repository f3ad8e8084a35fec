"""Hill climbing on the true end-to-end error (BudCache, arXiv 2606.13496)."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence

from dit_cache_backends.planning.candidates import Candidate, Mask, Quality

__all__ = ["climb", "neighbours", "shifted"]

LEAPS = 8
"""Leaps of which the best foreseen is taken."""

IDLE = 30
"""Leaps in turn that led to nothing new, after which the search has seen all that it can reach."""


def climb(
    starts: Sequence[Candidate],
    evaluate: Callable[[Candidate], Quality],
    promises: Callable[[Candidate, Candidate], bool],
    goes_on: Callable[[], bool],
    forced: Collection[int],
    predictors: Sequence[str],
    max_skip: int,
    rng: random.Random,
    rank: Callable[[Candidate], float] = lambda candidate: 0.0,
) -> Candidate:
    """The best that was met; never worse than the first start.

    From each start it goes to the first neighbour that is better, until none is; then it leaps: from the best that was
    met, some computed steps moved anywhere.

    Args:
        starts: where to begin, in turn.
        evaluate: how good a candidate is; asked often for the same one.
        promises: whether the first may be better than the second, which is cheaper to find out.
        goes_on: asked before each evaluation.
        forced: steps that have to compute.
        predictors: that may be changed for.
        max_skip: how many steps may be skipped in a row.
        rng: chooses the order of neighbours and the leaps where ``rank`` does not.
        rank: what is foreseen of a candidate without evaluating it, more is better; the best is tried first.
    """
    best = starts[0]
    best_rank = evaluate(best).rank
    waiting = list(starts)
    seen: set[Candidate] = set()
    idle = 0
    while goes_on() and idle < IDLE:
        current = waiting.pop(0) if waiting else _leap(best, forced, max_skip, rng, rank)
        before = len(seen)
        seen.add(current)
        reached = evaluate(current).rank
        better = True
        while better:
            if reached > best_rank:
                best, best_rank = current, reached
            better = False
            for neighbour in neighbours(current, forced, predictors, max_skip, rng, rank):
                if neighbour not in seen and not goes_on():
                    return best
                seen.add(neighbour)
                if promises(neighbour, current) and (found := evaluate(neighbour).rank) > reached:
                    current, reached, better = neighbour, found, True
                    break
        idle = 0 if len(seen) > before else idle + 1
    return best


def neighbours(
    candidate: Candidate,
    forced: Collection[int],
    predictors: Sequence[str],
    max_skip: int,
    rng: random.Random,
    rank: Callable[[Candidate], float] = lambda candidate: 0.0,
) -> Iterator[Candidate]:
    """What is one move away, best foreseen first; what is foreseen alike in random order but the small moves first.

    A computed step is shifted by one, another predictor is taken, a computed step is shifted by two or three.
    """
    mask = candidate.mask
    moves = [
        [Candidate(moved, candidate.predictor) for moved in shifted(mask, (-1, 1), forced, max_skip)],
        [Candidate(mask, name) for name in predictors if name != candidate.predictor],
        [Candidate(moved, candidate.predictor) for moved in shifted(mask, (-3, -2, 2, 3), forced, max_skip)],
    ]
    for group in moves:
        rng.shuffle(group)
    yield from sorted((each for group in moves for each in group), key=rank, reverse=True)


def longest_gap(mask: Sequence[int]) -> int:
    """The most steps that are skipped in a row."""
    return max((len(gap) for gap in "".join(map(str, mask)).split("1")), default=0)


def shifted(mask: Mask, distances: Sequence[int], forced: Collection[int], max_skip: int) -> Iterator[Mask]:
    """The masks in which one computed step is shifted by one of the distances."""
    for step in range(len(mask)):
        for distance in distances if mask[step] and step not in forced else ():
            to = step + distance
            if 0 <= to < len(mask) and not mask[to]:
                moved = _moved(mask, step, to)
                if longest_gap(moved) <= max_skip:
                    yield moved


def _moved(mask: Mask, step: int, to: int) -> Mask:
    digits = list(mask)
    digits[step], digits[to] = 0, 1
    return tuple(digits)


def _leap(
    candidate: Candidate,
    forced: Collection[int],
    max_skip: int,
    rng: random.Random,
    rank: Callable[[Candidate], float],
) -> Candidate:
    """The best foreseen of some leaps."""
    return max((_leapt(candidate, forced, max_skip, rng) for _ in range(LEAPS)), key=rank)


def _leapt(candidate: Candidate, forced: Collection[int], max_skip: int, rng: random.Random) -> Candidate:
    """Two computed steps moved to where steps are skipped."""
    mask = candidate.mask
    for _ in range(2):
        free = [step for step, digit in enumerate(mask) if digit and step not in forced]
        skipped = [step for step, digit in enumerate(mask) if not digit]
        rng.shuffle(free)
        rng.shuffle(skipped)
        pairs = ((step, to) for step in free for to in skipped)
        moved = (_moved(mask, *pair) for pair in pairs)
        mask = next((each for each in moved if longest_gap(each) <= max_skip), mask)
    return Candidate(mask, candidate.predictor)
