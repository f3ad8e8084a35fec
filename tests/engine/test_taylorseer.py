"""TaylorSeer: exact where the residual is linear, by stream, for residuals and for outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import Step, TaylorSeer, enable_cache

from .counting import executed
from .runs import relative
from .toys import BOTH, ONE, Toy, ToyBlock, adds, image, text

STEPS = 14
EXACT = 1e-6


class Growing(ToyBlock):
    """Adds what grows with the time as ``rate(time)``, and no more."""

    time = 0.0
    rate: Callable[[float], float] = staticmethod(lambda time: 1 + 0.5 * time)

    def added_now(self, of: Tensor) -> Tensor:
        self.inner(of)  # only to be counted
        return self.rate(self.time) * torch.linspace(-1, 2, of.numel()).view_as(of)


def grows(block: Any, h: Tensor, e: Tensor | None) -> Any:
    out = h + block.added_now(h)
    return out if e is None else (out, e + block.added_now(e))


def squared(time: float) -> float:
    return 1 + 0.3 * time**2


def make(rate: Callable[[float], float] | None = None) -> Toy:
    """The first block runs and stands still, so that every step may be skipped; the others grow."""
    model = Toy(adds)
    model.blocks.extend(Growing(grows) for _ in range(3))
    if rate is not None:
        for block in model.blocks[1:]:
            block.rate = rate  # type: ignore[assignment]
    return model


def errors(model: Toy, *arguments: Tensor, both: bool = False, **options: Any) -> dict[int, float]:
    """The error of each skipped step."""
    plain = []
    for step in range(STEPS):
        set_time(model, step)
        plain.append(model(*arguments)[0])
    defaults: dict[str, Any] = {
        "residual_diff_threshold": 0.5,
        "max_warmup_steps": 4,
        "max_continuous_cached_steps": -1,
    }
    backend: Any = enable_cache(model, "cache_dit", card=BOTH if both else ONE, **(defaults | options))
    found: dict[int, float] = {}
    for step in range(STEPS):
        set_time(model, step)
        with backend.step(step, STEPS), executed(model) as ran:
            out = model(*arguments)[0]
        if len(ran) < 4:
            found[step] = relative(out, plain[step])
    backend.disable()
    return found


def set_time(model: Toy, step: int) -> None:
    for block in list(model.blocks)[1:]:
        block.time = float(step)


@pytest.mark.parametrize("kind", ["residual", "hidden_states"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_linear_residual_is_foretold_exactly_once_four_steps_were_seen(order: int, kind: str) -> None:
    seer: dict[str, Any] = {
        "enable_taylorseer": True,
        "taylorseer_order": order,
        "taylorseer_cache_type": kind,
    }
    found = errors(make(), image(), **seer)
    assert list(found) == list(range(4, STEPS))
    assert max(found.values()) <= EXACT
    reused = errors(make(), image())
    assert min(reused.values()) > 0.01


@pytest.mark.parametrize("order", [1, 2])
def test_uneven_gaps_between_the_steps_seen_leave_a_linear_residual_exact(order: int) -> None:
    found = errors(
        make(),
        image(),
        enable_taylorseer=True,
        taylorseer_order=order,
        steps_computation_mask="11010010010000",
        steps_computation_policy="static",
    )
    assert list(found) == [2, 4, 5, 7, 8, 10, 11, 12, 13]
    # The series begins with the first computed step that lies three steps after the first one.
    assert found[2] > 0.01
    assert max(error for step, error in found.items() if step > 3) <= EXACT


def test_fewer_than_four_steps_seen_are_plain_reuse() -> None:
    seen = errors(make(), image(), enable_taylorseer=True, max_warmup_steps=3)
    reused = errors(make(), image(), max_warmup_steps=3)
    assert seen == reused
    assert min(seen.values()) > 0.01


def test_order_0_is_plain_reuse() -> None:
    assert errors(make(), image(), enable_taylorseer=True, taylorseer_order=0) == errors(make(), image())


def test_a_higher_order_follows_a_curve_better() -> None:
    options: dict[str, Any] = {"enable_taylorseer": True, "max_warmup_steps": 6}
    plain = errors(make(squared), image(), max_warmup_steps=6)
    first = errors(make(squared), image(), taylorseer_order=1, **options)
    second = errors(make(squared), image(), taylorseer_order=2, **options)
    assert all(second[step] < first[step] < plain[step] for step in plain)


@pytest.mark.parametrize(("encoder", "exact"), [(True, True), (None, True), (False, False)])
def test_the_text_stream_is_foretold_or_reused_as_asked(encoder: bool | None, exact: bool) -> None:
    """The toy's result has the mean of the text in it."""
    found = errors(
        make_both(),
        image(),
        text(),
        both=True,
        enable_taylorseer=True,
        enable_encoder_taylorseer=encoder,
    )
    assert (max(found.values()) <= EXACT) == exact
    only_text = errors(
        make_both(), image(), text(), both=True, enable_taylorseer=False, enable_encoder_taylorseer=True
    )
    assert min(only_text.values()) > 0.01


def make_both() -> Toy:
    def first(block: ToyBlock, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        return h + block.added(h), e + block.text(e)

    model = Toy(first)
    model.blocks.extend(Growing(grows) for _ in range(3))
    return model


@pytest.mark.parametrize(("kind", "moves"), [("residual", True), ("hidden_states", False)])
def test_outputs_are_foretold_without_the_input_and_residuals_on_top_of_it(kind: str, moves: bool) -> None:
    model = make()
    backend: Any = enable_cache(
        model,
        "cache_dit",
        card=ONE,
        residual_diff_threshold=2.0,
        max_warmup_steps=1,
        enable_taylorseer=True,
        taylorseer_cache_type=kind,
    )
    with backend.step(0, STEPS):
        first = model(image())[0]
    with backend.step(1, STEPS):
        second = model(image(seed=7))[0]
    assert torch.equal(first, second) != moves


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    seer = TaylorSeer(2)
    for index in range(5):
        seer.observe(Step(index, 9, "0", index, 9), torch.full((2, 3), 1.0 + index, dtype=dtype))
    predicted = seer.predict(Step(7, 9, "0", 7, 9))
    assert predicted.dtype == dtype
    assert torch.equal(predicted, torch.full((2, 3), 8.0, dtype=dtype))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_terms_are_differences_over_factorials(order: int) -> None:
    """Of the cubes 0, 1, 8, ..., 216 the backward differences at 216 are 91, 30 and 6."""
    seer = TaylorSeer(order)
    for index in range(7):
        seer.observe(Step(index, 20, "0", index, 20), torch.tensor([float(index**3)], dtype=torch.float64))
    for distance in (1, 2, 5):
        terms = [216.0, 91.0 * distance, 30.0 * distance**2 / 2, 6.0 * distance**3 / 6]
        found = float(seer.predict(Step(6 + distance, 20, "0", 6 + distance, 20)))
        assert found == pytest.approx(sum(terms[: order + 1]))


def test_predicting_changes_nothing() -> None:
    seer = TaylorSeer(1)
    for index in range(4):
        seer.observe(Step(index, 9, "0", index, 9), torch.tensor([1.0 + index]))
    assert [float(seer.predict(Step(at, 9, "0", at, 9))) for at in (8, 5, 5, 8)] == [9.0, 6.0, 6.0, 9.0]


def test_a_forced_refresh_forgets_the_series() -> None:
    found = errors(make(), image(), enable_taylorseer=True, force_refresh_step_hint=7, max_warmup_steps=2)
    assert list(found) == [2, 3, 4, 5, 6, 9, 10, 11, 12, 13]
    # Two steps are seen at a time, so there never is a series to go on with.
    assert min(found.values()) > 0.01


def test_the_second_order_term_is_half_the_square_of_the_distance() -> None:
    seer = TaylorSeer(order=2)
    values = {step: torch.tensor([float(step) ** 3]) for step in range(6)}
    for index, value in values.items():
        seer.observe(Step(index, None, "cond", index, None), value)
    # By hand: differences of step cubed at steps 3, 4 and 5, where the ladder has all its rungs.
    first, second = 125.0 - 64.0, (125.0 - 64.0) - (64.0 - 27.0)
    for distance in (1, 2, 3):
        expected = 125.0 + first * distance + second * distance**2 / 2
        index = 5 + distance
        assert seer.predict(Step(index, None, "cond", index, None)).item() == expected
