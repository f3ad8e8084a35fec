"""TeaCache's curve: how far the output moves where the signal moves so far, fitted and tried on what was held out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.strategies.tea_cache_curves import Curve, Monotone, Polynomial, along

Numbers = NDArray[np.float64]

DEGREES = (1, 2, 3, 4, 5)
FOLDS = 5
KNOTS = 16
"""Of the curve that never falls, at most."""
LEAST_POINTS, LEAST_VALUES = 8, 4
WORTH = 0.05
"""Part of the mean square error by which a degree more has to be better. At 0.01 one of five true polynomials with
noise gets a degree too many, at 0.05 none of 160."""


@dataclass(frozen=True)
class Fit:
    """One curve, and how well it foretells."""

    curve: Curve
    r2: float
    """Part of the variance that it explains on the points it was fitted to; 1 is all."""
    held_out_r2: float | None
    """The same on points that the curve of their fold was not fitted to; None where none could be held out."""
    held_out_error: float | None
    """Root of the mean square of what it errs by there."""


@dataclass(frozen=True)
class CurveFit:
    """What is known of one transformer's curve."""

    signal: str
    polynomial: Fit
    monotone: Fit
    use: str
    """``polynomial`` or ``monotone``: which one ``tea_cache`` takes."""
    why: str
    x_range: tuple[float, float]
    points: int
    held_out: str
    """What was held out: ``prompts`` or ``steps``."""

    @property
    def used(self) -> Fit:
        """The one that is taken."""
        return self.polynomial if self.use == "polynomial" else self.monotone


def fit_series(series: Sequence[tuple[int, Series]]) -> CurveFit:
    """The curve of one transformer, from its series of all branches and prompts, each with the prompt's number.

    Raises:
        ConfigError: if there is no signal or there are too few points.
    """
    if not series or not series[0][1].signal:
        raise ConfigError("its card has no signal (modulated input), which tea_cache would compare")
    found = [(x, y, prompt, step) for prompt, each in series for step, x, y in each.points()]
    x, y, prompts, steps = np.array(found, dtype=np.float64).reshape(-1, 4).T
    return fit_curve(x, y, prompts, steps, series[0][1].signal)


def fit_curve(x: Numbers, y: Numbers, runs: Numbers, steps: Numbers, signal: str = "") -> CurveFit:
    """Fit both curves to points ``(x, y)`` of ``steps`` in ``runs``, and choose.

    A signal that depends on the time alone is the same in every run, so that holding runs out would try nothing between
    its points: then steps are held out.

    Raises:
        ConfigError: if there are fewer than ``LEAST_POINTS`` points, or all have one x.
    """
    distinct = len(np.unique(x))
    if len(x) < LEAST_POINTS or distinct < LEAST_VALUES:
        raise ConfigError(
            f"{len(x)} points with {distinct} different values of the signal are too few to fit a curve to"
        )
    several = len(np.unique(runs)) > 1
    by_runs = several and distinct > len(np.unique(steps))
    folds = _folds(runs if by_runs else steps)
    tried: dict[int, list[Numbers]] = {}
    for degree in DEGREES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                _polynomial(x, y, degree)
                tried[degree] = _held_out(x, y, folds, partial(_polynomial, degree=degree))
        except RuntimeWarning:  # noqa: PERF203 (too few different values to tell its coefficients)
            break
    degree = _chosen(tried)
    polynomial = _fit(x, y, _polynomial(x, y, degree), tried[degree])
    monotone = _fit(x, y, _monotone(x, y), _held_out(x, y, folds, _monotone))
    x_range = (float(x.min()), float(x.max()))
    use, why = _choice(polynomial, monotone, x_range)
    return CurveFit(
        signal, polynomial, monotone, use, why, x_range, len(x), "prompts" if by_runs else "steps"
    )


def _choice(polynomial: Fit, monotone: Fit, x_range: tuple[float, float]) -> tuple[str, str]:
    values = np.array([polynomial.curve(each) for each in along(x_range)])
    if values.min() < 0:
        return "monotone", "the polynomial is negative within the range"
    if np.diff(values).min() < 0:
        return "monotone", "the polynomial falls within the range"
    errors = polynomial.held_out_error, monotone.held_out_error
    if errors[0] is not None and errors[1] is not None and errors[0] > 1.02 * errors[1]:
        return "monotone", "it errs less on what was held out"
    return "polynomial", "it rises over the range, and errs no more on what was held out"


def _folds(groups: Numbers) -> list[NDArray[np.bool_]]:
    """Which points are held out together: a fifth of the groups each."""
    names = np.unique(groups)
    count = min(FOLDS, len(names))
    if count < 2:
        return []
    return [np.isin(groups, names[fold::count]) for fold in range(count)]


def _held_out(
    x: Numbers, y: Numbers, folds: Sequence[NDArray[np.bool_]], make: Callable[[Numbers, Numbers], Curve]
) -> list[Numbers]:
    """Of each fold what the curve fitted to the others errs by."""
    errors = []
    for out in folds:
        curve = make(x[~out], y[~out])
        low, high = x[~out].min(), x[~out].max()
        # As tea_cache evaluates it: outside of the fitted range at its end.
        errors.append(_along(curve, np.clip(x[out], low, high)) - y[out])
    return errors


def _chosen(tried: dict[int, list[Numbers]]) -> int:
    """The lowest degree that the best beats by no more than chance: one standard error over the folds, or ``WORTH``."""
    squares = {degree: np.array([np.mean(each**2) for each in errors]) for degree, errors in tried.items()}
    if any(not len(each) for each in squares.values()):
        return min(tried)
    best = min(squares, key=lambda degree: float(squares[degree].mean()))
    for degree in sorted(squares):
        worse = squares[degree] - squares[best]
        chance = float(worse.std(ddof=1)) / np.sqrt(len(worse))
        if worse.mean() <= max(chance, WORTH * float(squares[best].mean())):
            return degree
    return best


def _polynomial(x: Numbers, y: Numbers, degree: int) -> Polynomial:
    found = np.polynomial.Polynomial.fit(x, y, degree).convert()
    return Polynomial(tuple(float(each) for each in reversed(found.coef)))


def _monotone(x: Numbers, y: Numbers) -> Monotone:
    """Isotonic regression, its steps joined by lines between the means of bins that hold equally many points."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(x, kind="stable")
    values, first, counts = np.unique(x[order], return_index=True, return_counts=True)
    means = np.add.reduceat(y[order], first) / counts
    level = isotonic_regression(means, weights=counts).x
    bins = np.minimum((np.cumsum(counts) - counts) * KNOTS // len(x), KNOTS - 1)
    knots = [(values[0], level[0])]
    for each in np.unique(bins):
        here = bins == each
        weights = counts[here]
        knots.append((np.average(values[here], weights=weights), np.average(level[here], weights=weights)))
    knots.append((values[-1], level[-1]))
    kept = [knots[0]]
    for knot in knots[1:]:
        if knot[0] > kept[-1][0]:
            kept.append((knot[0], max(knot[1], kept[-1][1])))
    return Monotone(tuple(float(knot[0]) for knot in kept), tuple(float(knot[1]) for knot in kept))


def _fit(x: Numbers, y: Numbers, curve: Curve, held_out: Sequence[Numbers]) -> Fit:
    spread = float(((y - y.mean()) ** 2).sum())
    explained = 1 - float(((_along(curve, x) - y) ** 2).sum()) / spread if spread else 1.0
    if not held_out:
        return Fit(curve, explained, None, None)
    squares = np.concatenate(held_out) ** 2
    held_out_r2 = 1 - float(squares.sum()) / spread if spread else 1.0
    return Fit(curve, explained, held_out_r2, float(np.sqrt(squares.mean())))


def _along(curve: Curve, x: Numbers) -> Numbers:
    return np.array([curve(float(each)) for each in x])
