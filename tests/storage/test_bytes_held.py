"""How much is held: what DBCache with TaylorSeer holds of each branch, to the byte, and nothing after a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from .runs import made, run

MAIN = {"flux": 16 * 32 * 4, "wan": 24 * 32 * 4}
"""Bytes of the denoised stream: so many tokens of 32 channels in float32."""
TEXT = {"flux": 8 * 32 * 4, "wan": 0}
"""Of the stream beside it. Wan's blocks hand theirs on as it came in, so that there is nothing to be kept of it."""
BRANCHES = 2
DBCACHE: dict[str, Any] = {"residual_diff_threshold": 0.5, "max_warmup_steps": 6, "calibrator": "taylorseer"}


class Bytes:
    """What is held after each call; what several tensors share counts once."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def __call__(self, held: Sequence[Tensor]) -> None:
        storages = [tensor.untyped_storage() for tensor in held]
        self.found.append(sum({each.data_ptr(): each.nbytes() for each in storages}.values()))


def most(model: str, **options: Any) -> int:
    held = Bytes()
    run(made("cache_dit", **{**DBCACHE, **options}), model, held, steps=10)
    assert held.found[-1] == 0
    return max(held.found)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("model", ["flux", "wan"])
def test_one_reference_and_order_plus_one_of_each_stream_that_changes(
    model: str, order: int, first: int
) -> None:
    """The reference is what the first blocks add to the denoised stream, however many they are."""
    branch = MAIN[model] + (order + 1) * (MAIN[model] + TEXT[model])
    assert most(model, taylorseer_order=order, Fn_compute_blocks=first) == BRANCHES * branch


@pytest.mark.parametrize("model", ["flux", "wan"])
def test_no_reference_is_held_where_nothing_is_compared(model: str) -> None:
    masked = {"steps_computation_mask": "1111111000", "steps_computation_policy": "static"}
    assert most(model, taylorseer_order=1, **masked) == BRANCHES * 2 * (MAIN[model] + TEXT[model])


@pytest.mark.parametrize(("dtype", "share", "scales"), [("bfloat16", 2, 0), ("float8_e4m3fn", 4, 1)])
@pytest.mark.parametrize("model", ["flux", "wan"])
def test_a_narrower_dtype_takes_its_share_and_four_bytes_for_a_scale(
    model: str, dtype: str, share: int, scales: int
) -> None:
    tensors = 1 + 2 * (2 if TEXT[model] else 1)
    whole = MAIN[model] + 2 * (MAIN[model] + TEXT[model])
    assert most(model, taylorseer_order=1, cache_dtype=dtype) == BRANCHES * (
        whole // share + 4 * scales * tensors
    )
