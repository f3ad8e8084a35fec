"""TeaCache's curve: a truth that is known is found again, noise is not fitted, and nothing falls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dit_cache_backends import ConfigError
from dit_cache_backends.calibrate.curve_fit import KNOTS, CurveFit, Numbers, fit_curve
from dit_cache_backends.strategies.tea_cache_curves import Monotone, Polynomial, along

PROMPTS, STEPS = 20, 28


def fitted(
    truth: Callable[[Numbers], Numbers], noise: float, seed: int = 0, spread: float = 0.03
) -> CurveFit:
    """Fitted to what `truth` gives with noise, at differences that fall over the steps and differ by prompt."""
    rng = np.random.default_rng(seed)
    runs, steps = np.meshgrid(np.arange(PROMPTS), np.arange(1, STEPS), indexing="ij")
    x = 0.35 * np.exp(-steps / 9) + 0.04 + spread * rng.uniform(0, 1, steps.shape)
    y = truth(x) + noise * rng.standard_normal(x.shape)
    return fit_curve(*(each.astype(float).ravel() for each in (x, y, runs, steps)), "modulated_input")


def coefficients(fit: CurveFit) -> tuple[float, ...]:
    assert isinstance(fit.polynomial.curve, Polynomial)
    return fit.polynomial.curve.coefficients


@pytest.mark.parametrize(
    "truth", [(1.4, 0.02), (3.0, 0.4, 0.05), (30.0, -12.0, 2.2, 0.01), (180.0, -100.0, 19.0, -0.6, 0.06)]
)
def test_a_polynomial_that_is_known_is_found_again_with_its_degree(truth: tuple[float, ...]) -> None:
    fit = fitted(np.poly1d(truth), 1e-4)
    assert len(coefficients(fit)) == len(truth)
    assert [fit.polynomial.curve(each) for each in along(fit.x_range)] == pytest.approx(
        [float(np.poly1d(truth)(each)) for each in along(fit.x_range)], abs=2e-4
    )
    assert fit.polynomial.r2 > 0.999
    assert fit.polynomial.held_out_r2 is not None
    assert fit.polynomial.held_out_r2 > 0.999


@pytest.mark.parametrize("seed", range(6))
def test_noise_is_not_fitted(seed: int) -> None:
    """Where a line is all there is the higher degrees fit it closer, and foretell it worse."""
    fit = fitted(np.poly1d([0.8, 0.05]), 0.05, seed)
    assert len(coefficients(fit)) == 2
    assert fit.held_out == "prompts"


def test_what_is_told_of_held_out_prompts_is_what_new_prompts_show() -> None:
    fit = fitted(np.poly1d([3.0, 0.4, 0.05]), 0.02)
    assert fit.used.held_out_error == pytest.approx(0.02, rel=0.1)
    assert fit.used.held_out_r2 is not None
    assert fit.used.held_out_r2 < fit.used.r2


@pytest.mark.parametrize(
    ("truth", "why"),
    [
        (lambda x: 0.1 + 3 * (x - 0.2) ** 2, "falls"),
        (lambda x: x - 0.15, "negative"),
        (lambda x: np.where(x < 0.12, 0.05, 0.3), "errs less|falls"),
    ],
)
def test_a_curve_that_falls_or_is_negative_gives_way_to_one_that_does_not(
    truth: Callable[[Numbers], Numbers], why: str
) -> None:
    fit = fitted(truth, 0.004)
    assert fit.use == "monotone"
    assert any(each in fit.why for each in why.split("|"))
    values = [fit.used.curve(each) for each in along((0.0, 1.0))]
    assert values == sorted(values)


def test_the_curve_that_never_falls_comes_close_to_one_that_rises() -> None:
    fit = fitted(lambda x: np.sqrt(x), 0.01)
    monotone = fit.monotone.curve
    assert isinstance(monotone, Monotone)
    assert len(monotone.x) <= KNOTS + 2
    errors = [abs(monotone(each) - each**0.5) for each in along((0.06, 0.3))]
    assert max(errors) < 0.02
    assert (monotone(-1.0), monotone(9.0)) == (monotone.y[0], monotone.y[-1])


def test_where_time_alone_decides_steps_are_held_out() -> None:
    """All runs have the same differences then: what is between them is tried by leaving some out."""
    fit = fitted(np.poly1d([3.0, 0.4, 0.05]), 0.01, spread=0.0)
    assert fit.held_out == "steps"
    assert len(coefficients(fit)) <= 4


def test_one_prompt_is_enough_to_fit_something() -> None:
    x = np.linspace(0.05, 0.3, 12)
    fit = fit_curve(x, 0.1 + x, np.zeros(12), np.arange(12.0))
    assert fit.held_out == "steps"
    assert fit.polynomial.curve(0.2) == pytest.approx(0.3, abs=1e-6)


def test_too_few_points_are_refused() -> None:
    few = np.arange(5.0)
    with pytest.raises(ConfigError, match="5 points with 5 different values"):
        fit_curve(few, few, few, few)
    with pytest.raises(ConfigError, match="20 points with 1 different values"):
        fit_curve(np.ones(20), np.arange(20.0), np.zeros(20), np.arange(20.0))
