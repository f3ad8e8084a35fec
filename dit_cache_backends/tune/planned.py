"""Plans of ``dit-cache plan`` among the candidates: which steps are computed, found for this model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.registry import installed_names
from dit_cache_backends.search import Ladder, Search
from dit_cache_backends.trials import Prompt, Trial
from dit_cache_backends.tune.candidates import Candidate

BACKEND = "step_plan"


def planned(
    trial: Trial,
    prompts: Sequence[Prompt],
    steps: int,
    computed: Sequence[int],
    seconds: float,
    work: Path,
    told: Callable[[str], None] = lambda _: None,
) -> Candidate:
    """A plan for each of some numbers of computed steps, as one candidate.

    Args:
        trial: the model.
        prompts: the plans are found on these.
        steps: of the run.
        computed: the numbers of computed steps.
        seconds: for all of the search.
        work: the file in which the search goes on where it was stopped.
        told: told what is done.

    Raises:
        ConfigError: the plugin that runs plans is not installed.
        DitCacheError: the model cannot be planned.
    """
    from dit_cache_backends.planning import Planner, PlanSearch

    if BACKEND not in installed_names():
        raise ConfigError(f"planned: {BACKEND}, which runs plans, is not installed")
    # The time is short, and where to begin is foreseen.
    search = PlanSearch(seconds=seconds, segments=0)
    planner = Planner(trial, prompts, steps=steps, search=search, work=work)
    wanted = sorted(set(computed), reverse=True)
    while True:
        try:
            plans = planner.plan(wanted, lambda what, part: told(f"planning: {what}, {part:.0%}"))
            break
        except ConfigError:
            if len(wanted) == 1:
                raise
            wanted.pop()  # so few cannot be planned; more perhaps can
    rungs = [plans.options(number) for number in wanted]
    return Candidate(BACKEND, Search("planned", Ladder(rungs)))
