"""``docs/quality.md``: the tables, what they say of the aims, and the plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit_cache_backends.demo.quality_rows import FEWER, PLANNED, PLANNED_FN, SCM, SCM_TAYLOR, Score
from dit_cache_backends.demo.quality_schedulers import HEADS as HEADS_ELSEWHERE
from dit_cache_backends.demo.run import STEPS

if TYPE_CHECKING:
    from dit_cache_backends.planning import Plans

NOTES = Path(__file__).with_name("quality_notes.md")
"""What is said beside the numbers."""

HEADS = (
    "setting",
    "blocks run, in steps",
    "PSNR mean",
    "5th percentile",
    "worst",
    "SSIM",
    "as asked",
)

AIMED_AT = (15, 11, 8)
"""Computed steps for which there are aims."""


@dataclass(frozen=True)
class Aim:
    """By how much a plan is to be better than a rival: in dB, over the mean and the worst prompt."""

    rival: str
    mean: float
    worst: float | None = None


AIMS = (Aim(SCM_TAYLOR, 6.0, 5.0), Aim(FEWER, 5.0))
WITHIN = 0.01
"""How much less of the prompts a plan may draw as asked than the dense run."""


def write(
    scores: Sequence[Score],
    plans: Plans,
    elsewhere: Sequence[tuple[str, ...]],
    found_on: int,
    report: Path,
    plot: Path,
) -> None:
    """Write the page and its plot."""
    from dit_cache_backends.compare.plot import front

    families: dict[str, list[tuple[float, float]]] = {}
    for score in scores:
        if score.row.family != "dense":
            point = (1 / statistics.mean(score.blocks_run), statistics.mean(score.psnr))
            families.setdefault(score.row.family, []).append(point)
    plot.parent.mkdir(parents=True, exist_ok=True)
    front(families, plot, to_beat=FEWER)
    report.parent.mkdir(parents=True, exist_ok=True)
    picture = Path(os.path.relpath(plot, report.parent)).as_posix()
    report.write_text(_page(scores, plans, elsewhere, found_on, picture), encoding="utf-8")


def cells(score: Score) -> tuple[str, ...]:
    """One row of a table."""
    import numpy as np

    dense = score.row.family == "dense"
    return (
        score.row.setting.label,
        f"{statistics.mean(score.blocks_run) * STEPS:.1f}",
        "-" if dense else f"{statistics.mean(score.psnr):.1f}",
        "-" if dense else f"{float(np.percentile(score.psnr, 5)):.1f}",
        "-" if dense else f"{min(score.psnr):.1f}",
        "-" if dense else f"{statistics.mean(score.ssim):.4f}",
        f"{statistics.mean(score.as_asked):.0%}",
    )


def aims(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """How much better the plans are than each rival, by the number of computed steps, and whether that is enough."""
    found: list[tuple[str, ...]] = []
    dense = next(score for score in scores if score.row.family == "dense")
    for computed in AIMED_AT:
        here = {score.row.family: score for score in scores if score.row.computed == computed}
        plan = here.get(PLANNED)
        if plan is None:
            continue
        for aim in AIMS:
            rival = here.get(aim.rival)
            if rival is None:
                continue
            mean = statistics.mean(plan.psnr) - statistics.mean(rival.psnr)
            worst = min(plan.psnr) - min(rival.psnr)
            reached = mean >= aim.mean and (aim.worst is None or worst >= aim.worst)
            wanted = f"{aim.mean:g} / {aim.worst:g}" if aim.worst is not None else f"{aim.mean:g} / -"
            found.append(
                (
                    f"{computed}",
                    aim.rival,
                    f"{mean:+.1f}",
                    f"{worst:+.1f}",
                    wanted,
                    "yes" if reached else "NO",
                )
            )
        lost = statistics.mean(dense.as_asked) - statistics.mean(plan.as_asked)
        found.append(
            (
                f"{computed}",
                "dense, as asked",
                f"{0.0 - lost:+.1%}",
                "",
                f"{-WITHIN:.0%}",
                "yes" if lost <= WITHIN else "NO",
            )
        )
    return found


def _page(
    scores: Sequence[Score],
    plans: Plans,
    elsewhere: Sequence[tuple[str, ...]],
    found_on: int,
    picture: str,
) -> str:
    import torch

    prompts = len(scores[0].psnr)
    numbers = sorted({score.row.computed for score in scores if score.row.family != "dense"}, reverse=True)
    order = [FEWER, SCM, SCM_TAYLOR]
    parts = []
    for number in numbers:
        here = [score for score in scores if score.row.computed == number and score.row.family != "dense"]
        rest = [score for score in here if score.row.family not in (*order, PLANNED, PLANNED_FN)]
        first = [score for family in order for score in here if score.row.family == family]
        last = [score for score in here if score.row.family in (PLANNED, PLANNED_FN)]
        dense = [score for score in scores if score.row.family == "dense"]
        table = _table(HEADS, [cells(score) for score in [*dense, *first, *rest, *last]])
        parts.append(f"## {number} of {STEPS} steps computed\n\n{table}")
    masks = [
        (
            f"{plan.candidate.computed}",
            f"`{plan.candidate.digits}`",
            plan.candidate.predictor,
            plan.start,
            str(plan.found),
            str(plan.fewer_found),
        )
        for plan in sorted(plans.plans, key=lambda plan: -plan.candidate.computed)
    ]
    heads = ("computed", "mask", "predictor", "began with", "latents, found on", "fewer steps")
    reached = ("computed", "against", "mean, dB", "worst, dB", "aim", "reached")
    tables = "\n\n".join(parts)
    return f"""# Quality at a given number of computed steps

Made by `make quality`: {prompts} held-out prompts of the demo model, {STEPS} steps, one thread of a
{platform.machine()} CPU, torch {torch.__version__}. PSNR (in dB) and SSIM compare with the dense picture of the same
noise; "as asked" is the share of pictures that are what their prompt says, measured from the pixels. Plans, thresholds
and calibrations were found on {found_on} other held-out prompts from other noises. "Blocks run, in steps" is the fair
measure of work: what else a strategy runs, such as a first block at every step, counts in it.

{_table(reached, aims(scores))}

![quality over work saved]({picture})

{NOTES.read_text(encoding="utf-8").replace("{elsewhere}", _table(HEADS_ELSEWHERE, elsewhere)).strip()}

{tables}

## The plans

{_table(heads, masks)}

"Latents" is the signal-to-noise ratio of the final latents to those of the dense run: the mean, and the worst of the
prompts in brackets.
"""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ("---", *("---:" for _ in heads[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
