"""A gate that says that it will never skip again is believed: from then on the blocks only run, and are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import Decision, Gate, Place, Probe, Span, SpanBackend, Step, get_cache_backend
from dit_cache_backends.models import BlockList, Card, stack
from tests.engine.counting import executed
from tests.engine.runs import run_told, same
from tests.engine.strategies import PlanConfig
from tests.engine.toys import DIM, ONE, Toy, adds

STEPS = 10


class Tired(SpanBackend):
    """Skips every other step until step 5, and says then that it will not skip again; notes what it is asked."""

    name = "tired"
    Config = PlanConfig

    def __init__(self, *config: Any) -> None:
        super().__init__(*config)
        self.asked: list[tuple[str, str, int]] = []

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(1, depth)]

    def restarts(self, index: int, times: int) -> bool:
        return self.config.plan == "1" and index == 8

    def gate(self, place: Place) -> Gate:
        return TiredGate(self.asked, place)


class TiredGate(Gate):
    def __init__(self, asked: list[tuple[str, str, int]], place: Place) -> None:
        self._asked, self._place = asked, place

    def should_run(self, step: Step, probe: Probe) -> Decision:
        self._asked.append((self._place.stack, self._place.branch, step.run_index))
        if step.index < 5:
            return Decision(step.index % 2 == 0, "in turns")
        return Decision(True, "tired", store=False)


def _latents(seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"hidden_states": torch.randn(2, 4, DIM, generator=generator)} for _ in range(STEPS)]


@pytest.fixture
def tired() -> Tired:
    return Tired({"plan": "0"})


def test_the_blocks_run_and_are_counted_with_the_reason(tired: Tired) -> None:
    model = Toy(adds, adds, adds)
    tired.enable(model, card=ONE)
    with executed(model) as ran:
        run_told(tired, model, _latents(), "cond")
    rows = tired.summary().rows
    assert [row.blocks_skipped for row in rows] == [0, 2, 0, 2, 0, 0, 0, 0, 0, 0]
    assert sum(row.blocks_run for row in rows) == len(ran) == 3 * STEPS - 4
    assert [row.reason for row in rows[5:]] == ["tired"] * 5
    assert [row.step for row in rows] == list(range(STEPS))


def test_the_gate_is_not_asked_again(tired: Tired) -> None:
    model = Toy(adds, adds, adds)
    tired.enable(model, card=ONE)
    run_told(tired, model, _latents(), "cond")
    assert [step for _, _, step in tired.asked] == [0, 1, 2, 3, 4, 5]


def test_what_comes_out_then_is_what_the_plain_model_gives(tired: Tired) -> None:
    model = Toy(adds, adds, adds)
    plain = [model(**each)[0] for each in _latents()]
    tired.enable(model, card=ONE)
    assert same(run_told(tired, model, _latents(), "cond")[5:], plain[5:])


def test_nothing_is_held_any_more(tired: Tired) -> None:
    model = Toy(adds, adds, adds)
    tired.enable(model, card=ONE)
    held = []
    for step, latents in enumerate(_latents()):
        with tired.step(step, STEPS, "cond"):
            model(**latents)
        held.append(len(tired.held_tensors()))
    assert all(held[:5])
    assert not any(held[5:])


def test_the_next_generation_begins_anew(tired: Tired) -> None:
    model = Toy(adds, adds, adds)
    tired.enable(model, card=ONE)
    first = run_told(tired, model, _latents(), "cond")
    assert same(run_told(tired, model, _latents(), "cond"), first)
    assert tired.summary().cached_steps() == [1, 3]


def test_a_restart_within_a_generation_begins_anew() -> None:
    tired, model = Tired({"plan": "1"}), Toy(adds, adds, adds)
    tired.enable(model, card=ONE)
    run_told(tired, model, _latents(), "cond")
    assert tired.summary().cached_steps() == [1, 3, 9]


def test_another_branch_is_asked_for_itself(tired: Tired) -> None:
    model = Toy(adds, adds, adds)
    tired.enable(model, card=ONE)
    for step, latents in enumerate(_latents()):
        for branch in ("cond", "uncond")[: 1 if step < 4 else 2]:
            with tired.step(step, STEPS, branch):
                model(**latents)
    assert tired.summary().cached_steps(branch="uncond") == []
    assert [step for _, branch, step in tired.asked if branch == "uncond"] == [4, 5]


class TwoStacks(nn.Module):
    """Calls its second stack at some steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Toy(adds, adds), Toy(adds, adds)

    def forward(self, hidden_states: Tensor, both: bool) -> tuple[Tensor]:
        (out,) = self.first(hidden_states)
        return self.second(out) if both else (out,)


def test_a_stack_that_was_not_called_yet_is_asked_when_it_is_called() -> None:
    class SecondOnly(Tired):
        def gate(self, place: Place) -> Gate:
            return TiredGate(self.asked, place) if place.stack == "second.blocks" else Off()

    class Off(Gate):
        def should_run(self, step: Step, probe: Probe) -> Decision:
            return Decision(True, "off", store=False)

    lists = (
        BlockList(path, ("hidden_states",), "hidden_states") for path in ("first.blocks", "second.blocks")
    )
    card = Card("TwoStacks", tuple(stack(each) for each in lists), library=None)
    backend, model = SecondOnly({"plan": "0"}), TwoStacks().eval()
    backend.enable(model, card=card)
    for step, latents in enumerate(_latents()):
        with backend.step(step, STEPS, "cond"):
            model(both=step > 1, **latents)
    assert backend.summary().cached_steps(stack="second.blocks") == [3]


def test_a_threshold_of_0_asks_once_and_a_limit_that_is_reached_ends_the_asking() -> None:
    model = Toy(adds, adds, adds)
    config = {"max_warmup_steps": 1, "residual_diff_threshold": 1.0, "max_cached_steps": 2}
    backend = get_cache_backend("cache_dit", config)
    assert isinstance(backend, SpanBackend)
    backend.enable(model, card=ONE)
    run_told(backend, model, _latents(), "cond")
    rows = backend.summary().rows
    assert [row.step for row in rows if row.blocks_skipped] == [1, 2]
    assert {row.reason for row in rows[3:]} == {"max_cached_steps"}
