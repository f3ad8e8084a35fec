"""How a plan is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.planning.candidates import DEFAULT_PREDICTORS, predictors_named

__all__ = ["PlanSearch"]

OBJECTIVES = ("latents", "pictures")


@dataclass(frozen=True)
class PlanSearch:
    """How a plan is searched."""

    predictors: Sequence[str] = DEFAULT_PREDICTORS
    """Those that may fill the skipped steps; names of ``PREDICTORS``."""
    max_skip: int = 6
    """Most steps skipped in a row."""
    first: int = 1
    """First steps that always compute."""
    last: int = 1
    """Last steps that always compute."""
    front: int = 0
    """First blocks of each stack that always run."""
    back: int = 0
    """Last blocks of each stack that always run."""
    seconds: float | None = 600.0
    """Spent at most on the search, over all numbers of computed steps; the evaluation under way is finished."""
    evaluations: int | None = None
    """Made at most for each number of computed steps, in runs of all prompts; those of the segments not counted."""
    segments: int | None = None
    """Predictors whose segments are measured; None: as many as a quarter of the time allows."""
    objective: str = "latents"
    """What is compared with the dense run: the final latents, or the pictures, which have to be decoded each time."""
    seed: int = 0
    """Of the order in which neighbours are tried."""

    def __post_init__(self) -> None:
        predictors_named(self.predictors)
        problems = [
            f"{name} is at least {least}, got {getattr(self, name)}"
            for name, least in (("max_skip", 1), ("first", 1), ("last", 0), ("front", 0), ("back", 0))
            if getattr(self, name) < least
        ]
        if self.objective not in OBJECTIVES:
            problems.append(f"objective is one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.seconds is None and self.evaluations is None:
            problems.append("the search needs an end: seconds, evaluations, or both")
        if problems:
            raise ConfigError("; ".join(problems), problems)
