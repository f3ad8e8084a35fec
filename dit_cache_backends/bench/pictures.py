"""Whole pictures of the demo model: every strategy and preset, and the other libraries with the same options."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.blocks import counted
from dit_cache_backends.bench.contenders import CacheDiT, FirstBlock, Ours, Plain
from dit_cache_backends.bench.document import Part, Plot, Table
from dit_cache_backends.compare.plot import front
from dit_cache_backends.demo.run import STEPS, Result
from dit_cache_backends.demo.settings import STRATEGIES
from dit_cache_backends.registry import list_cache_backends
from dit_cache_backends.strategies.presets import even_mask
from dit_cache_backends.trials import Setting, Trial

PROMPTS = 4
_EVEN = "10 even steps"
"""Of the settings of many numbers of steps, those that are drawn with here."""
_QUICK = (
    "dense",
    "dense, 10 steps",
    "cache_dit, threshold 0.24",
    "dbprune, threshold 0.12",
    "cache_dit, preset fast",
    "fb_cache, threshold 0.12",
)
_PLUGINS = (
    *(
        Setting(f"fb_cache, threshold {at}", {"threshold": at}, backend="fb_cache", family="fb_cache")
        for at in (0.06, 0.12, 0.24)
    ),
    Setting("easy_cache, defaults", {}, backend="easy_cache", family="easy_cache"),
    Setting("sea_cache, defaults", {}, backend="sea_cache", family="sea_cache"),
    Setting(
        f"step_plan, {_EVEN}", {"mask": even_mask(STEPS, 10, 3)}, backend="step_plan", family="step_plan"
    ),
)


def settings(quick: bool) -> list[Setting]:
    """What is drawn with: the dense run first, then dense ones of fewer steps, strategies, predictors and presets."""
    chosen = [each for each in STRATEGIES if "even steps" not in each.label or _EVEN in each.label]
    chosen += [each for each in _PLUGINS if each.backend in list_cache_backends()]
    return [each for each in chosen if not quick or each.label in _QUICK]


def run(asked: Asked) -> dict[str, Any]:
    """Draw each prompt with each setting, one after the other, so that a busy machine is unfair to none."""
    from dit_cache_backends.demo import held_out_prompts, load_demo

    pipeline = load_demo()
    steps, prompts = STEPS, held_out_prompts(1 if asked.quick else PROMPTS)
    results: list[tuple[str, Plain | None, Result]] = []
    for setting in settings(asked.quick):
        results.append(("ours" if setting.config is not None else Plain.who, None, Result(setting)))
        taker = _peer(setting, pipeline.transformer, steps, asked)
        if taker is not None:
            results.append((taker.who, taker, Result(setting)))
    dense = results[0][2]
    with Trial(pipeline) as trial:
        trial.draw(prompts[0], steps=2)  # the first call of a process pays for what others find ready
        for number, prompt in enumerate(prompts):
            for who, taker, result in results:
                asked.say(f"prompt {number + 1} of {len(prompts)}: {result.setting.label}, {who}")
                _draw(trial, prompt, number, steps, taker, result, dense)
    rows = [_row(who, result, dense) for who, _, result in results]
    return {"prompts": len(prompts), "steps": steps, "rows": rows}


def _peer(setting: Setting, model: Any, steps: int, asked: Asked) -> Plain | None:
    """The other library with the same options; None where it has nothing like them."""
    config = setting.config
    if config is None:
        return None
    if setting.backend == "fb_cache" and asked.first_block:
        taker = FirstBlock(setting.label, model, (), config["threshold"])
        taker.enter()
        model._cache_config = None  # our engine refuses a model that says of itself that a cache is enabled
        taker.leave()
        return taker
    if asked.cache_dit:
        with contextlib.suppress(KeyError):
            return CacheDiT(setting.label, model, (), str(setting.backend), config, steps=steps)
    return None


def _draw(
    trial: Trial, prompt: str, seed: int, steps: int, taker: Plain | None, result: Result, dense: Result
) -> None:
    with counted(trial.pipeline.transformer) as ran:
        if taker is None:
            drawing = trial.draw(prompt, result.setting, seed=seed, steps=steps)
        else:
            taker.restart(steps)
            taker.enter()
            try:
                drawing = trial.draw(prompt, seed=seed, steps=steps)
            finally:
                taker.leave()
    drawing.blocks_run = ran.blocks
    result.add(drawing, dense)


def _row(who: str, result: Result, dense: Result) -> dict[str, Any]:
    return {
        "setting": result.setting.label,
        "family": result.setting.family,
        "who": who,
        "median_s": statistics.median(result.seconds),
        "speed_up": result.speed_up(dense),
        "transformer_speed_up": result.speed_up(dense, "transformer_seconds"),
        "blocks_run": result.blocks_run,
        "blocks": result.blocks,
        "psnr_mean": statistics.mean(result.psnr),
        "psnr_worst": min(result.psnr),
        "ssim_mean": statistics.mean(result.ssim),
    }


_WORDS = """
{prompts} held-out prompts, {steps} steps. Each prompt is drawn with every setting one after the other; a speed-up
is the median over the prompts of dense seconds over those of the setting. PSNR (in dB, the worst picture in
brackets) and SSIM compare with the dense picture of the same noise. cache-dit and FirstBlockCache stand under ours
with the same options, where they have them. The line to beat is the dense run of fewer steps.
[strategies.md](strategies.md) has more settings and what they hold.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    heads = ("setting", "by", "seconds", "speed-up", "transformer", "blocks run", "PSNR", "SSIM")
    rows = [
        (
            row["setting"],
            row["who"],
            f"{row['median_s']:.3f}",
            f"{row['speed_up']:.2f}x",
            f"{row['transformer_speed_up']:.2f}x",
            f"{row['blocks_run']}/{row['blocks']}",
            *(
                ("-", "-")
                if row["setting"] == "dense"
                else (f"{row['psnr_mean']:.1f} ({row['psnr_worst']:.1f})", f"{row['ssim_mean']:.4f}")
            ),
        )
        for row in found["rows"]
    ]
    dense = found["rows"][0]
    families = _families(found["rows"], dense["blocks"])
    return [
        Part(
            "Whole pictures of the demo model",
            (
                _WORDS.format(**found),
                Plot(
                    "pictures",
                    "quality over work saved",
                    partial(front, families, to_beat="dense, fewer steps"),
                ),
                Table(heads, rows, 2),
            ),
        )
    ]


def _families(rows: Sequence[Mapping[str, Any]], dense_blocks: int) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["family"]:
            name = row["family"] if row["who"] in (Plain.who, Ours.who) else f"{row['family']}, {row['who']}"
            point = (dense_blocks / row["blocks_run"], row["psnr_mean"])
            found.setdefault(name, []).append(point)
    return found
