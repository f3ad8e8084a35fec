"""The search: each candidate's dial turned until it does what is asked for, and the better ones tried on more prompts.

Successive halving (Jamieson and Talwalkar, 2016): many candidates on one prompt, a quarter of them on two, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dit_cache_backends.errors import DitCacheError
from dit_cache_backends.trials import DENSE, Prompt, Setting
from dit_cache_backends.tune.aim import Aim, Result, Times, result_of
from dit_cache_backends.tune.candidates import Candidate, crossed, neighbours
from dit_cache_backends.tune.deadline import Deadline, OutOfTime
from dit_cache_backends.tune.scores import Scores

KEPT = 4
"""One in so many candidates goes on to twice the prompts."""
LEAST = 3
"""So many go on in any case."""
TURNS = 7
"""Positions of a dial that are tried at most when it is turned for the first time, and half as many later."""
FIRST = 0.5
"""Part of the time for the first prompt, at most."""
NEXT = 0.06
"""How far a dial is turned from where another one of the family came to rest."""


@dataclass(frozen=True)
class Tried:
    """A candidate where its dial came to rest."""

    candidate: Candidate
    position: float
    setting: Setting
    result: Result


class Halving:
    """Searches for one aim.

    Args:
        scores: what draws.
        prompts: for calibration.
        aim: what is asked for.
        told: told what is done.
    """

    def __init__(
        self,
        scores: Scores,
        prompts: Sequence[Prompt],
        aim: Aim,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.scores, self.prompts, self.aim = scores, list(prompts), aim
        self.times = Times()
        self._left_out: dict[tuple[str, str], str] = {}
        self.tried: dict[str, Tried] = {}
        """Every candidate by its label, on the most prompts it came to."""
        self._told = told
        self._starts: dict[str, float] = {}
        self._seen: set[tuple[str, str, str]] = set()

    @property
    def left_out(self) -> list[str]:
        """Candidates that cannot be drawn with here, and why; one of each family and reason."""
        return list(self._left_out.values())

    def measure(
        self, candidate: Candidate, position: float, count: int, deadline: Deadline, aim: Aim | None = None
    ) -> Tried:
        """Draw the first ``count`` prompts at one position of a candidate's dial.

        Raises:
            DitCacheError: it cannot be drawn with.
            OutOfTime: there is no time for it.
        """
        setting = candidate.setting(position, self.scores.steps)
        found = []
        for prompt in self.prompts[:count]:
            deadline.check()
            for backend, each in (("", DENSE), (candidate.backend, setting)):
                score = self.scores.score(each, prompt)
                key = (backend, repr(each), f"{prompt.seed} {prompt.text}")
                if key not in self._seen and (backend or each is DENSE):
                    self._seen.add(key)
                    self.times.add(backend, score)
            found.append(score)
        names = [prompt.text for prompt in self.prompts[:count]]
        result = result_of(found, names, aim or self.aim, self.times, candidate.backend)
        return Tried(candidate, position, setting, result)

    def settle(
        self,
        candidate: Candidate,
        count: int,
        deadline: Deadline,
        start: float | None = None,
        aim: Aim | None = None,
    ) -> Tried:
        """Turn the dial until the aim is just kept: bisection, from where the family's last one came to rest.

        The bold end stands for what never reaches a speed-up, the careful one for what never reaches a quality.

        Raises:
            DitCacheError: it cannot be drawn with.
            OutOfTime: before any position that keeps the aim was found; else the best so far is given.
        """
        aim = aim or self.aim
        stops = candidate.search.dial.stops(self.scores.steps)
        faster = aim.speedup is not None
        begin = self._starts.get(candidate.family) if start is None else start
        if begin is None and aim.speedup is not None:
            begin = candidate.search.dial.guess(1 / aim.speedup, self.scores.steps)
        at: float | None = _stop(0.5 if begin is None else begin, stops)
        careful, bold = 0.0, 1.0
        seen: dict[float, Tried] = {}
        best: Tried | None = None
        for turn in range(TURNS if start is None else TURNS // 2 + 1):
            if at is None:
                break
            try:
                seen[at] = last = self.measure(candidate, at, count, deadline, aim)
            except OutOfTime:
                if best is None:
                    raise
                break
            reached = aim.reached(last.result)
            if reached and (best is None or aim.rank(last.result) > aim.rank(best.result)):
                best = last
            if reached and aim.excess(last.result) < aim.near:
                break
            bolder = reached != faster
            careful, bold = (at, bold) if bolder else (careful, at)
            end = 1.0 if bolder else 0.0
            open_end = (bold if bolder else careful) == end and end not in seen
            if turn == 0 and begin is not None:  # it was near for another one of the family
                step = max(NEXT, 1 / (stops - 1) if stops and stops > 1 else 0.0)
                wanted = at + step if bolder else at - step
            elif best is None and open_end:  # whether the aim is within reach at all
                wanted = end
            else:
                wanted = (careful + bold) / 2
            at = _untried(wanted, careful, bold, stops, seen)
        extreme = 1.0 if faster else 0.0
        if best is None:
            best = seen.get(extreme) or self.measure(candidate, extreme, count, deadline, aim)
        self._starts[candidate.family] = best.position
        return best

    def run(
        self, families: Sequence[Candidate], deadline: Deadline, more: Callable[[], list[Candidate]]
    ) -> list[Tried]:
        """Search all families; ``more`` gives further candidates when the first prompt has been gone through.

        Returns:
            The candidates that came to the most prompts, best first. Empty where there was no time for a single one.
        """
        firsts = self._first_prompt(families, deadline.part(FIRST))
        ranked = self._ranked(self.tried.values())
        alive = more()
        alive += [found for first in firsts if (found := self._crossed(first, ranked)) is not None]
        alive += [each.candidate for each in ranked[: max(LEAST, math.ceil(len(ranked) / KEPT))]]
        count, best = 1, ranked[: max(LEAST, len(ranked) // KEPT)]
        while count < len(self.prompts):
            count = min(2 * count, len(self.prompts))
            through: list[Tried] = []
            for candidate in alive:
                known = self.tried.get(candidate.label)
                tried = self._try(candidate, count, deadline, None if known is None else known.position)
                if tried is None:
                    break
                through += tried
            else:
                best = self._ranked(through) or best
                alive = [each.candidate for each in best[: max(LEAST, math.ceil(len(best) / KEPT))]]
                continue
            # Not all came to so many prompts: those that did have shown more than those that did not.
            best = self._ranked(through) or best
            break
        return best

    def _first_prompt(self, families: Sequence[Candidate], deadline: Deadline) -> list[Candidate]:
        """The first of each family, then their neighbours in turn, those of the better families first."""
        firsts: list[Candidate] = []
        # Those with few settings need few drawings.
        for first in sorted(families, key=lambda each: each.search.dial.stops(self.scores.steps) is None):
            found = self._try(first, 1, deadline)
            if found is None:
                return firsts
            if found:
                firsts.append(first)
            else:  # another choice may fit the model where the first does not
                firsts += self._first_that_fits(first, deadline)
        order = [each.candidate for each in self._ranked(self.tried.values())]
        queues = [neighbours(first) for first in order]
        for turn in range(max(map(len, queues), default=0)):
            for queue in queues:
                if (
                    turn < len(queue)
                    and queue[turn].label not in self.tried
                    and self._try(queue[turn], 1, deadline) is None
                ):
                    return firsts
        return firsts

    def _first_that_fits(self, first: Candidate, deadline: Deadline) -> list[Candidate]:
        for candidate in neighbours(first):
            found = self._try(candidate, 1, deadline)
            if found:
                return [candidate]
            if found is None:
                break
        return []

    def _try(
        self, candidate: Candidate, count: int, deadline: Deadline, start: float | None = None
    ) -> list[Tried] | None:
        """What came of it: nothing where it cannot be drawn with, None where there is no time."""
        self._told(f"{candidate.label} ({count} prompt{'s' if count > 1 else ''})")
        try:
            self.scores.trial.check(candidate.setting(0.5, self.scores.steps))
            found = self.settle(candidate, count, deadline, start)
        except OutOfTime:
            return None
        except DitCacheError as error:
            self._leave_out(candidate, str(error))
            return []
        except Exception as error:
            # A stranger's fault, or a GPU that is full: the others are tried all the same.
            self._leave_out(candidate, f"it raised {type(error).__name__}: {error}")
            return []
        self.tried[candidate.label] = found
        return [found]

    def _leave_out(self, candidate: Candidate, why: str) -> None:
        self._left_out.setdefault((candidate.family, why), f"{candidate.label}: {why}")

    def _crossed(self, first: Candidate, ranked: Sequence[Tried]) -> Candidate | None:
        """The family's choices that were better than the first, taken together."""
        own = [each for each in ranked if each.candidate.family == first.family]
        labels = [each.candidate.label for each in own]
        if first.label not in labels:
            return None
        better = [each.candidate for each in own[: labels.index(first.label)]]
        found = crossed(first, better) if better else None
        return None if found is None or found.label in self.tried else found

    def _ranked(self, tried: Iterable[Tried]) -> list[Tried]:
        return sorted(tried, key=lambda each: self.aim.rank(each.result), reverse=True)


def _stop(position: float, stops: int | None) -> float:
    """The nearest position at which a dial can stand."""
    if stops is None:
        return position
    return round(position * (stops - 1)) / (stops - 1) if stops > 1 else 0.0


def _untried(
    wanted: float, careful: float, bold: float, stops: int | None, seen: Mapping[float, Tried]
) -> float | None:
    """The position that is wanted, else one beside it between the two bounds; None where all have been tried."""
    wanted = _stop(min(bold, max(careful, wanted)), stops)
    if wanted not in seen:
        return wanted
    return next(
        (
            at
            for at in (_stop((careful + bold) / 2, stops), _stop(careful, stops), _stop(bold, stops))
            if at not in seen
        ),
        None,
    )
