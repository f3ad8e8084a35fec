"""Every predictor foretells from what is stored, and stores all that it keeps between two calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dit_cache_backends import Chebyshev, Predictor, Reuse, Step, Storage, TaylorSeer
from dit_cache_backends.engine.storage import Packed

from ..calibrators.series import PREDICTORS, SHAPE, at, combined, fed, tensors
from .elsewhere import NOWHERE, Elsewhere, fetch, send

SERIES = combined(lambda t: 1.0, lambda t: 0.3 * t / 10, lambda t: 0.9**t)
EVERY = pytest.mark.parametrize("make", [Reuse, *PREDICTORS.values()], ids=["reuse", *PREDICTORS])
EIGHTH, HALF = Storage(dtype=torch.float8_e4m3fn), Storage(dtype=torch.bfloat16)


def single(index: int) -> Tensor:
    return SERIES(index).float()


def held(predictor: Predictor) -> list[Tensor]:
    """What it holds of the size of an observation, as it is stored."""
    return [tensor for tensor in tensors(predictor) if tensor.numel() == SHAPE[0] * SHAPE[1] * SHAPE[2]]


@EVERY
@pytest.mark.parametrize("storage", [EIGHTH, HALF], ids=["float8", "bfloat16"])
def test_all_that_is_kept_is_stored_and_forecasts_are_of_the_streams_dtype(
    make: Callable[[], Predictor], storage: Storage
) -> None:
    predictor = make().kept_in(storage)
    for index in range(9):
        predictor.observe(at(index), single(index))
        assert {tensor.dtype for tensor in held(predictor)} == {storage.dtype}
        foretold = predictor.predict(at(index + 1))
        assert (foretold.dtype, foretold.shape) == (torch.float32, SHAPE)
        assert {tensor.dtype for tensor in held(predictor)} == {storage.dtype}


@EVERY
def test_the_forecast_is_off_by_the_rounding_of_what_is_kept(make: Callable[[], Predictor]) -> None:
    plain, stored = fed(make(), single, range(9)), fed(make().kept_in(HALF), single, range(9))
    expected, found = plain.predict(at(10)), stored.predict(at(10))
    # A polynomial of the fourth degree magnifies it most.
    assert 0 < float((found - expected).abs().max() / expected.abs().max()) < 0.15


@EVERY
def test_on_another_device_nothing_changes_and_nothing_is_computed_there(
    make: Callable[[], Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Packed, "_sent", send)
    monkeypatch.setattr(Packed, "_fetched", fetch)
    plain, far = make(), make().kept_in(Storage(NOWHERE))
    for index in (0, 1, 2, 3, 5, 6, 9):
        plain.observe(at(index), single(index))
        far.observe(at(index), single(index))
        for ahead in (1, 3, 1):
            assert torch.equal(far.predict(at(index + ahead)), plain.predict(at(index + ahead)))
        assert {type(tensor) for tensor in held(far)} == {Elsewhere}


@EVERY
def test_as_many_tensors_are_held_as_without_a_storage(make: Callable[[], Predictor]) -> None:
    plain, stored = fed(make(), single, range(9)), fed(make().kept_in(HALF), single, range(9))
    assert len(held(stored)) == len(held(plain))


@pytest.mark.parametrize("make", [Chebyshev, TaylorSeer])
def test_what_was_stored_before_is_not_stored_again(
    make: Callable[[], Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow bus that would cost as much as the skipped blocks."""
    sent: list[int] = []

    def count(*given: Any) -> Tensor:
        sent.append(1)
        return send(*given)

    monkeypatch.setattr(Packed, "_sent", count)
    monkeypatch.setattr(Packed, "_fetched", fetch)
    predictor = fed(make().kept_in(Storage(NOWHERE)), single, range(6))
    sent.clear()
    for ahead in range(4):
        predictor.predict(at(7 + ahead))
    assert not sent
    predictor.observe(at(6), single(6))
    assert len(sent) == (1 if make is Chebyshev else 2)


def test_a_history_fetches_one_tensor_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none when it observes: who is short of memory has room for one, not for eight."""
    alive: list[int] = []
    fetched: list[Any] = []

    def count(self: Packed, tensor: Tensor) -> Tensor:
        import weakref

        found = fetch(self, tensor)
        fetched.append(weakref.ref(found))
        alive.append(sum(each() is not None for each in fetched))
        return found

    monkeypatch.setattr(Packed, "_sent", send)
    monkeypatch.setattr(Packed, "_fetched", count)
    predictor = fed(Chebyshev(window=8).kept_in(Storage(NOWHERE)), single, range(12))
    assert not fetched
    predictor.predict(at(13))
    assert len(fetched) == 8
    assert max(alive) <= 2


class Kept(NamedTuple):
    value: Tensor
    at: int


class Strange(Predictor):
    """As somebody else might write it: in slots, in containers, in another predictor, and with a small tensor."""

    __slots__ = ("by_step", "latest", "other", "sizes")

    def __init__(self) -> None:
        self.by_step: dict[int, list[Tensor]] = {}
        self.latest: tuple[Kept, ...] = ()
        self.other = Reuse()
        self.sizes = torch.zeros(3)

    def observe(self, step: Step, value: Tensor) -> None:
        self.by_step.setdefault(step.index // 4, []).append(value * 2)
        self.latest = (Kept(value + 1, step.index), *self.latest[:1])
        self.other.observe(step, value)
        self.sizes = torch.tensor([1.0, 2.0, 3.0])

    def predict(self, step: Step) -> Tensor:
        rows = [sum(row, torch.zeros(())) for row in self.by_step.values()]
        return sum(rows, torch.zeros(())) + self.latest[-1].value + self.other.predict(step) * self.sizes[1]


def test_a_strangers_predictor_knows_nothing_of_storages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "_sent", send)
    monkeypatch.setattr(Packed, "_fetched", fetch)
    plain, far = fed(Strange(), single, range(7)), fed(Strange().kept_in(Storage(NOWHERE)), single, range(7))
    assert torch.equal(far.predict(at(9)), plain.predict(at(9)))
    assert len(held(far)) == 7 + 2 + 1
    assert {type(tensor) for tensor in held(far)} == {Elsewhere}
    assert [type(tensor) for tensor in tensors(far) if tensor.numel() == 3] == [Tensor]


class Breaks(Reuse):
    def predict(self, step: Step) -> Tensor:
        raise ZeroDivisionError


def test_an_error_within_leaves_everything_stored() -> None:
    predictor = fed(Breaks().kept_in(HALF), single, range(2))
    with pytest.raises(ZeroDivisionError):
        predictor.predict(at(3))
    assert [tensor.dtype for tensor in held(predictor)] == [torch.bfloat16]


def test_nothing_wraps_a_predictor_whose_tensors_stay_as_they_are() -> None:
    from dit_cache_backends.engine.predictors import kept_in
    from dit_cache_backends.engine.storage import PLAIN

    def make(stream: object) -> Predictor:
        return Reuse()

    assert kept_in(PLAIN, make) is make


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylorseer_rounds_a_sum_in_half_precision_once(dtype: torch.dtype, order: int) -> None:
    half, wide = TaylorSeer(order), TaylorSeer(order)
    for index in range(8):
        half.observe(at(index), single(index).to(dtype))
    wide._derivatives = [tensor.double() for tensor in half._derivatives]
    wide._last = half._last
    exact = wide.predict(at(10))
    assert float(((half.predict(at(10)) - exact).abs() / exact.abs()).max()) <= torch.finfo(dtype).eps * 0.51
