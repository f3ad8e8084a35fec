"""What was found, measured on what the search never saw, beside the dense run that costs as much."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dit_cache_backends.compare.live import ratio
from dit_cache_backends.compare.spread import Spread, spread
from dit_cache_backends.trials import DENSE, Prompt, Setting
from dit_cache_backends.tune.aim import Aim
from dit_cache_backends.tune.candidates import FEWER
from dit_cache_backends.tune.scores import Score, Scores

CHEAPER = 1.03
"""A rival that is so many times faster than what was found does not cost as much."""
OTHER_SEED = 7919
"""Added to a prompt's seed where other seeds are measured."""


@dataclass(frozen=True)
class Measured:
    """One setting under one condition."""

    setting: str
    psnr: Spread
    ssim: Spread
    seconds: float
    """Median of a whole call."""
    dense_seconds: float
    speedup: float
    """Median over the pairs of dense over this, each pair drawn one after the other."""
    transformer_seconds: float
    transformer_speedup: float
    blocks_run: int
    blocks: int
    held: int | None
    """Bytes that the backend held at the most; None where the pipeline tells nobody its steps."""

    @property
    def blocks_speedup(self) -> float:
        """Blocks of the dense runs over blocks run."""
        return self.blocks / self.blocks_run if self.blocks_run else float("inf")

    def by(self, what: str) -> float:
        """The speed-up by ``time`` or by ``blocks``."""
        return self.speedup if what == "time" else self.blocks_speedup


@dataclass(frozen=True)
class Condition:
    """Prompts, seeds and a size under which settings are measured."""

    name: str
    prompts: Sequence[Prompt]
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Checked:
    """The found setting and its rival under one condition; None where there was no time for it, or it cannot be."""

    condition: str
    prompts: int
    found: Measured | None = None
    rival: Measured | None = None
    why_not: str = ""


@dataclass
class Verdict:
    """What is to be said of what was found."""

    reached: bool
    beats: bool
    aim_text: str
    rival_text: str

    @property
    def lines(self) -> list[str]:
        """Both, in plain words."""
        return [self.aim_text, self.rival_text]


def other_seeds(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts from other noise."""
    return [replace(prompt, seed=prompt.seed + OTHER_SEED) for prompt in prompts]


def dearer(checked: Checked, rival: Setting, steps: int) -> Setting | None:
    """A dense run of more steps, where the rival takes less time than what was found; None where it does not.

    Reckoned without what a call costs outside its steps, so that the rival is rather too dear than too cheap.
    """
    found, other = checked.found, checked.rival
    if found is None or other is None or rival.steps is None or other.speedup <= CHEAPER * found.speedup:
        return None
    more = min(steps - 1, math.ceil(rival.steps * other.speedup / found.speedup))
    return None if more <= rival.steps else fewer(more)


def fewer(steps: int) -> Setting:
    """The dense run of so many steps, to compare with."""
    return Setting(f"dense, {steps} steps", steps=steps, family=FEWER)


def measure(
    scores: Scores,
    condition: Condition,
    settings: Sequence[Setting],
    left: Callable[[], float],
    least: int = 1,
) -> tuple[list[Measured], int]:
    """Draw every prompt dense and with each setting, in turn, as long as there is time; ``least`` prompts in any case.

    Returns:
        For each setting what was measured, and the number of prompts.

    Raises:
        DitCacheError: one cannot be drawn with.
    """
    drawn: list[list[Score]] = [[] for _ in (DENSE, *settings)]
    names = []
    for number, prompt in enumerate(condition.prompts):
        if number >= least and left() <= 0:
            break
        names.append(prompt.text)
        for place, setting in enumerate((DENSE, *settings)):
            drawn[place].append(scores.score(setting, prompt, condition.call, keep=True))
    dense = drawn[0]
    held: list[int | None] = []
    for setting in settings:
        if setting.config is None:
            held.append(0)
        elif "callback_on_step_end" in scores.trial.arguments:
            held.append(scores.score(setting, condition.prompts[0], condition.call, held=True).held)
        else:
            held.append(None)
    found = [
        _measured(setting.label, dense, each, names, most)
        for setting, each, most in zip(settings, drawn[1:], held, strict=True)
    ]
    return found, len(names)


def judge(aim: Aim, checked: Checked, rival: Setting) -> Verdict:
    """Whether the aim is reached on prompts that the search never saw, and whether the cache is worth it."""
    found, other = checked.found, checked.rival
    assert found is not None
    assert other is not None
    where = f"on {checked.prompts} held-out prompts"
    if aim.speedup is not None:
        value, wanted, unit = found.by(aim.by), aim.speedup, "x"
        kind = "measured time" if aim.by == "time" else "blocks run"
        what = f"a speed-up of {wanted:.2f}x by {kind}"
    else:
        assert aim.psnr is not None
        value, wanted, unit = found.psnr.of(aim.of), aim.psnr, " dB"
        what = f"a PSNR of {wanted:.1f} dB ({_end(aim.of)})"
    reached = value >= wanted
    aim_text = (
        f"Asked for {what}: reached, {value:.2f}{unit} {where}."
        if reached
        else f"Asked for {what}: NOT reached. The nearest that was found comes to {value:.2f}{unit} {where}."
    )
    difference = found.psnr.of(aim.of) - other.psnr.of(aim.of)
    beats = difference > 0
    cost = f"{rival.label} ({other.speedup:.2f}x by time, {other.blocks_speedup:.2f}x by blocks)"
    if beats:
        rival_text = (
            f"It beats the dense run of equal cost, {cost}, by {difference:.1f} dB {where} "
            f"(PSNR {found.psnr.of(aim.of):.1f} against {other.psnr.of(aim.of):.1f}, {_end(aim.of)})."
        )
    else:
        rival_text = (
            f"It does NOT beat the dense run of equal cost, {cost}: PSNR {found.psnr.of(aim.of):.1f} "
            f"against {other.psnr.of(aim.of):.1f} dB ({_end(aim.of)}) {where}. "
            f"Recommended: no cache, and {rival.steps} steps."
        )
    return Verdict(reached, beats, aim_text, rival_text)


def mebibytes(held: int | None) -> str:
    """Bytes for a table; a dash where they were not measured."""
    return "-" if held is None else f"{held / 2**20:.2f}"


def to_dict(measured: Measured | None) -> dict[str, Any] | None:
    """As plain data."""
    if measured is None:
        return None
    return {**asdict(measured), "blocks_speedup": measured.blocks_speedup}


def _end(of: str) -> str:
    return {"mean": "mean", "p5": "5th percentile", "worst": "worst"}[of]


def _measured(
    label: str, dense: Sequence[Score], drawn: Sequence[Score], names: Sequence[str], held: int | None
) -> Measured:
    pairs = list(zip(dense, drawn, strict=True))
    # Where a run was stopped and resumed between the two of a pair, their times are of different moments.
    timed = [(a, b) for a, b in pairs if a.run == b.run] or pairs
    return Measured(
        label,
        spread("psnr", [score.psnr for score in drawn], names),
        spread("ssim", [score.ssim for score in drawn], names),
        statistics.median(b.seconds for _, b in timed),
        statistics.median(a.seconds for a, _ in timed),
        ratio([(a.seconds, b.seconds) for a, b in timed]),
        statistics.median(b.transformer_seconds for _, b in timed),
        ratio([(a.transformer_seconds, b.transformer_seconds) for a, b in timed]),
        sum(score.blocks_run for score in drawn),
        sum(score.blocks for score in drawn),
        held,
    )
