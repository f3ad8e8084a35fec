"""The rows of ``docs/quality.md``: settings that compute as many steps as asked, and what comes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dit_cache_backends.demo.run import STEPS
from dit_cache_backends.search import PREDICTORS
from dit_cache_backends.strategies.scm import POLICIES, policy_mask
from dit_cache_backends.trials.setting import DENSE, Setting

if TYPE_CHECKING:
    from dit_cache_backends.planning import Plans
    from dit_cache_backends.planning.work import Work
    from dit_cache_backends.trials import Prompt, Trial

__all__ = ["Row", "Score", "planned_rows", "rows", "score", "turned"]

Advance = Callable[[str, float], None]

FEWER, SCM, SCM_TAYLOR, PLANNED, PLANNED_FN = (
    "fewer dense steps",
    "SCM preset, reuse",
    "SCM preset, TaylorSeer 1",
    "planned",
    "planned, Fn 1",
)

DIALS: tuple[tuple[str, str, str, Mapping[str, Any], float, float], ...] = (
    ("tea_cache, calibrated", "tea_cache", "rel_l1_thresh", {"coefficients": "FILE"}, 0.005, 4.0),
    ("dbprune", "dbprune", "residual_diff_threshold", {}, 0.005, 1.0),
    ("easy_cache", "easy_cache", "threshold", {"start_percent": 0.08}, 0.005, 4.0),
    ("mag_cache, calibrated", "mag_cache", "threshold", {"ratios": "FILE", "max_skip_steps": 6}, 0.002, 4.0),
)
"""Name, backend, option that is turned, other options, and between which values."""

TURNED_ON = 2
"""Prompts on which a threshold is found."""
TURNS = 9
"""Tries for a threshold that computes as many steps as asked, at most."""
NEAR = 0.008
"""Part of the run's blocks that a threshold may run more or less."""


@dataclass(frozen=True)
class Row:
    """A setting that stands for a number of computed steps."""

    family: str
    computed: int
    setting: Setting


@dataclass
class Score:
    """What came of a row: a number for each prompt."""

    row: Row
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    as_asked: list[float] = field(default_factory=list)
    blocks_run: list[float] = field(default_factory=list)
    """Part of the blocks of the dense run of all steps."""


def rows(
    trial: Trial, prompts: Sequence[Prompt], folder: Path, computed: Sequence[int], advance: Advance
) -> list[Row]:
    """The dense run, and for each number of computed steps what there is beside plans."""
    calibration = _calibration(trial, prompts, folder, advance)
    work = _work(trial, prompts[:TURNED_ON], folder / "thresholds.jsonl")
    found = [Row("dense", STEPS, DENSE)]
    for number in computed:
        found.append(Row(FEWER, number, Setting(FEWER, steps=number)))
        found += [
            Row(family, number, Setting(f"{family} ({policy})", {**_static(policy), **options}))
            for policy in POLICIES
            if sum(policy_mask(policy, STEPS)) == number
            for family, options in ((SCM, {}), (SCM_TAYLOR, PREDICTORS["taylorseer 1"]))
        ]
        for family, backend, option, options, careful, bold in DIALS:
            given = {name: str(calibration) if value == "FILE" else value for name, value in options.items()}

            def share(
                threshold: float, backend: str = backend, option: str = option, given: Any = given
            ) -> float:
                setting = Setting("", {**given, option: threshold}, backend=backend)
                return _share(trial, prompts[:TURNED_ON], setting, work)

            advance(f"{family}, {number} computed steps", 0.0)
            threshold = turned(share, number / STEPS, careful, bold)
            label = f"{family}, {option} {threshold:g}"
            found.append(Row(family, number, Setting(label, {**given, option: threshold}, backend=backend)))
    return found


def planned_rows(plans: Plans) -> list[Row]:
    """The plans as they were found, and with a first block that always runs."""
    found = []
    for plan in plans.plans:
        number = plan.candidate.computed
        for family, front in ((PLANNED, 0), (PLANNED_FN, 1)):
            options = {**plans.options(number), "Fn_compute_blocks": front}
            label = f"{family} ({plan.candidate.predictor})"
            found.append(Row(family, number, Setting(label, options, backend="step_plan")))
    return found


def score(
    trial: Trial, prompts: Sequence[Prompt], folder: Path, rows: Sequence[Row], advance: Advance
) -> list[Score]:
    """Draw every prompt with every row, one by one, as a user does."""
    from dit_cache_backends.compare.measures import SAME_DB, psnr, ssim
    from dit_cache_backends.demo import adherence

    work = _work(trial, prompts, folder / "scores.jsonl")
    scores = [Score(row) for row in rows]
    for number, prompt in enumerate(prompts):
        dense = None
        for place, found in enumerate(scores):
            part = (number + place / len(scores)) / len(prompts)
            advance(f"{found.row.setting.label}", part)
            setting = found.row.setting

            def measure(prompt: Prompt = prompt, setting: Setting = setting) -> tuple[float, ...]:
                nonlocal dense
                if dense is None:
                    dense = trial.draw(prompt, DENSE, steps=STEPS)
                drawn = dense if setting is DENSE else trial.draw(prompt, setting, steps=STEPS)
                pair = dense.images[0], drawn.images[0]
                kept = adherence.score(prompt.text, pair[1]).total
                return min(psnr(*pair), SAME_DB), ssim(*pair), float(kept), drawn.blocks_run / dense.blocks

            numbers = work.numbers(f"{_name(setting)} {prompt.seed}", measure)
            for kept, value in zip(
                (found.psnr, found.ssim, found.as_asked, found.blocks_run), numbers, strict=True
            ):
                kept.append(value)
    return scores


def turned(share: Callable[[float], float], wanted: float, careful: float, bold: float) -> float:
    """The threshold, found by halving in equal ratios, at which a run of so many blocks comes out, or nearly."""
    best, best_miss = careful, float("inf")
    for _ in range(TURNS):
        middle = float(f"{(careful * bold) ** 0.5:.4g}")
        found = share(middle)
        miss = abs(found - wanted)
        if miss < best_miss:
            best, best_miss = middle, miss
        if miss <= NEAR or middle in (careful, bold):
            break
        careful, bold = (middle, bold) if found > wanted else (careful, middle)
    return best


def _static(policy: str) -> dict[str, Any]:
    return {"scm_steps_mask_policy": policy, "scm_steps_policy": "static"}


def _share(trial: Trial, prompts: Sequence[Prompt], setting: Setting, work: Work) -> float:
    """The part of the blocks that a setting runs."""

    def measure() -> tuple[float, ...]:
        drawn = [trial.draw(prompt, setting, steps=STEPS) for prompt in prompts]
        return tuple(each.blocks_run / each.blocks for each in drawn)

    found = work.numbers(_name(setting), measure)
    return sum(found) / len(found)


def _calibration(trial: Trial, prompts: Sequence[Prompt], folder: Path, advance: Advance) -> Path:
    """The file of `dit-cache calibrate` for the demo's model, made of the prompts that nothing is scored on."""
    from dit_cache_backends.calibrate import fit, record

    path = folder / "calibration.yaml"
    if not path.exists():
        made = record(
            trial,
            prompts,
            folder / "record.jsonl",
            steps=STEPS,
            told=lambda done, of: advance("calibrating", done / of),
        )
        fit(made).write(path)
    return path


def _work(trial: Trial, prompts: Sequence[Prompt], path: Path) -> Work:
    from dit_cache_backends.planning.work import Work
    from dit_cache_backends.trials import prompts_fingerprint, provenance

    known = {k: v for k, v in provenance(trial.pipeline).to_dict().items() if k != "versions"}
    return Work(path, {**known, "prompts": prompts_fingerprint(prompts)})


def _name(setting: Setting) -> str:
    """What a setting does, for the file that keeps its numbers; a calibration by its content."""
    given = dict(setting.config or {})
    for name, value in given.items():
        if isinstance(value, str) and value.endswith(".yaml"):
            data = json.dumps(
                yaml.safe_load(Path(value).read_text(encoding="utf-8")), sort_keys=True, default=str
            )
            given[name] = hashlib.sha256(data.encode()).hexdigest()[:16]
    cached = "dense" if setting.config is None else f"{setting.backend} {json.dumps(given, sort_keys=True)}"
    return f"{cached} {setting.steps or ''}"
