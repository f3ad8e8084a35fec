"""A span that was left is done with: its tensors go, and a model that comes back to it gets no wrong one."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends.engine import foretold
from dit_cache_backends.strategies.dbprune import DBPrune
from dit_cache_backends.summary import Row

from .runs import kinds, same
from .strategies import always, planned
from .toys import BOTH, ONE, Toy, adds, adds_to_both, image, leaves_the_text, text

BLOCKS = 8
PRUNE = {"residual_diff_threshold": 0.3, "max_warmup_steps": 1, "Fn_compute_blocks": 0}


class Watched(Toy):
    """Notes how many of the streams that its blocks were given are still alive when the last block is reached."""

    alive = 0

    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        h, seen = hidden_states.clone(), []
        for block in self.blocks:
            seen.append(weakref.ref(h))
            self.alive = sum(each() is not None for each in seen)
            h = block(h)
        return (h,)


@pytest.mark.parametrize("plan", ["11", "10"])
def test_a_forward_does_not_hold_the_streams_of_every_span_to_its_end(plan: str) -> None:
    model = Watched(*[adds] * BLOCKS)
    model(image())
    plain = model.alive
    backend = planned(plan, "one block each")
    backend.enable(model, card=replace(ONE, transformer="Watched"))
    for index in range(2):
        with backend.step(index, 9):
            model(image())
    assert bool(backend.summary().rows[-1].blocks_skipped) == (plan == "10")
    # The stack's entry is kept, for gates that look at it.
    assert model.alive <= plain + 1


def pruned(model: Toy, row: Any, *more: Tensor) -> tuple[list[Tensor], list[list[int]], list[float]]:
    """What dbprune makes of a run that moves: outputs, the blocks that it skipped, the differences."""
    backend = DBPrune(PRUNE)
    backend.enable(model, card=row)
    outputs = []
    for index in range(8):
        with backend.step(index, 9, "cond"):
            outputs.append(model(image() * (1 + index / 15), *more)[0])
    rows = backend.summary().rows
    backend.disable()
    return outputs, [row.skipped for row in rows], [each for row in rows for each in row.differences]


@pytest.mark.parametrize("bound", [0, 300, 700])
def test_how_much_is_kept_of_what_was_made_ahead_changes_no_bit(
    bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, skipped, differences = pruned(Toy(*[adds_to_both] * BLOCKS), BOTH, text())
    assert any(len(each) > 2 for each in skipped)
    monkeypatch.setattr(foretold, "READY_BYTES", bound)
    less = pruned(Toy(*[adds_to_both] * BLOCKS), BOTH, text())
    assert same(less[0], outputs)
    assert less[1:] == (skipped, differences)


class ChangesTheText(Toy):
    """Changes the text between two blocks: by writing into it, or by another tensor."""

    def __init__(self, *moves: Any, writes: bool = True) -> None:
        super().__init__(*moves)
        self.writes = writes

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        h, e = hidden_states.clone(), encoder_hidden_states.clone()
        for number, block in enumerate(self.blocks):
            h, e = block(h, e)
            if number == BLOCKS // 2:
                e = e.mul_(1.25) if self.writes else e * 1.25
        return (h + e.mean(1, keepdim=True),)


@pytest.mark.parametrize("writes", [True, False])
def test_a_text_that_the_model_changes_between_skipped_blocks_goes_on_changed(
    writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(BOTH, transformer="ChangesTheText")
    outputs, skipped, _ = pruned(ChangesTheText(*[adds_to_both] * BLOCKS, writes=writes), row, text())
    assert any({BLOCKS // 2, BLOCKS // 2 + 1} <= set(each) for each in skipped)
    monkeypatch.setattr(foretold, "READY_BYTES", 0)
    made_again = pruned(ChangesTheText(*[adds_to_both] * BLOCKS, writes=writes), row, text())
    assert same(outputs, made_again[0])


class CallsTheLastTwice(Toy):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        h = hidden_states.clone()
        for block in [*self.blocks, self.blocks[-1]]:
            h = block(h)
        return (h,)


@pytest.mark.parametrize("layout", ["whole", "one block each"])
def test_a_span_that_is_come_back_to_after_it_was_left_runs(layout: str) -> None:
    model = CallsTheLastTwice(*[adds] * 4)
    expected = [model(image(seed=seed))[0] for seed in range(3)]
    backend = always(layout)
    backend.enable(model, card=replace(ONE, transformer="CallsTheLastTwice"))
    found = []
    for index in range(3):
        with backend.step(index, 9):
            found.append(model(image(seed=index))[0])
    assert same(found, expected)
    assert kinds(backend)["forward_repeated"] == 2


@pytest.mark.parametrize("numbers", [[0], [3], [0, 1, 2], [2, 3, 4, 5], [0, 2, 3, 60], [5, 9]])
def test_a_row_counts_the_blocks_of_a_skipped_span(numbers: list[int]) -> None:
    row = Row("transformer", "blocks", "cond", 0, None)
    row.skip(sum(1 << number for number in numbers))
    row.skip(1 << 61)
    assert row.skipped == [*numbers, 61]
    assert row.blocks_skipped == len(numbers) + 1


def test_a_named_argument_that_is_left_to_its_default_is_handed_on_as_none() -> None:
    model = Toy(*[lambda block, h, e: (adds(block, h, e), e)] * 4, keywords=True)
    backend = always("whole")
    backend.enable(model, card=BOTH)
    outputs = []
    for index in range(3):
        with backend.step(index, 9), torch.no_grad():
            outputs.append(model(image())[0])
    assert backend.summary().blocks_skipped == 8
    assert float((outputs[1] - outputs[0]).abs().max()) <= 1e-6


def test_a_stream_without_versions_may_be_handed_on_by_pruned_blocks() -> None:
    """In inference mode the text that no block changes is a tensor of which nobody counts the writes."""
    outputs, skipped, _ = pruned(Toy(*[leaves_the_text] * BLOCKS), BOTH, text())
    assert any(len(each) > 2 for each in skipped)
    with torch.inference_mode():
        found = pruned(Toy(*[leaves_the_text] * BLOCKS), BOTH, text())
    assert same(found[0], outputs)
    assert found[1] == skipped
