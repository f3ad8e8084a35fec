"""What each predictor continues exactly, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_cache_backends import DMD, Chebyshev, FoCa, Hermite, Newton, Predictor, Reuse, TaylorSeer

from .series import PREDICTORS, at, combined, error, fed, polynomial, rising

EXACT = 1e-9


@pytest.mark.parametrize("make", PREDICTORS.values(), ids=PREDICTORS)
@given(rising(1), st.integers(1, 12))
def test_a_constant_is_foretold_by_all(make: Callable[[], Predictor], steps: list[int], ahead: int) -> None:
    constant = combined(lambda _: 1.0)
    assert error(fed(make(), constant, steps), constant, steps[-1] + ahead) <= 1e-7


def test_a_constant_is_foretold_by_the_ridge_of_spectrum_only_where_it_is_anchored() -> None:
    constant = combined(lambda _: 1.0)
    shrunk = error(fed(Chebyshev(anchored=False), constant, range(6)), constant, 7)
    assert 1e-3 < shrunk < 0.1
    assert error(fed(Chebyshev(), constant, range(6)), constant, 7) <= EXACT


# Newton


@given(st.integers(0, 5), rising(6), st.integers(1, 6))
def test_newton_is_exact_for_polynomials_of_its_order_on_uneven_gaps(
    order: int, steps: list[int], ahead: int
) -> None:
    curve = polynomial(order)
    assert error(fed(Newton(order, start=0), curve, steps), curve, steps[-1] + ahead) <= EXACT


@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_newton_is_not_exact_one_degree_higher(order: int) -> None:
    curve = polynomial(order + 1)
    assert error(fed(Newton(order, start=0), curve, [0, 2, 3, 7, 8, 10]), curve, 12) > 1e-4


@given(rising(2), st.integers(1, 8))
def test_newton_of_order_1_is_taylorseer_of_order_1(steps: list[int], ahead: int) -> None:
    series = combined(math.sin, math.cos, math.sqrt)
    newton, taylor = fed(Newton(1), series, steps), fed(TaylorSeer(1), series, steps)
    asked = at(steps[-1] + ahead)
    assert torch.allclose(newton.predict(asked), taylor.predict(asked), rtol=0, atol=1e-9)


@given(rising(2), st.integers(0, 8), st.integers(1, 4))
def test_newton_grows_by_an_order_with_each_step_seen_from_its_start_on(
    steps: list[int], start: int, order: int
) -> None:
    """As many degrees as observations from the start on: the weights of all older ones are 0."""
    newton = fed(Newton(order, start=start), combined(lambda _: 1.0), steps)
    assert isinstance(newton, Newton)
    used = sum(weight != 0.0 for weight in newton.weights(at(steps[-1] + 1)))
    reached = sum(step >= start for step in steps)
    assert used == 1 + min(order, reached, len(steps) - 1)


# TaylorSeer and Hermite


@pytest.mark.parametrize("order", [1, 2, 5, 10])
@given(steps=rising(5), ahead=st.integers(1, 6))
def test_taylorseer_is_exact_for_lines_once_its_differences_begin(
    order: int, steps: list[int], ahead: int
) -> None:
    line = polynomial(1)
    assert error(fed(TaylorSeer(order), line, steps), line, steps[-1] + ahead) <= EXACT


def test_taylorseer_is_exact_for_no_higher_polynomial_even_on_even_gaps() -> None:
    """Its terms are backward differences on powers, so a parabola is missed by half its second difference a step."""
    parabola = polynomial(2)
    seer = fed(TaylorSeer(2), parabola, range(8))
    second = parabola(7) - 2 * parabola(6) + parabola(5)
    for ahead in (1, 2, 5):
        missed = parabola(7 + ahead) - seer.predict(at(7 + ahead))
        assert torch.allclose(missed, second * ahead / 2, rtol=0, atol=1e-9)


@given(steps=rising(6), ahead=st.integers(1, 6), scale=st.floats(0.1, 1.0))
def test_hermite_moves_along_a_line_by_twice_its_scale_squared(
    steps: list[int], ahead: int, scale: float
) -> None:
    line = polynomial(1)
    slope = line(1) - line(0)
    found = fed(Hermite(1, scale), line, steps).predict(at(steps[-1] + ahead))
    expected = line(steps[-1]) + 2 * scale**2 * ahead * slope
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_hermite_has_the_terms_of_its_polynomials() -> None:
    """Of the cubes 0, 1, 8, ..., 343 the backward differences at 343 are 127, 36 and 6."""
    s = 0.6
    for order in (1, 2, 3):
        hermite = fed(Hermite(order, s), lambda index: torch.tensor([float(index**3)]).double(), range(8))
        for x in (1, 2, 5):
            terms = [
                343.0,
                127 * s * (2 * s * x),
                36 * s**2 * (4 * (s * x) ** 2 - 2) / 2,
                6 * s**3 * (8 * (s * x) ** 3 - 12 * s * x) / 6,
            ]
            assert float(hermite.predict(at(7 + x))) == pytest.approx(sum(terms[: order + 1]))


# FoCa


def test_foca_follows_a_line_from_two_neighbours_for_three_steps_and_then_goes_back() -> None:
    line = polynomial(1)
    foca = fed(FoCa(), line, [0, 1])
    assert all(error(foca, line, 1 + ahead) <= EXACT for ahead in (1, 2, 3))
    step = line(1) - line(0)
    further = [foca.predict(at(1 + ahead)) - line(1) for ahead in (3, 4, 5, 6)]
    lengths = [float((each * step).sum() / (step * step).sum()) for each in further]
    assert lengths[0] == pytest.approx(3)
    assert lengths == sorted(lengths, reverse=True)
    assert error(fed(FoCa(), line, [0, 2]), line, 3) > 1e-3  # gaps are not divided out


class FoCaByForecasts:
    """The rule as cache-dit has it, step by step, with every forecast kept."""

    def __init__(self) -> None:
        self.full: list[torch.Tensor] = []
        self.all: list[torch.Tensor] = []
        self.since = 0

    def observe(self, value: torch.Tensor) -> None:
        self.full.append(value)
        self.all.append(value)
        self.since = 0

    def forecast(self) -> torch.Tensor:
        self.since += 1
        if len(self.full) < 2:
            return self.full[-1]
        change = (self.full[-1] - self.full[-2]) + (self.all[-1] - self.all[-2])
        if self.since <= 3:
            value = self.full[-1] + self.since / 2 * change
        else:
            share = 3 / self.since
            value = share * (self.full[-1] + 1.5 * change) + (1 - share) * self.full[-1]
        self.all.append(value)
        return value


@given(st.lists(st.booleans(), min_size=1, max_size=25))
def test_foca_needs_no_forecast_kept_to_say_what_it_would_have_said(computed: list[bool]) -> None:
    series = combined(math.sin, math.cos, math.sqrt)
    foca, by_forecasts = FoCa(), FoCaByForecasts()
    for index, run in enumerate([True, *computed]):
        if run:
            foca.observe(at(index), series(index))
            by_forecasts.observe(series(index))
        else:
            expected = by_forecasts.forecast()
            found = foca.predict(at(index))
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


# DMD


@pytest.mark.parametrize("precision", ["low", "medium", "high"])
@pytest.mark.parametrize("spacing", [1, 2, 3])
def test_dmd_continues_decays_exactly_also_between_its_steps(spacing: int, precision: str) -> None:
    decays = combined(lambda t: 1.0, lambda t: math.exp(-0.06 * t), lambda t: 0.8**t, shape=(1, 40, 30))
    dmd = fed(DMD(precision=precision), decays, range(0, 8 * spacing, spacing))  # type: ignore[arg-type]
    last = 7 * spacing
    assert all(error(dmd, decays, last + ahead) <= 1e-4 for ahead in range(1, 9))
    assert error(fed(TaylorSeer(2), decays, range(0, 8 * spacing, spacing)), decays, last + 8) > 1e-2


@given(st.floats(0.2, 1.4), st.floats(0.85, 1.05), st.integers(1, 12))
def test_dmd_continues_an_oscillation_that_dies_or_grows(turn: float, factor: float, ahead: int) -> None:
    swing = combined(lambda t: factor**t * math.cos(turn * t), lambda t: factor**t * math.sin(turn * t))
    assert error(fed(DMD(), swing, range(7)), swing, 6 + ahead) <= 1e-5


def test_dmd_with_one_mode_cannot_continue_an_oscillation() -> None:
    swing = combined(lambda t: math.cos(0.7 * t), lambda t: math.sin(0.7 * t))
    assert error(fed(DMD(rank=1), swing, range(7)), swing, 9) > 0.1
    assert error(fed(DMD(rank=2), swing, range(7)), swing, 9) <= 1e-6


# Chebyshev


@given(st.integers(0, 4), rising(6), st.integers(1, 3))
def test_chebyshev_with_next_to_no_ridge_is_exact_for_polynomials_of_its_degree(
    degree: int, steps: list[int], ahead: int
) -> None:
    curve, asked = polynomial(degree), steps[-1] + ahead
    chebyshev = Chebyshev(degree, ridge=1e-13, window=12)
    for step in steps:
        chebyshev.observe(at(step, asked + 1), curve(step))
    found = chebyshev.predict(at(asked, asked + 1))
    assert torch.allclose(found, curve(asked), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("total", [28, 50, None])
@given(steps=rising(1, gap=2), ahead=st.integers(1, 4), degree=st.integers(1, 6), ridge=st.floats(1e-3, 10))
def test_chebyshev_is_the_ridge_regression_of_spectrum(
    total: int | None, steps: list[int], ahead: int, degree: int, ridge: float
) -> None:
    """By another way: least squares with a row of ``sqrt(ridge)`` for each coefficient, on ``cos(k acos(tau))``."""
    series = combined(math.sin, math.cos, math.sqrt)
    asked = steps[-1] + ahead
    values = torch.stack([series(step).flatten() for step in steps])
    tau = torch.tensor([2 * step / (total or 50) - 1 for step in [*steps, asked]], dtype=torch.float64)
    basis = torch.stack([torch.cos(power * torch.acos(tau)) for power in range(degree + 1)], dim=1)
    rows = torch.cat([basis[:-1], ridge**0.5 * torch.eye(degree + 1).double()])

    def solved(wanted: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([wanted, torch.zeros(degree + 1, wanted.shape[1]).double()])
        return basis[-1] @ torch.linalg.lstsq(rows, padded).solution

    for anchored in (False, True):
        chebyshev = Chebyshev(degree, ridge, window=20, anchored=anchored)
        for step in steps:
            chebyshev.observe(at(step, total), series(step))
        anchor = values[-1] if anchored else torch.zeros_like(values[-1])
        expected = anchor + solved(values - anchor)
        assert torch.allclose(chebyshev.predict(at(asked, total)).flatten(), expected, rtol=0, atol=1e-8)


def test_chebyshev_follows_a_slow_oscillation_and_stays_bounded_far_ahead() -> None:
    swing = combined(lambda t: math.cos(0.1 * t), lambda t: math.sin(0.1 * t))
    seen = range(0, 40, 2)
    chebyshev = fed(Chebyshev(6, ridge=1e-6, window=20), swing, seen)
    assert error(chebyshev, swing, 40) < 1e-2
    assert error(fed(Reuse(), swing, seen), swing, 40) > 0.1
    fast = combined(lambda t: math.cos(0.4 * t), lambda t: math.sin(0.4 * t))
    largest = max(float(fast(index).abs().max()) for index in range(16))
    far = {
        predictor: float(fed(predictor, fast, seen).predict(at(59)).abs().max()) / largest
        for predictor in (Chebyshev(), TaylorSeer(2), Newton(3))
    }
    assert [ratio < 2 for ratio in far.values()] == [True, False, False]


def test_chebyshev_sees_only_its_window() -> None:
    series = combined(math.sin, math.cos)
    one, other = Chebyshev(window=3), Chebyshev(window=3)
    fed(one, series, [0, 1, 2, 5, 6, 8])
    fed(other, series, [5, 6, 8])
    assert torch.equal(one.predict(at(9)), other.predict(at(9)))
    assert not torch.equal(
        one.predict(at(9)), fed(Chebyshev(window=4), series, [0, 1, 2, 5, 6, 8]).predict(at(9))
    )


def test_a_step_beyond_the_number_told_is_foretold_too() -> None:
    series = combined(math.sin, math.cos)
    chebyshev = fed(Chebyshev(), series, range(6))
    assert float(chebyshev.predict(at(70, 10)).abs().max()) < 3 * float(series(5).abs().max())
