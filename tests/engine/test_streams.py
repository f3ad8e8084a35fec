"""Streams go in by position or by name, come out bare or in any order, and may be missing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import Card, CardError
from dit_cache_conformance.tiny import build

from .counting import executed
from .runs import STILL, relative
from .strategies import LAYOUTS, always, planned
from .toys import (
    BOTH,
    ONE,
    E,
    H,
    Move,
    Toy,
    adds,
    adds_to_both,
    adds_to_both_in_a_list,
    card,
    drops_the_text,
    halves_the_precision,
    image,
    leaves_the_text,
    makes_a_text,
    passes_on,
    text,
)


def flipped(block: Any, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Main stream second, as in FLUX."""
    return adds_to_both(block, h, e)[::-1]


class FlippedToy(Toy):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> tuple[Tensor]:
        h: Any = hidden_states.clone()
        e: Any = encoder_hidden_states
        for block in self.blocks:
            e, h = block(h, encoder_hidden_states=e)
        return (h + e.mean(1, keepdim=True),)


def check(model: Toy, toy_card: Card, layout: str, *arguments: Tensor | None) -> None:
    plain = model(*arguments)[0]
    backend = always(layout)
    backend.enable(model, card=toy_card)
    depth = len(model.blocks)
    skipped = sum(span.stop - span.start for span in LAYOUTS[layout](depth)) * model.passes
    for step in range(3):
        with backend.step(step, 9), executed(model) as ran:
            found = model(*arguments)[0]
        assert found.dtype == plain.dtype
        assert relative(found, plain) <= STILL, step
        assert len(ran) == depth * model.passes - (skipped if step else 0), step


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keywords", [False, True], ids=["by position", "by name"])
def test_streams_are_found_by_position_and_by_name(layout: str, keywords: bool) -> None:
    check(Toy(*[adds_to_both] * 4, keywords=keywords), BOTH, layout, image(), text())
    check(Toy(*[adds] * 4, keywords=keywords), ONE, layout, image())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("move", [adds_to_both, adds_to_both_in_a_list, leaves_the_text])
def test_blocks_may_return_tuples_lists_and_the_very_tensor_they_got(layout: str, move: Move) -> None:
    check(Toy(*[move] * 4), BOTH, layout, image(), text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_main_stream_may_come_out_second(layout: str) -> None:
    check(FlippedToy(*[flipped] * 4), card((H, E), (E, H)), layout, image(), text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_streams_of_equal_shape_are_not_confused(layout: str) -> None:
    check(FlippedToy(*[flipped] * 4), card((H, E), (E, H)), layout, image(), text(tokens=4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_last_block_may_return_none_for_a_stream(layout: str) -> None:
    check(Toy(adds_to_both, adds_to_both, adds_to_both, drops_the_text), BOTH, layout, image(), text())


def test_the_last_block_of_sd3_returns_none_for_the_text_and_is_skipped_all_the_same() -> None:
    tiny = build("sd3")
    backend = always("whole")
    backend.enable(tiny.pipe)
    with executed(tiny.pipe.transformer) as ran:
        assert bool(tiny.run(5).isfinite().all())
    assert len(ran) == 7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stack_that_runs_twice_in_one_forward_keeps_its_passes_apart(layout: str) -> None:
    check(Toy(*[adds] * 4, passes=2), ONE, layout, image())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_block_may_hand_its_input_on_untouched(mode: Any) -> None:
    with mode():
        check(Toy(adds, passes_on, adds, adds), ONE, "one block each", image())


def test_a_stream_that_begins_within_a_span_is_kept_or_refused() -> None:
    with suppress(CardError):
        check(Toy(*[makes_a_text] * 4), BOTH, "whole", image(), None)


def test_a_skip_keeps_the_dtype_that_the_last_block_gives() -> None:
    model = Toy(adds, adds, adds, halves_the_precision)
    backend = always("whole")
    backend.enable(model, card=ONE)
    dtypes = []
    for step in range(2):
        with backend.step(step, 9):
            dtypes.append(model(image())[0].dtype)
    assert dtypes == [torch.bfloat16, torch.bfloat16]


def test_the_double_and_the_single_blocks_of_flux_are_one_stack() -> None:
    tiny = build("flux")
    backend = planned("10")
    backend.enable(tiny.pipe)
    with executed(tiny.pipe.transformer) as ran:
        tiny.run(2)
        assert ran.take()[12:] == [("transformer_blocks", 0)]
    assert {row.stack for row in backend.summary().rows} == {"transformer_blocks"}


def test_the_two_stacks_of_hunyuan_video_are_two() -> None:
    tiny = build("hunyuan_video")
    backend = planned("10")
    backend.enable(tiny.pipe)
    with executed(tiny.pipe.transformer) as ran:
        tiny.run(2)
        assert ran.take()[8:] == [("transformer_blocks", 0), ("single_transformer_blocks", 0)]
    rows = [(row.stack, row.step, row.blocks_run, row.blocks_skipped) for row in backend.summary().rows]
    assert rows == [
        ("transformer_blocks", 0, 3, 0),
        ("single_transformer_blocks", 0, 5, 0),
        ("transformer_blocks", 1, 1, 2),
        ("single_transformer_blocks", 1, 1, 4),
    ]


@pytest.mark.parametrize("steps", [4, 5, 9])
def test_the_first_call_of_each_expert_runs_in_full(steps: int) -> None:
    tiny = build("wan22")
    backend = planned("10")
    backend.enable(tiny.pipe)
    experts = tiny.transformers
    with executed(experts["transformer"]) as first, executed(experts["transformer_2"]) as second:
        tiny.run(steps)
    boundary = int((tiny.pipe.scheduler.timesteps >= 600).sum())
    # Two branches: each runs its 6 blocks once, and only the first of them from then on.
    assert len(first) == 2 * (6 + boundary - 1)
    assert len(second) == 2 * (6 + steps - boundary - 1)
