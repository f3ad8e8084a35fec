"""What is kept comes back: rounded as its dtype says, of its own shape, dtype and device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dit_cache_backends import ConfigError, Storage, relative_difference
from dit_cache_backends.engine.storage import DTYPES, PLAIN, Packed, device_problem, storage

CPU = torch.device("cpu")
NARROW = {
    "bfloat16": (torch.bfloat16, 2**-8),
    "float16": (torch.float16, 2**-11),
    "float8": (torch.float8_e4m3fn, 2**-4),
}
"""Each with the largest relative error of its rounding."""
EVERY = pytest.mark.parametrize(("dtype", "off"), NARROW.values(), ids=NARROW)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return Storage.give(Storage(dtype=dtype).keep(tensor))


@EVERY
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e5, 1e12])
def test_numbers_of_any_size_come_back_rounded(dtype: torch.dtype, off: float, size: float) -> None:
    """Also those far outside of the range of float16 and float8; what vanishes beside the largest may be lost."""
    given = drawn(3, 20, 32) * size
    lost = given.abs().max() * 2**-14
    found = kept(given, dtype)
    assert ((found - given).abs() <= given.abs() * off + lost).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_each_sample_of_a_batch_is_kept_as_it_were_alone(dtype: torch.dtype) -> None:
    batch = drawn(3, 8, 16) * torch.tensor([1e-4, 1.0, 3e7]).view(3, 1, 1)
    found = kept(batch, dtype)
    for sample in range(3):
        assert torch.equal(found[sample : sample + 1], kept(batch[sample : sample + 1], dtype))


@EVERY
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_does_not_come_back_as_one_that_is(
    dtype: torch.dtype, off: float, wrong: float
) -> None:
    """A float8 has no infinity, so the whole sample becomes NaN; the other samples of the batch do not."""
    given = drawn(2, 4, 8)
    given[0, 1, 2] = wrong
    found = kept(given, dtype)
    assert not found[0, 1, 2].isfinite()
    assert torch.allclose(found[1], given[1], rtol=off, atol=1e-3)


@EVERY
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 6), (7,), (), (3, 0, 4)])
def test_shape_and_dtype_are_those_that_were_given(
    dtype: torch.dtype, off: float, own: torch.dtype, shape: tuple[int, ...]
) -> None:
    given = drawn(*shape).to(own)
    stored = Storage(dtype=dtype).keep(given)
    assert (stored.shape, stored.dtype, stored.device) == (given.shape, own, CPU)
    found = Storage.give(stored)
    assert (found.shape, found.dtype) == (given.shape, own)
    assert torch.allclose(found.double(), given.double(), rtol=2 * off, atol=1e-3)


@EVERY
def test_what_has_been_rounded_is_not_rounded_again(dtype: torch.dtype, off: float) -> None:
    once = kept(drawn(2, 9, 8) * 37, dtype)
    assert torch.equal(kept(once, dtype), once)


def test_what_is_to_stay_as_it_is_is_the_tensor_itself() -> None:
    given = drawn(2, 3)
    for each in (PLAIN, Storage(CPU), Storage(dtype=torch.float32), Storage(CPU, torch.float32)):
        assert each.keep(given) is given
        assert each.pair(given, given) == (given, given)
    counts = torch.arange(5)
    assert Storage(dtype=torch.bfloat16).keep(counts) is counts
    assert storage(None, None) is PLAIN


def test_what_is_kept_is_no_part_of_what_was_given() -> None:
    given = drawn(2, 4)
    stored = Storage(dtype=torch.bfloat16).keep(given)
    before = Storage.give(stored)
    given.zero_()
    first = Storage.give(stored)
    first.zero_()
    assert torch.equal(Storage.give(stored), before)


@EVERY
def test_what_stands_still_differs_by_nothing(dtype: torch.dtype, off: float) -> None:
    now = drawn(2, 50, 32)
    each = Storage(dtype=dtype)
    assert float(relative_difference(*each.pair(each.keep(now), now))) == 0.0


@EVERY
@pytest.mark.parametrize("moves", [0.3, 1.0, 10.0])
def test_what_moves_by_less_than_the_rounding_differs_by_as_much_as_it_moved(
    dtype: torch.dtype, off: float, moves: float
) -> None:
    """Rounding the one side alone would put a floor of ``off / 2`` or so under every difference."""
    before = drawn(4, 500, 64)
    now = before + moves * off * before.abs() * drawn(4, 500, 64, seed=1)
    each = Storage(dtype=dtype)
    found = float(relative_difference(*each.pair(each.keep(before), now)))
    assert found == pytest.approx(float(relative_difference(before, now)), rel=0.03)
    one_sided = float(relative_difference(each.give(each.keep(before)), now))
    assert moves > 1 or one_sided > 1.05 * found


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_was_kept_in_one_mode_is_given_in_another(mode: type) -> None:
    each = Storage(dtype=torch.float8_e4m3fn)
    with mode():
        stored = each.keep(drawn(2, 8))
    with torch.inference_mode(False), torch.no_grad():
        found = Storage.give(stored)
    found += 1
    with torch.inference_mode():
        assert torch.equal(Storage.give(stored) + 1, found)


def test_autocast_changes_nothing() -> None:
    given = drawn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in DTYPES.values():
            found = kept(given, dtype)
            assert found.dtype == torch.float32
            assert torch.equal(found, Storage.give(Storage(dtype=dtype).keep(given)))


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:17", "mps", "npu:2", "xpu"])
def test_the_names_of_devices_are_understood_whether_they_are_there_or_not(name: str) -> None:
    assert device_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "near"),
    [("gpu", "'cuda'"), ("cuad:1", "'cuda'"), ("CPU", "'cpu'"), ("cuda:x", "'cuda'"), ("", ""), ("meta", "")],
)
def test_what_is_no_device_is_refused_with_the_nearest_one(name: str, near: str) -> None:
    assert repr(name) in device_problem(name)
    assert near in device_problem(name)


@pytest.mark.parametrize("name", ["cuda:97", "npu", "mtia:3"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"this process has no {name}; it has cpu"):
        storage(name, None).check()


def test_a_device_that_is_there_is_not_refused() -> None:
    for name in ("cpu", None):
        storage(name, "bfloat16").check()


def test_the_stored_form_is_what_takes_memory() -> None:
    given = drawn(1, 64, 32)
    for name, size in (("bfloat16", 2), ("float16", 2), ("float8_e4m3fn", 1)):
        stored = storage(None, name).keep(given)
        assert isinstance(stored, Packed)
        assert stored.tensor.untyped_storage().nbytes() == size * given.numel()
        assert stored.scale is None or stored.scale.numel() == 1
