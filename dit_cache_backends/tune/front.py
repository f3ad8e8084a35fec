"""Quality over speed-up for every family, all on the same prompts: what the plot shows."""

from __future__ import annotations

from dataclasses import dataclass

from dit_cache_backends.errors import DitCacheError
from dit_cache_backends.trials import Setting
from dit_cache_backends.tune.candidates import FEWER, fewer_steps
from dit_cache_backends.tune.deadline import Deadline, OutOfTime
from dit_cache_backends.tune.halving import Halving, Tried

PROMPTS = 2
POSITIONS = ((1.0, 0.0), (0.75, 0.0), (0.7, 0.3), (0.5, 0.0), (0.4, 0.6))
"""Where each dial stands, as a part of where it came to rest, and so much more: there, and on both sides of it."""

Point = tuple[float, float]
"""Blocks of the dense run over blocks run, and the mean PSNR in dB."""


@dataclass(frozen=True)
class Front:
    """The points of every family."""

    families: dict[str, list[Point]]
    found: Point | None
    """That of the setting that was found."""
    prompts: int


def front_of(halving: Halving, best: Tried, rival: Setting, deadline: Deadline) -> Front:
    """Draw the line to beat, then the best of each family at several positions in turns, as long as there is time."""
    count = min(PROMPTS, len(halving.prompts))
    ranked = sorted(halving.tried.values(), key=lambda each: halving.aim.rank(each.result), reverse=True)
    chosen: dict[str, Tried] = {FEWER: _fewer(halving, rival, best), best.candidate.family: best}
    for each in ranked:
        chosen.setdefault(each.candidate.family, each)
    points: dict[str, dict[str, Point]] = {family: {} for family in chosen}
    own = halving.measure(best.candidate, best.position, count, Deadline(None)).result
    line = chosen.pop(FEWER)
    try:
        for part, more in POSITIONS:
            points[FEWER].update(_point(halving, line, part * line.position + more, count, deadline))
        for part, more in POSITIONS:
            for family, tried in chosen.items():
                point = _point(halving, tried, part * tried.position + more, count, deadline)
                points[family].update(point)
    except OutOfTime:
        pass
    return Front(
        {family: sorted(found.values()) for family, found in points.items() if found},
        (1 / own.share, own.psnr.mean) if own.share else None,
        count,
    )


def _point(
    halving: Halving, tried: Tried, position: float, count: int, deadline: Deadline
) -> dict[str, Point]:
    """One point by its setting; none where the family cannot be turned so far, or runs no block."""
    try:
        found = halving.measure(tried.candidate, position, count, deadline)
    except DitCacheError:
        return {}
    key = repr((found.setting.config, found.setting.steps))
    return {key: (1 / found.result.share, found.result.psnr.mean)} if found.result.share else {}


def _fewer(halving: Halving, rival: Setting, best: Tried) -> Tried:
    """The line to beat, its dial at the rival's number of steps."""
    candidate, steps = fewer_steps(halving.scores.steps), halving.scores.steps
    position = (steps - 1 - (rival.steps or 1)) / max(steps - 2, 1)
    return Tried(candidate, position, rival, best.result)
