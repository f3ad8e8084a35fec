"""Timing in turns: in each round every contender makes some steps, so that a change of the machine meets all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

Key = tuple[str, str]


class Contender(Protocol):
    """One way to make a step. Between ``enter`` and ``leave`` it has the model for itself."""

    @property
    def key(self) -> Key:
        """Kind of step, and who makes it."""

    def enter(self) -> None:
        """Put it on the model; its state is where ``leave`` left it."""

    def leave(self) -> None:
        """Take it off: the model is as it was made."""

    def step(self) -> object:
        """One step of the kind that is measured."""


@dataclass
class Times:
    """What one contender took, in seconds of the process's own time.

    One thread works and nothing is waited for, so on a quiet machine that is the time of the clock on the wall, and on
    a busy one it leaves out what others were given.
    """

    rounds: list[list[float]] = field(default_factory=list)
    """The steps of each round."""
    wall: float = 0.0
    """Of all steps together, by the clock on the wall."""

    @property
    def medians(self) -> list[float]:
        """The median step of each round."""
        return [statistics.median(steps) for steps in self.rounds]

    @property
    def median(self) -> float:
        """The median round's median step."""
        return statistics.median(self.medians)

    @property
    def minimum(self) -> float:
        """The fastest step."""
        return min(min(steps) for steps in self.rounds)

    def ratio(self, base: Times) -> float:
        """The median over the rounds of how much longer a step took than one of ``base`` in the same round."""
        return statistics.median(own / other for own, other in zip(self.medians, base.medians, strict=True))

    def spread(self, base: Times) -> tuple[float, float]:
        """The quartiles of the same ratios."""
        ratios = sorted(own / other for own, other in zip(self.medians, base.medians, strict=True))
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    def over(self, base: Times) -> float:
        """The median over the rounds of the seconds that a step took longer than one of ``base``."""
        return statistics.median(own - other for own, other in zip(self.medians, base.medians, strict=True))


TURN = 0.1
"""Seconds that a contender works in a round, about; one step at least."""
MOST = 60
"""Steps in a round at most."""
LONG = 0.5
"""Seconds from which on a step is not made once for nothing before it is timed."""


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    turn: float = TURN,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Key, Times]:
    """Let every contender make some steps in each round; every other round in the opposite order.

    Args:
        contenders: each with a key of its own, ready to make steps of its kind.
        rounds: how often.
        turn: seconds of each in a round; how many steps that are is found out before the first round.
        say: told the number of a round before it begins.
    """
    found = {each.key: Times() for each in contenders}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # as timeit does: who happens to be on turn would pay for the garbage of all
    try:
        with torch.no_grad():
            steps = {each.key: _steps(each, turn) for each in contenders}
            for number in range(rounds):
                say(f"round {number + 1} of {rounds}")
                for each in contenders if number % 2 == 0 else reversed(contenders):
                    _turn(each, steps[each.key], found[each.key])
                gc.collect()
    finally:
        if collecting:
            gc.enable()
    return found


def _steps(contender: Contender, turn: float) -> int:
    tried = Times()
    _turn(contender, 1, tried)
    if tried.minimum < turn:
        _turn(contender, 2, tried)
    return max(1, min(MOST, round(turn / tried.minimum)))


def _turn(contender: Contender, steps: int, times: Times) -> None:
    contender.enter()
    try:
        if not times.rounds or times.minimum < LONG:
            contender.step()
        taken: list[float] = []
        began = time.perf_counter()
        for _ in range(steps):
            before = time.process_time()
            contender.step()
            taken.append(time.process_time() - before)
        times.wall += time.perf_counter() - began
    finally:
        contender.leave()
    times.rounds.append(taken)
