"""What ``cache_dtype`` saves and costs, on the demo model: ``python -m benchmarks.storage`` prints a Markdown table.

Each strategy draws the same prompts from the same noise with every dtype; the pictures are compared with those of the
same strategy that keeps its tensors in float32, the model's own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from dit_cache_backends.demo import held_out_prompts
from dit_cache_backends.engine.storage import DTYPES
from dit_cache_backends.trials import DENSE, Drawing, Setting, Trial

STRATEGIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "DBCache, TaylorSeer 1": ("cache_dit", {"enable_taylorseer": True}),
    "dbprune": ("dbprune", {}),
    "tea_cache, TaylorSeer 1": ("tea_cache", {"coefficients": "flux_dev", "enable_taylorseer": True}),
}
"""Their options, which are the defaults but for these."""
NARROW = tuple(name for name in DTYPES if name != "float32")
SAME_DB = 100.0
"""Of two pictures without a difference."""


def rows(
    prompts: int = 8,
    steps: int = 28,
    strategies: Sequence[str] = tuple(STRATEGIES),
    dtypes: Sequence[str] = NARROW,
) -> list[dict[str, Any]]:
    """One row for each strategy and dtype.

    Its columns: ``strategy``, ``cache_dtype`` (``"-"`` without), ``held`` (the most bytes between two steps),
    ``blocks_run`` and ``other_blocks`` (the part of the blocks for which the decision was another one than without the
    option), ``psnr`` and ``worst`` (in dB, to the pictures without the option: mean and least over the prompts),
    ``dense`` (mean, to the dense pictures).
    """
    trial = Trial("demo")
    texts = held_out_prompts(prompts)
    made: list[dict[str, Any]] = []
    dense = [_draw(trial, text, number, DENSE, steps) for number, text in enumerate(texts)]
    for strategy in strategies:
        backend, options = STRATEGIES[strategy]
        before: list[Drawing] = []
        for dtype in ("-", *dtypes):
            more = {} if dtype == "-" else {"cache_dtype": dtype}
            setting = Setting(f"{strategy}, {dtype}", {**options, **more}, backend=backend)
            drawn = [_draw(trial, text, number, setting, steps) for number, text in enumerate(texts)]
            before = before or drawn
            apart = [_psnr(*pair) for pair in zip(before, drawn, strict=True)]
            others = [len(_skipped(one) ^ _skipped(two)) for one, two in zip(before, drawn, strict=True)]
            made.append(
                {
                    "strategy": strategy,
                    "cache_dtype": dtype,
                    "held": drawn[0].held,
                    "blocks_run": sum(each.blocks_run for each in drawn) / sum(each.blocks for each in drawn),
                    "other_blocks": sum(others) / sum(each.blocks for each in drawn),
                    "psnr": statistics.mean(apart),
                    "worst": min(apart),
                    "dense": statistics.mean(_psnr(*pair) for pair in zip(dense, drawn, strict=True)),
                }
            )
    return made


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| strategy | cache_dtype | bytes held | blocks run | decided otherwise | PSNR to without (worst) | to dense |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        same = row["cache_dtype"] == "-"
        lines.append(
            f"| {row['strategy']} | {row['cache_dtype']} | {row['held']:,} | {row['blocks_run']:.1%} | "
            + (
                "- | - | "
                if same
                else f"{row['other_blocks']:.2%} | {row['psnr']:.1f} ({row['worst']:.1f}) | "
            )
            + f"{row['dense']:.1f} |"
        )
    return "\n".join(lines)


def _draw(trial: Trial, prompt: str, seed: int, setting: Setting, steps: int) -> Drawing:
    first = seed == 0 and setting is not DENSE
    return trial.draw(prompt, setting, seed=seed, steps=steps, measure_held=first)


def _skipped(drawing: Drawing) -> set[tuple[str, str, int, int]]:
    """Every block that was skipped, by branch, stack and step."""
    summary = drawing.summary
    if summary is None:
        return set()
    return {(row.branch, row.stack, row.step, block) for row in summary.rows for block in row.skipped}


def _psnr(one: Drawing, other: Drawing) -> float:
    a, b = np.asarray(one.images[0]), np.asarray(other.images[0])
    return SAME_DB if np.array_equal(a, b) else float(peak_signal_noise_ratio(a, b, data_range=255))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=28)
    asked = parser.parse_args()
    print(table(rows(asked.prompts, asked.steps)))


if __name__ == "__main__":
    main()
