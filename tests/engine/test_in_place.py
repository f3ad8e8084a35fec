"""Blocks that write into what they are given: refused where the card does not say so, right where it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_backends import Card, CardError, enable_cache

from .counting import executed
from .runs import STILL, relative
from .strategies import LAYOUTS, always
from .toys import (
    BOTH,
    ONE,
    E,
    H,
    Move,
    Toy,
    adds,
    adds_to_both,
    card,
    image,
    text,
    writes_and_copies,
    writes_into,
    writes_into_the_text,
)

MODES = [torch.no_grad, torch.inference_mode]


def still(model: Toy, toy_card: Card, layout: str, *arguments: Any) -> list[float]:
    """The errors of a run that stands still, after the first step."""
    plain = model(*arguments)[0]
    backend = always(layout)
    backend.enable(model, card=toy_card)
    errors = []
    for step in range(4):
        with backend.step(step, 9), executed(model) as ran:
            errors.append(relative(model(*arguments)[0], plain))
        assert (len(ran) < len(model.blocks)) == (step > 0)
    return errors


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("move", [writes_into, writes_and_copies])
def test_a_model_that_writes_into_its_main_stream_is_right_with_a_card_that_says_so(
    move: Move, layout: str, mode: Any
) -> None:
    with mode():
        model = Toy(move, move, move, move)
        errors = still(model, card(writes_in_place=True), layout, image())
    assert errors[0] == 0
    assert max(errors) <= STILL


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_is_one_that_writes_into_another_stream(layout: str, mode: Any) -> None:
    with mode():
        model = Toy(*[writes_into_the_text] * 4)
        errors = still(model, card((H, E), (H, E), writes_in_place=True), layout, image(), text())
    assert errors[0] == 0
    assert max(errors) <= STILL


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("move", [writes_into, writes_and_copies, writes_into_the_text])
def test_without_such_a_card_it_is_refused(move: Move, mode: Any, layout: str) -> None:
    both = move is writes_into_the_text
    with mode():
        model = Toy(move, move, move, move)
        with pytest.raises(CardError, match="writes_in_place") as caught:
            still(model, BOTH if both else ONE, layout, image(), *([text()] if both else []))
    assert "Toy.blocks" in str(caught.value)


@pytest.mark.parametrize("mode", MODES)
def test_the_first_blocks_of_a_span_may_be_the_only_ones_that_write(mode: Any) -> None:
    with mode(), pytest.raises(CardError, match="writes_in_place"):
        still(Toy(writes_into, adds, adds, adds), ONE, "whole", image())
    with mode():
        errors = still(Toy(writes_into, adds, adds, adds), card(writes_in_place=True), "whole", image())
    assert max(errors) <= STILL


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["residual", "hidden_states"])
def test_an_output_that_is_kept_is_safe_from_blocks_that_write_behind_the_span(
    kind: str, layout: str, mode: Any
) -> None:
    with mode():
        model = Toy(*[writes_into] * 4)
        plain = model(image())[0]
        backend: Any = enable_cache(
            model,
            "cache_dit",
            card=card(writes_in_place=True),
            Bn_compute_blocks=1,
            residual_diff_threshold=2.0,
            max_warmup_steps=1,
            max_continuous_cached_steps=-1,
            enable_taylorseer=True,
            taylorseer_cache_type=kind,
        )
        for step in range(5):
            with backend.step(step, 9):
                assert relative(model(image())[0], plain) <= STILL, step
    assert backend.summary().cached_steps() == [1, 2, 3, 4]


@pytest.mark.parametrize("mode", MODES)
def test_the_difference_of_a_model_that_writes_is_taken_from_what_came_in(mode: Any) -> None:
    """Compared with itself after the write, the first block would seem to add nothing: 0/0, and never a skip."""
    with mode():
        expected = differences(Toy(*[adds] * 4), ONE)
        found = differences(Toy(*[writes_into] * 4), card(writes_in_place=True))
    assert found == pytest.approx(expected)
    assert expected
    assert all(0 < value < 1 for value in expected.values())


def differences(model: Toy, toy_card: Card) -> dict[int, float]:
    backend: Any = enable_cache(
        model, "cache_dit", card=toy_card, residual_diff_threshold=0.9, max_warmup_steps=1
    )
    for step in range(4):
        with backend.step(step, 9):
            model(image() + 0.1 * step * image(seed=5))
    backend.disable()
    found: dict[int, float] = backend.summary().diffs()
    return found


def test_a_model_that_does_not_write_is_not_accused() -> None:
    for layout in LAYOUTS:
        for mode in MODES:
            with mode():
                assert max(still(Toy(*[adds_to_both] * 4), BOTH, layout, image(), text())) <= STILL
