"""From an aim to a setting that was measured: search, plot, held-out prompts, and what is to be said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dit_cache_backends.compare.live import ratio
from dit_cache_backends.errors import ConfigError, DitCacheError
from dit_cache_backends.trials import DENSE, Prompt, Setting, Trial
from dit_cache_backends.tune.aim import Aim, rival_steps
from dit_cache_backends.tune.candidates import Candidate, families
from dit_cache_backends.tune.deadline import Deadline, OutOfTime
from dit_cache_backends.tune.front import Front, front_of
from dit_cache_backends.tune.halving import Halving, Tried
from dit_cache_backends.tune.outcome import (
    Checked,
    Condition,
    Verdict,
    dearer,
    fewer,
    judge,
    measure,
    other_seeds,
)
from dit_cache_backends.tune.planned import BACKEND, planned
from dit_cache_backends.tune.scores import Scores

PLAN_SHARE = 0.3
"""Of the search's time, for plans."""
PLAN_SECONDS = 120.0
"""For plans where there is no time budget."""
LEAST_PLAN = 10.0
"""Seconds below which no plan is looked for."""
FRONT_SHARE = 0.4
"""Of the time that is left after the search and without the held-out drawings, for the plot."""
CONFIRMED = 3
"""Pairs that are timed anew before a speed-up by time is believed, and how often it may be corrected."""

CORRECTED = 2
"""How often the dense run of equal cost may be given more steps, where it was faster than what was found."""
SLACK = 1.06
"""A measured speed-up of more than so many times what is asked for gives quality away."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is to be searched, and with what."""

    aim: Aim
    calibration: Sequence[Prompt]
    held_out: Sequence[Prompt]
    steps: int
    only: Sequence[str] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plans: bool = True
    size: tuple[int, int] | None = None
    """Width and height of the other size; None: three quarters of the model's own."""

    def __post_init__(self) -> None:
        shared = {(p.text, p.seed) for p in self.calibration} & {(p.text, p.seed) for p in self.held_out}
        if not self.calibration or not self.held_out:
            raise ConfigError("at least two prompts are needed: one to search with, and one that is held out")
        if shared:
            raise ConfigError(
                f"held-out prompts are among those that are searched with, such as {min(shared)[0]!r}"
            )
        if self.steps < 2:
            raise ConfigError(
                "a run of at least 2 steps is needed, so that some may be skipped; got "
                f"{self.steps or 'no number'}. Say it: --num-inference-steps."
            )


@dataclass
class Found:
    """What came of it."""

    request: Request
    scores: Scores
    best: Tried
    rival: Setting
    conditions: list[Condition]
    checks: list[Checked]
    """One for each condition; the first is that of the held-out prompts."""
    verdict: Verdict
    ranked: list[Tried]
    """The best candidates, on calibration prompts."""
    front: Front
    left_out: list[str]
    ended_early: bool


def tune(
    trial: Trial, request: Request, folder: Path, budget: float | None = None, say: Say = lambda _: None
) -> Found:
    """Search for a setting, and measure it.

    Args:
        trial: the model.
        request: what is wanted.
        folder: where drawings are kept; a search that was stopped goes on there.
        budget: seconds; the drawing under way is finished, and one prompt is measured in any case.
        say: told what is done.

    Raises:
        ConfigError: nothing can be searched, or not even one candidate could be drawn in the time.
    """
    whole = Deadline(budget)
    first, left_out = families(request.only, request.options)
    scores = Scores(trial, folder, request.steps, say)
    dense = scores.score(DENSE, request.calibration[0])
    conditions = [
        Condition("held-out prompts", request.held_out),
        Condition("other seeds", other_seeds(request.held_out)),
    ]
    sized = _other_size(scores, request)
    # Three drawings of each, and the memory's; what is set aside is at most two fifths.
    count = 3 * sum(len(each.prompts) for each in conditions) + 3 * len(sized.prompts) + 3
    kept = min(0.4 * whole.left, count * dense.seconds) if budget is not None else 0.0
    search = whole.part(1 - FRONT_SHARE / 2, kept)
    halving = Halving(scores, request.calibration, request.aim, say)
    ranked = halving.run(first, search, lambda: _plans(halving, request, folder, search, left_out, say))
    if not ranked:
        reasons = "; ".join([*left_out, *halving.left_out])
        raise ConfigError(f"nothing could be tried in the time that there was. {reasons}".strip())
    best, measured = ranked[0], None
    if request.aim.by == "time":
        best, measured = _confirmed(halving, best, whole.part(1.0, kept))
    times, backend, share = halving.times, best.candidate.backend, best.result.share
    steps = rival_steps(share, request.steps)
    if request.aim.by == "time":
        steps = times.steps_for(measured or times.speedup(backend, share), request.steps)
    rival = fewer(steps)
    say("the plot")
    front = front_of(halving, best, rival, whole.part(FRONT_SHARE, kept))
    say("measuring on held-out prompts")
    checks: list[Checked] = []
    for condition in (*conditions, sized):
        check = _checked(scores, condition, best.setting, rival, whole, must=not checks)
        for _ in range(CORRECTED if request.aim.by == "time" and not checks else 0):
            if whole.left <= 0 or (more := dearer(check, rival, request.steps)) is None:
                break
            rival = more
            check = _checked(scores, condition, best.setting, rival, whole, must=True)
        checks.append(check)
    return Found(
        request,
        scores,
        best,
        rival,
        [*conditions, sized],
        checks,
        judge(request.aim, checks[0], rival),
        sorted(
            halving.tried.values(), key=lambda e: (e.result.prompts, request.aim.rank(e.result)), reverse=True
        ),
        front,
        [*left_out, *halving.left_out],
        search.left <= 0,
    )


def _plans(
    halving: Halving, request: Request, folder: Path, search: Deadline, left_out: list[str], say: Say
) -> list[Candidate]:
    """A plan for as many computed steps as the aim allows."""
    if not request.plans or (request.only and BACKEND not in request.only):
        return []
    seconds = PLAN_SECONDS if search.seconds is None else search.left * PLAN_SHARE
    if seconds < LEAST_PLAN:
        left_out.append(
            f"planned: {max(seconds, 0):.0f} s are too little to look for plans; give more --time-budget"
        )
        return []
    steps, aim = request.steps, request.aim
    if aim.speedup is not None:
        speed = (
            (lambda n: steps / n)
            if aim.by == "blocks"
            else (lambda n: halving.times.speedup(BACKEND, n / steps))
        )
        computed = [next((n for n in range(steps - 1, 1, -1) if speed(n) >= aim.speedup), 2)]
    else:
        best = max((each.result for each in halving.tried.values()), key=aim.rank, default=None)
        most = steps - 1 if best is None else math.ceil(best.share * steps)
        computed = [n for n in (most, most - 1, most - 2, most - 4) if 2 <= n < steps]
    try:
        return [
            planned(
                halving.scores.trial,
                request.calibration,
                steps,
                computed,
                seconds,
                folder / "plans.json",
                say,
            )
        ]
    except DitCacheError as error:
        left_out.append(f"planned: {error}")
        return []


def _confirmed(halving: Halving, best: Tried, deadline: Deadline) -> tuple[Tried, float | None]:
    """The best with its measured speed-up; turned again where that is not what was reckoned, and asked for.

    The speed-up is the median of pairs that are drawn one after the other; None where there was no time for one.
    """
    aim = halving.aim
    turns = aim.speedup is not None and aim.reached(best.result)
    wanted, measured = aim, None
    try:
        for turn in range(1, CONFIRMED + 1):
            pairs = []
            for prompt in halving.prompts[:CONFIRMED]:
                deadline.check()
                slow = halving.scores.score(DENSE, prompt, turn=turn)
                pairs.append((slow.seconds, halving.scores.score(best.setting, prompt, turn=turn).seconds))
            measured = ratio(pairs)
            if not turns or aim.speedup is None or aim.speedup <= measured <= SLACK * aim.speedup:
                break
            assert wanted.speedup is not None
            wanted = replace(wanted, speedup=max(1.01, wanted.speedup * aim.speedup / measured))
            turned = halving.settle(best.candidate, len(halving.prompts), deadline, best.position, wanted)
            if turned.setting == best.setting:
                break
            best, measured = turned, None
    except OutOfTime:
        pass
    return best, measured


def _other_size(scores: Scores, request: Request) -> Condition:
    """Half of the held-out prompts at another size; without any where the pipeline takes none."""
    known = scores.trial.arguments
    if not {"height", "width"} <= known:
        return Condition("other size: the pipeline takes no height and width", ())
    if request.size is None:
        height, width = scores.picture(DENSE, request.calibration[0])[0].shape[:2]
        grid = 32 if min(height, width) >= 128 else 16
        width, height = (max(grid, int(0.75 * side) // grid * grid) for side in (width, height))
    else:
        width, height = request.size
    prompts = request.held_out[: max(1, len(request.held_out) // 2)]
    return Condition(f"other size, {width}x{height}", prompts, {"height": height, "width": width})


def _checked(
    scores: Scores, condition: Condition, best: Setting, rival: Setting, deadline: Deadline, must: bool
) -> Checked:
    checked = Checked(condition.name, 0)
    if not condition.prompts:
        checked.why_not = "not measured"
        return checked
    if not must and deadline.left <= 0:
        checked.why_not = "there was no time left; run it again with the same --work to go on"
        return checked
    try:
        both, checked.prompts = measure(scores, condition, (best, rival), lambda: deadline.left)
    except DitCacheError as error:
        if must:
            raise
        checked.why_not = str(error)
        return checked
    checked.found, checked.rival = both
    return checked
