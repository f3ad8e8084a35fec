"""What holds for every predictor, whatever it foretells."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dit_cache_backends import DMD, Chebyshev, FoCa, Hermite, Newton, Predictor, TaylorSeer

from .series import PREDICTORS, SHAPE, at, combined, fed, rising, tensors

SERIES = combined(lambda t: 1.0, math.sin, lambda t: math.cos(0.3 * t), lambda t: 0.9**t)
EVERY = pytest.mark.parametrize("make", PREDICTORS.values(), ids=PREDICTORS)


@EVERY
@given(rising(1), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_asking_changes_no_answer(make: Callable[[], Predictor], steps: list[int], asked: list[int]) -> None:
    """Neither those to the same question, in any order, nor those after further observations."""
    curious, quiet = make(), make()
    for count, step in enumerate(steps):
        curious.observe(at(step), SERIES(step))
        quiet.observe(at(step), SERIES(step))
        first = [curious.predict(at(step + ahead)) for ahead in asked]
        second = [curious.predict(at(step + ahead)) for ahead in reversed(asked)]
        assert all(torch.equal(one, other) for one, other in zip(first, reversed(second), strict=True)), count
    ahead = at(steps[-1] + asked[0])
    assert torch.equal(curious.predict(ahead), quiet.predict(ahead))


@EVERY
def test_nothing_observed_is_an_error_that_names_the_predictor(make: Callable[[], Predictor]) -> None:
    with pytest.raises(RuntimeError, match=rf"{type(make()).__name__} .*before it had observed"):
        make().predict(at(3))


@EVERY
def test_observations_are_not_written_into(make: Callable[[], Predictor]) -> None:
    predictor = make()
    given = [SERIES(index) for index in range(8)]
    copies = [value.clone() for value in given]
    for index, value in enumerate(given):
        predictor.observe(at(index), value)
        predictor.predict(at(index + 2))
    assert all(torch.equal(value, copy) for value, copy in zip(given, copies, strict=True))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [SHAPE, (7,), (1, 3), (3, 0, 4)])
def test_shape_and_dtype_are_kept(
    make: Callable[[], Predictor], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    series = combined(math.sin, lambda t: 0.9**t, shape=shape)
    predictor = make()
    for index in range(8):
        predictor.observe(at(index), series(index).to(dtype))
        found = predictor.predict(at(index + 1))
        assert (found.dtype, found.shape) == (dtype, torch.Size(shape))
        assert found.isfinite().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_off_by_little_more_than_its_own_rounding(
    make: Callable[[], Predictor], dtype: torch.dtype
) -> None:
    """The same observations as float64 and as they came: beside the rounding of the result hardly a difference."""
    half, wide = make(), make()
    for index in range(8):
        value = SERIES(index).to(dtype)
        half.observe(at(index), value)
        wide.observe(at(index), value.double())
    expected = wide.predict(at(9))
    assert (
        float((half.predict(at(9)) - expected).abs().max() / expected.abs().max())
        <= 4 * torch.finfo(dtype).eps
    )


@EVERY
def test_each_sample_of_a_batch_is_foretold_as_it_were_alone(make: Callable[[], Predictor]) -> None:
    batch = fed(make(), SERIES, range(8)).predict(at(10))
    for sample in range(SHAPE[0]):
        alone = fed(make(), lambda index, sample=sample: SERIES(index)[sample : sample + 1], range(8))
        assert torch.allclose(batch[sample : sample + 1], alone.predict(at(10)), rtol=0, atol=1e-12)


@EVERY
@pytest.mark.parametrize("guard", ["autocast", "inference_mode", "default_dtype"])
def test_what_a_pipeline_switches_on_around_it_changes_nothing(
    make: Callable[[], Predictor], guard: str
) -> None:
    expected = fed(make(), SERIES, range(8)).predict(at(10))
    if guard == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = fed(make(), SERIES, range(8)).predict(at(10))
    elif guard == "inference_mode":
        with torch.inference_mode():
            found = fed(make(), SERIES, range(8)).predict(at(10))
    else:
        torch.set_default_dtype(torch.float16)
        try:
            found = fed(make(), SERIES, range(8)).predict(at(10))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


KEPT: list[tuple[Callable[[], Predictor], int]] = [
    *((lambda order=order: TaylorSeer(order), order + 1) for order in (1, 2, 5)),
    *((lambda order=order: Hermite(order), order + 1) for order in (1, 2, 5)),
    *((lambda order=order: Newton(order), order + 1) for order in (1, 2, 5)),
    (FoCa, 3),
    (DMD, 6),
    (lambda: DMD(history=9, precision="high"), 9),
    (Chebyshev, 8),
    (lambda: Chebyshev(window=3), 3),
]


@pytest.mark.parametrize(("make", "count"), KEPT)
def test_as_many_tensors_are_kept_as_it_says(make: Callable[[], Predictor], count: int) -> None:
    """The others, DMD's modes, are of the size of its history squared."""
    shape = (1, 64, 32)
    series = combined(math.sin, math.cos, shape=shape)
    predictor = fed(make(), series, range(0, 24, 2))
    predictor.predict(at(25))
    held = list(tensors(predictor))
    assert sum(tensor.shape == shape for tensor in held) == count
    others = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor.shape != shape)
    assert others <= 4096


def test_foca_keeps_two_tensors_between_neighbours() -> None:
    assert len(list(tensors(fed(FoCa(), SERIES, range(4))))) == 2


@pytest.mark.parametrize("name", [name for name in PREDICTORS if not name.startswith("dmd")])
def test_no_number_is_read_from_the_device(name: str) -> None:
    """Tensors on the meta device have none: whoever read one would fail."""
    predictor = PREDICTORS[name]()
    for index in (0, 1, 2, 3, 5, 6, 9, 10):
        predictor.observe(at(index), torch.empty(SHAPE, device="meta"))
        assert predictor.predict(at(index + 2)).device.type == "meta"


class Operations(TorchDispatchMode):
    """The names of the operations that were run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_dmd_fits_once_an_observation_and_only_if_asked() -> None:
    dmd = DMD()

    def decompositions(action: Callable[[], object]) -> int:
        with Operations() as run:
            action()
        return sum("eig" in name or "svd" in name for name in run.names)

    values: list[Tensor] = [SERIES(index) for index in range(8)]
    for index in range(7):
        assert decompositions(lambda index=index: dmd.observe(at(index), values[index])) == 0
    assert decompositions(lambda: dmd.predict(at(8))) > 0
    assert decompositions(lambda: [dmd.predict(at(index)) for index in (9, 10, 8)]) == 0
    assert decompositions(lambda: dmd.observe(at(7), values[7])) == 0
    assert decompositions(lambda: dmd.predict(at(8))) > 0
