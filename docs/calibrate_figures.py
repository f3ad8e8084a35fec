"""The figures of docs/calibrate.md, measured on the demo model: `python docs/calibrate_figures.py`.

Calibrated is on 16 prompts of combinations that the model was trained on, drawn are 16 that it never saw. Takes some
minutes on one core.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_cache_backends import ConfigError
from dit_cache_backends.calibrate import Calibration, Record, fit, record, simulate, threshold_for
from dit_cache_backends.compare.measures import psnr
from dit_cache_backends.demo import held_out_prompts
from dit_cache_backends.demo.scenes import random_scene
from dit_cache_backends.terminal import quiet
from dit_cache_backends.trials import Prompt, Setting, Trial

PAGE = Path(__file__).with_name("calibrate.md")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
STEPS, PROMPTS = 28, 16
COMPUTED = (15, 11, 8)
TAYLOR = {"calibrator": "taylorseer"}


def prompts_seen(count: int) -> list[Prompt]:
    """Sentences of combinations that training saw."""
    rng = random.Random(5)
    return [Prompt(random_scene(rng, held_out=False).prompt, seed) for seed in range(count)]


def rows_with(file: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """What is compared: a label, the backend, its threshold, its options."""
    tea, mag = {"coefficients": file}, {"ratios": file}
    return [
        ("`tea_cache`, `coefficients: identity`", "tea_cache", "rel_l1_thresh", {"coefficients": "identity"}),
        ("`tea_cache`, `coefficients: flux_dev`", "tea_cache", "rel_l1_thresh", {"coefficients": "flux_dev"}),
        ("`tea_cache`, `coefficients: demo.yaml`", "tea_cache", "rel_l1_thresh", tea),
        ("the same, TaylorSeer", "tea_cache", "rel_l1_thresh", tea | TAYLOR),
        ("`mag_cache`, `ratios: demo.yaml`", "mag_cache", "threshold", mag),
        ("the same, TaylorSeer", "mag_cache", "threshold", mag | TAYLOR),
        ("`easy_cache`", "easy_cache", "threshold", {}),
    ]


def fitted(found: Calibration) -> Iterator[str]:
    """How well the curves fit."""
    fit_ = found.curves["transformer"]
    low, high = fit_.x_range
    yield f"Fitted to {fit_.points} points of {PROMPTS} prompts, differences of {low:.3f} to {high:.3f}:\n"
    yield "| curve | R2 | R2 on held-out prompts | error there |"
    yield "| --- | ---: | ---: | ---: |"
    degree = len(getattr(fit_.polynomial.curve, "coefficients", ())) - 1
    for label, each in (
        (f"polynomial of degree {degree}", fit_.polynomial),
        ("never falling", fit_.monotone),
    ):
        yield f"| {label} | {each.r2:.3f} | {each.held_out_r2:.3f} | {each.held_out_error:.4f} |"
    yield f"\nTaken: {fit_.use}, since {fit_.why}.\n"


def at_other_steps(trial: Trial, found: Calibration) -> Iterator[str]:
    """How well the curve foretells in runs of other numbers of steps."""
    curve, (low, high) = found.curves["transformer"].used.curve, found.curves["transformer"].x_range
    yield "| steps of a run | R2 of the curve fitted in 28 steps | of one fitted there | outside of the range |"
    yield "| ---: | ---: | ---: | ---: |"
    for steps in (50, 20, 14):
        there = record(trial, prompts_seen(6), steps=steps)
        points = [(x, y) for series in there.series("transformer:cond") for _, x, y in series.points()]
        x, y = np.array(points).T
        foretold = np.array([curve(min(max(each, low), high)) for each in x])
        r2 = 1 - ((foretold - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        own = fit(there).curves["transformer"].used.r2
        outside = float(((x < low) | (x > high)).mean())
        yield f"| {steps} | {r2:.3f} | {own:.3f} | {outside:.0%} |"
    yield ""


def drawn(trial: Trial, measured: Record, file: str) -> Iterator[str]:
    """PSNR of every row for as many computed steps."""
    prompts = [Prompt(text, 1000 + at) for at, text in enumerate(held_out_prompts(PROMPTS, seed=3))]
    dense = [trial.draw(each).images[0] for each in prompts]
    yield "| | " + " | ".join(f"{each} computed" for each in COMPUTED) + " |"
    yield "| --- |" + " --- |" * len(COMPUTED)
    cells = []
    for steps in COMPUTED:
        values = [
            psnr(one, trial.draw(each, steps=steps).images[0])
            for each, one in zip(prompts, dense, strict=True)
        ]
        cells.append(f"{np.mean(values):.1f} ({min(values):.1f})")
    yield "| dense, as many steps | " + " | ".join(cells) + " |"
    for label, backend, option, options in rows_with(file):
        cells = []
        for computed in COMPUTED:
            try:
                value = threshold_for(measured, backend, option, computed, options)
            except ConfigError:
                cells.append("-")
                continue
            given = {**options, option: value}
            foretold = simulate(measured, backend, given).mean
            values, ran = [], []
            for prompt, one in zip(prompts, dense, strict=True):
                drawing = trial.draw(prompt, Setting(label, given, backend=backend))
                values.append(psnr(one, drawing.images[0]))
                ran.append(STEPS * drawing.blocks_run / drawing.blocks)
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f}), {np.mean(ran):.1f} of {foretold:.1f}")
        row = f"| {label} | " + " | ".join(cells) + " |"
        print(row, flush=True)
        yield row


def main() -> None:
    """Measure, and write the figures into the page."""
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Trial("demo") as trial:
        measured = record(trial, prompts_seen(PROMPTS), steps=STEPS)
        found = fit(measured)
        file = str(found.write(Path(folder) / "demo.yaml"))
        lines = [*fitted(found), *at_other_steps(trial, found), *drawn(trial, measured, file)]
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
