"""TaylorSeer, FoCa and DMD beside cache-dit 1.5.3's own calibrators, fed the same series."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dit_cache_backends import DMD, FoCa, Predictor, TaylorSeer

from .series import at, combined, drawn, tensors

pytest.importorskip("cache_dit")
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")

from cache_dit.caching.cache_contexts.calibrators import (
    DMDCalibrator,
    FoCaCalibrator,
    TaylorSeerCalibrator,
)

SHAPE = (2, 12, 16)
SMOOTH = combined(
    lambda t: 1.0, lambda t: 0.3 * math.cos(0.2 * t), lambda t: 0.5 * 0.9**t, lambda t: 0.02 * t, shape=SHAPE
)


def noisy(index: int) -> Tensor:
    """In float32, as a model gives it, and with what no predictor can know."""
    return (SMOOTH(index) + 0.01 * drawn(100 + index, *SHAPE)).float()


def apart(theirs: Any, ours: Predictor, mask: Sequence[bool]) -> float:
    """The largest difference of two forecasts, relative to the largest number; a True in the mask is a computed step.

    Theirs is told of each step as its cached context tells it: before the step, whether it is computed or not.
    """
    worst = 0.0
    for index, run in enumerate(mask):
        theirs.mark_step_begin()
        value = noisy(index)
        if run:
            theirs.update(value, "stream")
            ours.observe(at(index), value)
        else:
            expected = theirs.approximate("stream")
            worst = max(worst, float((ours.predict(at(index)) - expected).abs().max() / value.abs().max()))
    return worst


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Predictor]]] = {
    "taylorseer 1": (TaylorSeerCalibrator, TaylorSeer),
    "taylorseer 2": (lambda: TaylorSeerCalibrator(n_derivatives=2), lambda: TaylorSeer(2)),
    "taylorseer 4": (lambda: TaylorSeerCalibrator(n_derivatives=4), lambda: TaylorSeer(4)),
    "foca": (FoCaCalibrator, FoCa),
}
DMDS: dict[str, tuple[Callable[[], Any], Callable[[], Predictor]]] = {
    "as it comes": (DMDCalibrator, DMD),
    "history 4": (lambda: DMDCalibrator(history=4), lambda: DMD(history=4)),
    "history 9": (lambda: DMDCalibrator(history=9), lambda: DMD(history=9)),
    "rank 1": (lambda: DMDCalibrator(rank=1), lambda: DMD(rank=1)),
    "rank 3": (lambda: DMDCalibrator(rank=3), lambda: DMD(rank=3)),
    "ridge": (lambda: DMDCalibrator(ridge=0.1), lambda: DMD(ridge=0.1)),
    "high": (lambda: DMDCalibrator(svd_precision="high"), lambda: DMD(precision="high")),
    # Their low is a randomised decomposition of full rank, which finds the same.
    "low beside medium": (lambda: DMDCalibrator(svd_precision="low"), DMD),
}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS.values(), ids=PAIRS)
@given(st.lists(st.booleans(), min_size=1, max_size=28))
def test_the_same_is_foretold_whatever_steps_are_computed(
    theirs: Callable[[], Any], ours: Callable[[], Predictor], mask: list[bool]
) -> None:
    assert apart(theirs(), ours(), [True, *mask]) <= 1e-5


@pytest.mark.parametrize(("theirs", "ours"), DMDS.values(), ids=DMDS)
@given(st.lists(st.tuples(st.integers(4, 8), st.integers(1, 4)), min_size=1, max_size=4))
def test_dmd_foretells_the_same_after_rows_of_four_or_more_computed_steps(
    theirs: Callable[[], Any], ours: Callable[[], Predictor], rows: list[tuple[int, int]]
) -> None:
    """Fewer are difference C1."""
    mask = [run for computed, skipped in rows for run in [True] * computed + [False] * skipped]
    assert apart(theirs(), ours(), mask) <= 1e-5


@pytest.mark.parametrize("spacing", [2, 3, 4])
def test_dmd_foretells_the_same_between_steps_that_are_computed_one_in_so_many(spacing: int) -> None:
    """Once four are, that is: before, both are asked for nothing."""
    theirs, ours = DMDCalibrator(), DMD()
    for index in range(10 * spacing):
        theirs.mark_step_begin()
        if index % spacing == 0:
            theirs.update(noisy(index), "stream")
            ours.observe(at(index), noisy(index))
        elif index > 3 * spacing:
            expected = theirs.approximate("stream")
            off = (ours.predict(at(index)) - expected).abs().max() / expected.abs().max()
            assert float(off) <= 1e-5


# The differences that docs/parity.md lists.


def test_c1_the_series_of_dmd_before_its_fit_is_taylorseers_and_not_twice_as_steep() -> None:
    """cache-dit's takes the difference over two gaps and divides it by one."""
    theirs, dmd, taylor = DMDCalibrator(), DMD(), TaylorSeer(1)
    mask = "1111100010001000"

    def line(index: int) -> Tensor:
        return torch.full((1, 4), 1.0 + index)

    for index, digit in enumerate(mask):
        theirs.mark_step_begin()
        if digit == "1":
            theirs.update(line(index), "stream")
            dmd.observe(at(index), line(index))
            taylor.observe(at(index), line(index))
        elif index > 8:
            assert torch.allclose(dmd.predict(at(index)), line(index))
            assert torch.allclose(dmd.predict(at(index)), taylor.predict(at(index)))
            assert (theirs.approximate("stream") - line(index)).min() > 0.2 * (index % 4)


def test_c2_dmd_keeps_its_history_and_nothing_else_of_that_size() -> None:
    theirs, ours = DMDCalibrator(), DMD()
    apart(theirs, ours, [True] * 8 + [False])

    def held(thing: object) -> float:
        size = SHAPE[0] * SHAPE[1] * SHAPE[2] * 4
        return sum(each.numel() * each.element_size() for each in tensors(thing)) / size

    assert 6 <= held(ours) < 7.5  # six tensors in float32 and, on a tensor as small as this, the modes
    assert held(theirs) > 20  # those, two series of two, and modes in complex128


def test_c3_foca_keeps_three_tensors_where_cache_dit_keeps_four_of_its_own() -> None:
    theirs, ours = FoCaCalibrator(), FoCa()
    apart(theirs, ours, [True, True, True, False, False, True, False])
    assert len(list(tensors(ours))) == 3
    assert len(list(tensors(theirs))) == 4


def test_c4_a_sample_whose_fit_fails_does_not_take_the_others_with_it() -> None:
    theirs, ours = DMDCalibrator(), DMD()
    for index in range(8):
        theirs.mark_step_begin()
        value = noisy(index)
        if index == 5:
            value[0, 0, 0] = math.nan
        theirs.update(value, "stream")
        ours.observe(at(index), value)
    theirs.mark_step_begin()
    expected, found = theirs.approximate("stream"), ours.predict(at(8))
    assert torch.equal(expected, noisy(7))
    assert torch.equal(found[0], noisy(7)[0])
    assert not torch.equal(found[1], noisy(7)[1])


def test_c5_asking_foca_twice_gives_the_same_twice() -> None:
    theirs, ours = FoCaCalibrator(), FoCa()
    apart(theirs, ours, [True, True, True, False, True])
    theirs.mark_step_begin()
    assert not torch.equal(theirs.approximate("stream"), theirs.approximate("stream"))
    assert torch.equal(ours.predict(at(5)), ours.predict(at(5)))
