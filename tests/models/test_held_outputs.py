"""What a block gives beside its streams is handed out again when it is skipped: WanVACE's hints, and toys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import BlockList, Card, CardError, stack
from dit_cache_backends.models import card_for
from dit_cache_conformance.tiny import build_transformer, transformer_inputs

from ..engine.counting import executed
from ..engine.runs import STILL, kinds, output, relative
from ..engine.strategies import LAYOUTS, always, planned
from ..engine.toys import DIM, image

pytestmark = pytest.mark.usefixtures("as_in_a_run")

MODES = [torch.no_grad, torch.inference_mode]
HINTS, MAIN = "vace_blocks", "blocks"
FOLLOWED = 0.9


def vace(*stacks: str) -> tuple[Any, Card]:
    """A tiny WanVACE and a card that names these of its two lists."""
    model = build_transformer("wan_vace")
    whole = card_for(model)
    return model, replace(whole, stacks=tuple(each for each in whole.stacks if each.name in stacks))


def moment(step: int = 0) -> dict[str, Any]:
    """The latents and what controls them move; the time stands still."""
    arguments = transformer_inputs("wan_vace", step=step, total=10**9)
    arguments["control_hidden_states"] = arguments["control_hidden_states"] * (1 + 0.05 * step)
    return arguments


@contextmanager
def hints_of(model: Any, instead: list[Tensor] | None = None) -> Iterator[list[Tensor]]:
    """The hints that the blocks give within, or, where others are given, those in their place."""
    seen: list[Tensor] = []

    def note(number: int) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> Any:
            seen.append(out[0])
            return None if instead is None else (instead[number], out[1])

        return hook

    hooks = [block.register_forward_hook(note(number)) for number, block in enumerate(model.vace_blocks)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stacks", [(HINTS,), (MAIN,), (HINTS, MAIN)], ids="+".join)
def test_each_list_can_be_skipped_alone_and_both_together(
    stacks: tuple[str, ...], layout: str, mode: Any
) -> None:
    model, card = vace(*stacks)
    depths = {HINTS: 4, MAIN: 6}
    spans = {name: LAYOUTS[layout](depths[name]) for name in stacks}
    skipped = sum(span.stop - span.start for each in spans.values() for span in each)
    backend = always(layout)
    with mode():
        plain, moved = output(model, moment()), output(model, moment(10))
        backend.enable(model, card=card)
        with executed(model) as ran:
            for step in range(3):
                with backend.step(step, 9):
                    assert relative(output(model, moment()), plain) <= (STILL if step else 0)
                assert len(ran.take()) == 10 - (skipped if step else 0)
            with backend.step(3, 9):
                followed = output(model, moment(10))
    assert float((followed - moved).norm() / (plain - moved).norm()) < FOLLOWED


@pytest.mark.parametrize("mode", MODES)
def test_every_skipped_block_hands_out_the_very_hint_of_its_last_run(mode: Any) -> None:
    model, card = vace(HINTS)
    with mode():
        with hints_of(model) as old:
            output(model, moment())
        kept = list(old)
        assert len(kept) == 4
        assert not any(torch.equal(one, other) for one, other in pairwise(kept))
        with hints_of(model, instead=kept):
            expected = output(model, moment(10))
        backend = planned("1100", "whole")
        backend.enable(model, card=card)
        for step in range(2):
            with backend.step(step, 9):
                output(model, moment(10 - 10 * step))
        for step in range(2, 5):
            with backend.step(step, 9):
                assert torch.equal(output(model, moment(10)), expected), step


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_outside_the_span_give_the_hints_of_now(layout: str) -> None:
    model, card = vace(HINTS)
    inside = [number for span in LAYOUTS[layout](4) for number in range(span.start, span.stop)]
    with hints_of(model) as old:
        output(model, moment())
    backend = always(layout)
    backend.enable(model, card=card)
    for step in range(2):
        with backend.step(step, 9), hints_of(model) as ran:
            output(model, moment(10 * step))
    assert len(ran) == 4 - len(inside)
    for number, hint in zip([number for number in range(4) if number not in inside], ran, strict=True):
        assert hint.shape == old[number].shape
        assert not torch.equal(hint, old[number])


def test_the_scale_of_each_hint_is_that_of_the_step_at_hand() -> None:
    model, card = vace(HINTS)
    still, other = moment(), moment()
    other["control_hidden_states_scale"] = torch.tensor([0.3, 1.0, 0.0, 2.0])
    expected = output(model, other)
    backend = always("whole")
    backend.enable(model, card=card)
    for step, arguments in enumerate([still, other]):
        with backend.step(step, 9):
            found = output(model, arguments)
    assert relative(found, expected) <= STILL


def run(model: Any, card: Card, steps: int = 2) -> None:
    backend = always("whole")
    try:
        backend.enable(model, card=card)
        for step in range(steps):
            with backend.step(step, 9):
                output(model, moment(10 * step))
    finally:
        backend.disable()


STREAM = "control_hidden_states"


@pytest.mark.parametrize("gives", [STREAM, (STREAM,), (STREAM, "=hint"), ("=hint", STREAM, "=more")], ids=str)
def test_a_card_that_has_the_hint_in_another_place_is_refused(gives: Any) -> None:
    model, card = vace(HINTS)
    plain = output(model, moment())
    blocks = replace(card.stacks[0].lists[0], gives=gives)
    with pytest.raises(CardError, match="`gives`"):
        run(model, replace(card, stacks=(stack(blocks),)))
    assert torch.equal(output(model, moment()), plain)


class Gives(nn.Module):
    def __init__(self, nothing: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        self.nothing = nothing

    def forward(self, hidden_states: Tensor) -> Any:
        out = hidden_states + torch.tanh(self.inner(hidden_states))
        return out * 2, out, None if self.nothing else "a word"


class Collects(nn.Module):
    """Adds up what its blocks give beside the stream, and may write into that, as a model may."""

    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Gives(number == 2) for number in range(5))
        self.writes = writes
        self.order: tuple[int, ...] = (0, 1, 2, 3, 4)

    def forward(self, hidden_states: Tensor) -> Any:
        side: Any = 0
        for number in self.order:
            given, hidden_states, word = self.blocks[number](hidden_states)
            assert word == (None if number == 2 else "a word")
            if self.writes:
                given.mul_(0.5 + number)
            side = side + given
        return (hidden_states + side,)


COLLECTS = Card(
    "Collects",
    (stack(BlockList("blocks", ("hidden_states",), ("=side", "hidden_states", "=word"))),),
    library=None,
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("writes", [False, True])
def test_what_is_handed_out_stays_as_it_was_although_the_model_writes_into_it(
    writes: bool, layout: str, mode: Any
) -> None:
    model, still = Collects(writes), {"hidden_states": image()}
    with mode():
        plain = output(model, still)
        backend = always(layout)
        backend.enable(model, card=COLLECTS)
        for step in range(5):
            with backend.step(step, 9):
                assert relative(output(model, still), plain) <= STILL, step


@pytest.mark.parametrize("layout", ["whole", "all but the first", "all but both ends"])
def test_a_block_that_was_not_called_when_the_span_ran_has_the_forward_made_again(layout: str) -> None:
    model, still = Collects(), {"hidden_states": image()}
    backend = always(layout)
    backend.enable(model, card=COLLECTS)
    orders = [(0, 1, 3, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (0, 1, 4), (1, 2, 3, 4)]
    for step, order in enumerate(orders):
        plainly = Collects()
        model.order = plainly.order = order
        with backend.step(step, 9):
            assert relative(output(model, still), output(plainly, still)) <= STILL, order
    assert kinds(backend)["forward_repeated"] >= 2


def test_another_batch_never_gets_the_hints_of_the_one_before() -> None:
    model, card = vace(HINTS, MAIN)
    one, two = (transformer_inputs("wan_vace", batch=batch) for batch in (1, 2))
    plain = [output(model, arguments) for arguments in (one, two)]
    backend = always("whole")
    backend.enable(model, card=card)
    for step, number in enumerate([0, 1, 1, 0, 0]):
        with backend.step(step, 9):
            assert relative(output(model, (one, two)[number]), plain[number]) <= STILL
    assert kinds(backend)["shape_changed"] == 4


def test_hints_are_held_within_a_run_and_dropped_with_it() -> None:
    model, card = vace(HINTS, MAIN)
    backend = always("whole")
    backend.enable(model, card=card)
    with hints_of(model) as hints, backend.step(0, 3):
        output(model, moment())
    held = backend.held_tensors()
    for hint in hints:
        assert any(tensor.shape == hint.shape and torch.equal(tensor, hint) for tensor in held)
    for step in (1, 2):
        with backend.step(step, 3):
            output(model, moment())
    assert not backend.held_tensors()
