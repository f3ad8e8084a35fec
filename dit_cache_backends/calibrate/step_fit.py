"""Numbers that belong to a step: MagCache's ratios and EasyCache's rates, their median and spread over the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.errors import ConfigError

LOW, HIGH = 5, 95
"""Percentiles of the spread."""


@dataclass(frozen=True)
class StepFit:
    """One number a step of a transformer on a branch, over the prompts."""

    median: tuple[float, ...]
    low: tuple[float, ...]
    """5th percentile."""
    high: tuple[float, ...]
    """95th percentile."""


@dataclass(frozen=True)
class RatioFit:
    """MagCache's ratios (arXiv 2506.09045, section 3.2), and what tells how far they can be trusted."""

    ratios: StepFit
    std: tuple[float, ...]
    """Standard deviation of the ratio over the tokens; the median of the prompts."""
    cosine: tuple[float, ...]
    """1 - cosine between residuals of neighbouring steps; the median of the prompts."""


def fit_ratios(series: Sequence[Series]) -> RatioFit:
    """The ratios of one ``transformer:branch``. The first step has 1, and no deviation.

    Raises:
        ConfigError: if the runs have different numbers of steps, or no ratio above 0 at some step.
    """
    ratios = [[1.0, *each.columns["ratio"][1:]] for each in series]
    fit = _over_prompts(series, ratios, "ratio")
    if min(fit.median) <= 0:
        raise ConfigError("a ratio is 0: the blocks add nothing at some step")
    std, cosine = (
        _over_prompts(series, [[0.0, *each.columns[name][1:]] for each in series], name).median
        for name in ("ratio_std", "cosine")
    )
    return RatioFit(fit, std, cosine)


def fit_rates(series: Sequence[Series]) -> StepFit:
    """EasyCache's rate (arXiv 2507.02860, section 3.2): how far the output moves for how far the input does.

    ``mean|out - out_before| / mean|in - in_before|`` of the tokens, to the step before. The first step has that of the
    second.

    Raises:
        ConfigError: if the runs have different numbers of steps, or there is no rate at some step.
    """
    found = [[rate_between(each, now - 1, now) for now in range(1, len(each))] for each in series]
    if any(not rates for rates in found):
        raise ConfigError("a run of one step has no rate")
    return _over_prompts(series, [[rates[0], *rates] for rates in found], "rate")


def rate_between(series: Series, before: int, now: int) -> float | None:
    """EasyCache's rate between two steps of a recorded run, counted from 0 in the series."""
    moved, followed = series.change("input", before, now), series.change("exit", before, now)
    sizes = series.columns["input_size"][before], series.columns["exit_size"][before]
    if moved is None or followed is None or sizes[0] is None or sizes[1] is None or moved * sizes[0] == 0:
        return None
    return followed * sizes[1] / (moved * sizes[0])


def _over_prompts(series: Sequence[Series], rows: Sequence[Sequence[float | None]], what: str) -> StepFit:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise ConfigError(f"its runs have different numbers of steps: {sorted(lengths)}")
    missing = sorted({series[0].steps[at] for row in rows for at, each in enumerate(row) if each is None})
    if missing:
        raise ConfigError(f"there is no {what} at step {', '.join(map(str, missing))}")
    table = np.array(rows, dtype=np.float64)
    low, median, high = (
        tuple(_short(each) for each in np.percentile(table, at, axis=0)) for at in (LOW, 50, HIGH)
    )
    return StepFit(median, low, high)


def _short(number: float) -> float:
    return float(f"{number:.7g}")
