"""Dense runs of a model on a set of prompts, measured and written down one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_cache_backends.calibrate.origin import origin_of
from dit_cache_backends.calibrate.record import GrowingRecord, Record
from dit_cache_backends.calibrate.recorder import Recorder, recorded_run
from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.trials.prompts import Prompt
from dit_cache_backends.trials.setting import Setting

if TYPE_CHECKING:
    from dit_cache_backends.trials.trial import Trial

Told = Callable[[int, int], None]


def record(
    trial: Trial,
    prompts: Sequence[Prompt],
    path: Path | str | None = None,
    *,
    steps: int | None = None,
    shard: tuple[int, int] = (1, 1),
    first_blocks: int = 1,
    texts: bool = True,
    told: Told | None = None,
) -> Record:
    """Draw every prompt with every block computed, and measure. Nothing is decoded where the pipeline allows it.

    Args:
        trial: The model, with the arguments of its calls.
        prompts: What to draw.
        path: The record's file. One that is there goes on where it was cut off. None keeps it in memory alone.
        steps: Denoising steps; the pipeline's own number unless said.
        shard: ``(2, 8)``: the second eighth of the prompts alone, every eighth from the second on.
        first_blocks: How many blocks ``first`` of a series is about (``Fn_compute_blocks``).
        texts: Whether the prompts are written down; their number, hash and seeds are in any case.
        told: Called with the runs recorded and the runs of this shard, at the start and behind each.

    Raises:
        ConfigError: if the file is of another run, an argument does not fit, there are no prompts, or the model gives
            numbers that are not finite. What was recorded stays.
    """
    steps = steps or trial.steps
    part, parts = shard
    if not prompts:
        raise ConfigError("there are no prompts to calibrate with; give one at least, better some tens")
    if not steps:
        raise ConfigError("how many steps the pipeline takes is not known; say it: --num-inference-steps")
    if not 1 <= part <= parts:
        raise ConfigError(f"a shard is one of so many, such as 2/8; got {part}/{parts}")
    origin = origin_of(trial.pipeline, trial.name, steps, trial.call, prompts, first_blocks, texts)
    growing = None if path is None else GrowingRecord(Path(path).expanduser(), origin)
    found = Record(origin) if growing is None else growing.record
    mine = range(part - 1, len(prompts), parts)
    for number in mine:
        if told is not None:
            told(sum(each in found.runs for each in mine), len(mine))
        if number in found.runs:
            continue
        run = _run(trial, prompts[number], number, steps, first_blocks)
        if growing is None:
            found.runs[number] = run
        else:
            growing.add(number, run)
    if growing is not None:
        growing.in_order()
    if told is not None:
        told(len(mine), len(mine))
    return found


def _run(trial: Trial, prompt: Prompt, number: int, steps: int, first_blocks: int) -> dict[str, Series]:
    with recorded_run() as (name, series):
        setting = Setting("recorded", {"run": name, "first_blocks": first_blocks}, backend=Recorder)
        trial.draw(prompt, setting, steps=steps, call=_undecoded(trial))
    where = f"prompt {number + 1} ({prompt.text[:60]!r})"
    if not series:
        raise ConfigError(f"{where}: no transformer of the pipeline was called")
    for each in series.values():
        _check(each, where)
    return series


def _undecoded(trial: Trial) -> Mapping[str, object]:
    return {"output_type": "latent"} if "output_type" in trial.arguments else {}


def _check(series: Series, where: str) -> None:
    for step, size in zip(series.steps, series.columns["exit_size"], strict=True):
        if size is None or not math.isfinite(size):
            raise ConfigError(
                f"{where}: what comes out of the blocks of {series.name} was not seen, or is not finite, at step "
                f"{step}. In another dtype (--dtype bfloat16, float32) it may be."
            )
