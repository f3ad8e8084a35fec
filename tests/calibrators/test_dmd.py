"""DMD where a fit is not to be had, or not to be trusted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dit_cache_backends import DMD, TaylorSeer
from dit_cache_backends.calibrators.dmd import Precision

from .series import SHAPE, at, combined, drawn, error, fed

DECAY = combined(lambda t: 1.0, lambda t: 0.8**t)
PRECISIONS: tuple[Precision, ...] = ("low", "medium", "high")


@pytest.mark.parametrize("steps", [[0], [0, 1], [0, 1, 2], [0, 2, 3, 4], [0, 1, 2, 3, 4, 7], [0, 3, 6, 7]])
def test_fewer_than_four_evenly_spaced_steps_are_taylorseer_of_order_1(steps: list[int]) -> None:
    dmd, taylor = fed(DMD(), DECAY, steps), fed(TaylorSeer(1), DECAY, steps)
    for ahead in (1, 2, 5):
        asked = at(steps[-1] + ahead)
        assert torch.allclose(dmd.predict(asked), taylor.predict(asked), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [0, 5, 7, 9, 11], [0, 1, 2, 3, 10, 14, 18, 22, 26]])
def test_the_evenly_spaced_steps_at_the_end_are_what_is_fitted(steps: list[int]) -> None:
    assert error(fed(DMD(), DECAY, steps), DECAY, steps[-1] + 3) <= 1e-6
    assert error(fed(TaylorSeer(1), DECAY, steps), DECAY, steps[-1] + 3) > 1e-4


def test_what_lies_before_the_history_is_forgotten() -> None:
    def broken(index: int) -> Tensor:
        return DECAY(index) if index > 3 else drawn(index)

    assert error(fed(DMD(history=4), broken, range(8)), DECAY, 10) <= 1e-6
    assert error(fed(DMD(history=7), broken, range(8)), DECAY, 10) > 1e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sample_with_a_number_that_is_none_is_reused_and_the_others_are_foretold(
    precision: Precision,
) -> None:
    def holed(index: int) -> Tensor:
        value = DECAY(index)
        if index == 5:
            value[0, 0, 0] = math.nan
        return value

    found = fed(DMD(precision=precision), holed, range(8)).predict(at(10))
    assert torch.equal(found[0], DECAY(7)[0])
    assert torch.allclose(found[1], DECAY(10)[1], rtol=0, atol=1e-6)


def test_a_forecast_that_the_dtype_cannot_hold_is_the_newest_value() -> None:
    def growing(index: int) -> Tensor:
        both = torch.full(SHAPE, 2.0**index)
        both[1] = 0.9**index
        return both.to(torch.float16)

    dmd = fed(DMD(), growing, range(10))
    near, far = dmd.predict(at(12)), dmd.predict(at(17))
    assert torch.allclose(near[0], torch.tensor(4096.0).half(), rtol=1e-2)
    assert torch.equal(far[0], growing(9)[0])
    assert float(far[1].max()) == pytest.approx(0.9**17, rel=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_stream_of_zeros_stays_zero(precision: Precision) -> None:
    zeros = fed(DMD(precision=precision), lambda _: torch.zeros(SHAPE), range(8))
    assert torch.equal(zeros.predict(at(9)), torch.zeros(SHAPE))


def test_low_precision_looks_at_a_part_and_finds_the_same_dynamics() -> None:
    """Of a large tensor; with noise in it what it finds is near, not the same."""
    clean = combined(lambda t: 1.0, lambda t: 0.8**t, lambda t: 0.95**t, shape=(1, 300, 40))

    def noisy(index: int) -> Tensor:
        return clean(index) + 1e-3 * drawn(100 + index, 1, 300, 40)

    low, medium = DMD(precision="low"), DMD()
    assert error(fed(low, clean, range(8)), clean, 10) <= 1e-4
    low, medium = fed(DMD(precision="low"), noisy, range(8)), fed(DMD(), noisy, range(8))
    off = error(low, clean, 10), error(medium, clean, 10)
    assert off[0] != off[1]
    assert off[0] < 3 * off[1] + 1e-2


def test_inner_products_find_what_a_qr_decomposition_finds() -> None:
    series = combined(math.sin, lambda t: math.cos(0.2 * t), lambda t: 0.9**t, shape=(2, 30, 40))
    medium, high = fed(DMD(), series, range(9)), fed(DMD(precision="high"), series, range(9))
    assert torch.allclose(medium.predict(at(12)), high.predict(at(12)), rtol=0, atol=1e-6)


def test_a_tensor_of_many_parts_is_read_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner products are summed part by part; here a part is one token of six numbers."""
    whole = fed(DMD(), DECAY, range(8)).predict(at(10))
    monkeypatch.setattr("dit_cache_backends.calibrators.dmd.CHUNK", 7)
    assert torch.allclose(fed(DMD(), DECAY, range(8)).predict(at(10)), whole, rtol=0, atol=1e-9)
