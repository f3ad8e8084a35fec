"""From a record to a calibration."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.calibrate.calibration import Calibration, Threshold
from dit_cache_backends.calibrate.curve_fit import fit_series
from dit_cache_backends.calibrate.record import Record
from dit_cache_backends.calibrate.simulate import simulate, threshold_for
from dit_cache_backends.calibrate.step_fit import fit_rates, fit_ratios
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.registry import backend_class, installed_names

SPEEDUPS = (1.5, 1.8, 2.0, 2.25, 3.0)
"""For which thresholds are looked up: those that TeaCache's authors publish, and one more."""

OPTIONS: dict[str, tuple[str | None, str]] = {
    "tea_cache": ("coefficients", "rel_l1_thresh"),
    "mag_cache": ("ratios", "threshold"),
    "easy_cache": (None, "threshold"),
}
"""Of each strategy the option that takes the file, if it takes one, and its threshold."""

T = TypeVar("T")


def fit(record: Record) -> Calibration:
    """Everything that can be fitted. What cannot be is left out, with the reason; thresholds are found by simulation.

    Raises:
        ConfigError: if nothing is recorded.
    """
    if not record.runs:
        raise ConfigError("nothing is recorded yet, so there is nothing to fit")
    left_out: dict[str, dict[str, str]] = {}

    def each(strategy: str, names: list[str], make: Callable[[str], T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for name in names:
            try:
                found[name] = make(name)
            except ConfigError as error:  # noqa: PERF203
                left_out.setdefault(strategy, {})[name] = str(error)
        return found

    names = record.names()
    found = Calibration(
        origin=record.origin,
        curves=each(
            "tea_cache",
            record.transformers(),
            lambda name: fit_series(
                [
                    (number, series)
                    for number, run in sorted(record.runs.items())
                    for series in run.values()
                    if series.transformer == name
                ]
            ),
        ),
        ratios=each("mag_cache", names, lambda name: fit_ratios(record.series(name))),
        rates=each("easy_cache", names, lambda name: fit_rates(record.series(name))),
        left_out=left_out,
    )
    return replace(found, thresholds=_thresholds(record, found))


def _thresholds(record: Record, found: Calibration) -> Mapping[str, tuple[Threshold, ...]]:
    """What thresholds do in the recorded runs, for the strategies that are installed."""
    tables: dict[str, tuple[Threshold, ...]] = {}
    made = {"tea_cache": found.curves, "mag_cache": found.ratios, "easy_cache": found.rates}
    with tempfile.TemporaryDirectory() as folder:
        file = str(found.write(Path(folder) / "calibration.json"))
        for strategy, (option, threshold) in OPTIONS.items():
            complete = made[strategy] and strategy not in found.left_out
            if complete and strategy in installed_names():
                options = {} if option is None else {option: file}
                tables[strategy] = _table(record, backend_class(strategy), threshold, options)
    return tables


def _table(
    record: Record, strategy: type[CacheBackend], threshold: str, options: Mapping[str, str]
) -> tuple[Threshold, ...]:
    steps = simulate(record, strategy, {**options, threshold: 0.0}).steps
    rows: list[Threshold] = []
    for speedup in SPEEDUPS:
        try:
            value = threshold_for(record, strategy, threshold, steps / speedup, options)
        except ConfigError:  # so few steps cannot be reached
            break
        simulated = simulate(record, strategy, {**options, threshold: value})
        if rows and rows[-1].value == value:
            continue
        rows.append(Threshold(value, round(simulated.mean, 3), round(simulated.speedup, 3)))
    return tuple(rows)
