"""``python -m dit_cache_backends.demo.quality``: what each strategy makes of a number of computed steps.

Writes ``docs/quality.md``, its plot, and the plans that the demo draws with. It takes about twenty minutes of one
core, keeps what it has measured in a folder, and goes on there when it is started again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_cache_backends.demo.run import STEPS
from dit_cache_backends.demo.settings import PLAN

if TYPE_CHECKING:
    from dit_cache_backends.planning import Plans
    from dit_cache_backends.trials import Prompt, Trial

COMPUTED = (18, 15, 11, 8, 6)
"""Of the 28 steps; the first four are those of the SCM presets."""
SCORED = 32
"""Held-out prompts that everything is scored on."""
FOUND_ON = 16
"""Other held-out prompts, from other noises, that plans, thresholds and calibrations are found on."""
BATCH = 16
EVALUATIONS = 30
"""Runs of all prompts in the search of one plan, not more."""

Advance = Callable[[str, float], None]


class OutOfTime(Exception):
    """The seconds that were given are over."""


def halves(scored: int = SCORED, found_on: int = FOUND_ON) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts that plans are found on, and those that everything is scored on."""
    from dit_cache_backends.demo import held_out_prompts
    from dit_cache_backends.trials import Prompt

    texts = held_out_prompts(scored + found_on)
    others = texts[scored:]
    # Only 39 scenes of one thing are held out, so they come round again; such a one is not scored.
    further = (text for text in held_out_prompts(2 * len(texts)) if text not in texts)
    mine = [next(further) if text in others else text for text in texts[:scored]]
    prompts = [Prompt(text, seed) for seed, text in enumerate([*mine, *others])]
    return prompts[scored:], prompts[:scored]


def find_plans(
    trial: Trial,
    prompts: Sequence[Prompt],
    folder: Path,
    advance: Advance,
    computed: Sequence[int] = COMPUTED,
    evaluations: int = EVALUATIONS,
    segments: int = 1,
) -> Plans:
    """A plan for each number of computed steps."""
    from dit_cache_backends.planning import Planner, PlanSearch

    search = PlanSearch(seconds=None, evaluations=evaluations, segments=segments)
    planner = Planner(trial, prompts, (), STEPS, search, BATCH, folder / "plans.jsonl")
    # Those that the targets are about come first, in case the time runs out.
    return planner.plan(sorted(computed, key=lambda each: each not in (15, 11, 8)), advance)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see ``--help``."""
    import torch

    from dit_cache_backends.demo import quality_report, quality_rows, quality_schedulers
    from dit_cache_backends.terminal import quiet, readable_errors
    from dit_cache_backends.trials import Trial

    parser = argparse.ArgumentParser(prog="python -m dit_cache_backends.demo.quality", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/quality"), help="keeps what was measured"
    )
    parser.add_argument("--report", type=Path, default=Path("docs/quality.md"))
    parser.add_argument("--plan", type=Path, default=PLAN, help="the plans, which the demo draws with")
    parser.add_argument("--plot", type=Path, default=Path("docs/quality.png"))
    parser.add_argument("--seconds", type=float, help="stop after so many; start it again to go on")
    parser.add_argument("--computed", type=int, nargs="+", default=list(COMPUTED))
    parser.add_argument("--prompts", type=int, default=SCORED, help="to score on")
    parser.add_argument("--found-on", type=int, default=FOUND_ON, help="prompts to find plans on")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="of each search")
    parser.add_argument("--segments", type=int, default=1, help="predictors whose segments are measured")
    parser.add_argument(
        "--conditions", type=int, help="of the table of other schedulers, only the first so many"
    )
    given = parser.parse_args(arguments)
    # One thread: at this size more threads wait for each other longer than they work.
    torch.set_num_threads(1)
    quiet()
    found_on, scored = halves(given.prompts, given.found_on)
    given.folder.mkdir(parents=True, exist_ok=True)
    with readable_errors(), Trial("demo") as trial, _progress(given.seconds) as advance:
        try:
            search = given.computed, given.evaluations, given.segments
            plans = find_plans(trial, found_on, given.folder, advance, *search)
            rows = quality_rows.rows(trial, found_on, given.folder, given.computed, advance)
            rows += quality_rows.planned_rows(plans)
            scores = quality_rows.score(trial, scored, given.folder, rows, advance)
            few = quality_schedulers.PROMPTS
            elsewhere = quality_schedulers.compared(
                trial,
                found_on[:few],
                scored[:few],
                given.folder,
                advance,
                quality_schedulers.CONDITIONS[: given.conditions],
                min(given.evaluations, quality_schedulers.EVALUATIONS),
            )
        except OutOfTime:
            print(f"Stopped after {given.seconds:g} seconds. Start it again to go on.", file=sys.stderr)
            raise SystemExit(3) from None
    plans.write(given.plan)
    quality_report.write(scores, plans, elsewhere, len(found_on), given.report, given.plot)
    print(f"{given.report}, {given.plot}")


@contextmanager
def _progress(seconds: float | None) -> Iterator[Advance]:
    """A bar on standard error; raises ``OutOfTime`` when the seconds are over."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    begin = time.monotonic()
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:<48}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def advance(what: str, part: float) -> None:
            progress.update(task, description=what, completed=part)
            if seconds is not None and time.monotonic() - begin > seconds:
                raise OutOfTime

        yield advance


if __name__ == "__main__":
    main()
