"""The sections of a calibration file as plain data, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dit_cache_backends.calibrate.curve_fit import CurveFit, Fit
from dit_cache_backends.calibrate.step_fit import RatioFit, StepFit
from dit_cache_backends.strategies.tea_cache_curves import Monotone, Polynomial


def curve_to(fit: CurveFit) -> dict[str, Any]:
    """TeaCache's section of one transformer."""
    polynomial, monotone = fit.polynomial.curve, fit.monotone.curve
    return {
        "signal": fit.signal,
        "use": fit.use,
        "why": fit.why,
        "range": list(fit.x_range),
        "points": fit.points,
        "held_out": fit.held_out,
        "polynomial": {
            "coefficients": list(polynomial.coefficients) if isinstance(polynomial, Polynomial) else [],
            **_quality_to(fit.polynomial),
        },
        "monotone": {
            **({"x": list(monotone.x), "y": list(monotone.y)} if isinstance(monotone, Monotone) else {}),
            **_quality_to(fit.monotone),
        },
    }


def curve_from(data: Mapping[str, Any]) -> CurveFit:
    """Raise KeyError, TypeError or ValueError where it is none."""
    polynomial, monotone = data["polynomial"], data["monotone"]
    x, y = _numbers(monotone["x"]), _numbers(monotone["y"])
    if len(x) != len(y) or list(x) != sorted(set(x)) or list(y) != sorted(y):
        raise ValueError("monotone: x has to rise, and y of the same length never to fall")
    low, high = _numbers(data["range"])
    if data["use"] not in ("polynomial", "monotone"):
        raise ValueError(f"use is polynomial or monotone, got {data['use']!r}")
    return CurveFit(
        str(data["signal"]),
        _fit_from(Polynomial(_numbers(polynomial["coefficients"])), polynomial),
        _fit_from(Monotone(x, y), monotone),
        str(data["use"]),
        str(data["why"]),
        (low, high),
        int(data["points"]),
        str(data["held_out"]),
    )


def ratios_to(fit: RatioFit) -> dict[str, Any]:
    """MagCache's section of one branch."""
    return {**steps_to(fit.ratios, "ratios"), "std": list(fit.std), "cosine_distance": list(fit.cosine)}


def ratios_from(data: Mapping[str, Any]) -> RatioFit:
    """Raise KeyError, TypeError or ValueError where it is none."""
    ratios = steps_from(data, "ratios")
    if min(ratios.median) <= 0:
        raise ValueError("ratios are above 0")
    return RatioFit(ratios, _numbers(data["std"]), _numbers(data["cosine_distance"]))


def steps_to(fit: StepFit, name: str) -> dict[str, Any]:
    """One number a step, with its spread."""
    return {name: list(fit.median), "low": list(fit.low), "high": list(fit.high)}


def steps_from(data: Mapping[str, Any], name: str) -> StepFit:
    """Raise KeyError, TypeError or ValueError where it is none."""
    median, low, high = (_numbers(data[each]) for each in (name, "low", "high"))
    if not len(median) == len(low) == len(high) > 0:
        raise ValueError(f"{name}, low and high have one number a step each")
    return StepFit(median, low, high)


def _quality_to(fit: Fit) -> dict[str, Any]:
    return {"r2": fit.r2, "held_out_r2": fit.held_out_r2, "held_out_error": fit.held_out_error}


def _fit_from(curve: Polynomial | Monotone, data: Mapping[str, Any]) -> Fit:
    held_out = (data["held_out_r2"], data["held_out_error"])
    r2, error = (None if each is None else float(each) for each in held_out)
    return Fit(curve, float(data["r2"]), r2, error)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    found = tuple(float(each) for each in values)
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"expected finite numbers, got {list(values)!r:.80}")
    return found
