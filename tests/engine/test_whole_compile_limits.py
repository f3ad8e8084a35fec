"""What cannot be compiled as a whole with a backend enabled: refused with fullgraph=True, else compiled in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from dit_cache_backends import BlockList, Card, CardError, Decision, Gate, Place, Probe, Step, stack
from dit_cache_backends.errors import CompileError

from .compiling import KNOWN, MEASURED, Graphs, breaks, by_function, by_method, fresh, measuring, stepped
from .runs import same
from .strategies import Planned, planned
from .toys import BOTH, DIM, ONE, E, H, Toy, ToyBlock, adds, adds_to_both, text, writes_into

STEPS = 6
PLAN = "101100"


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    fresh()
    yield
    fresh()


def images(count: int = 1) -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(1)
    more = (text(),) if count == 2 else ()
    return [(torch.randn(2, 4, DIM, generator=generator), *more) for _ in range(STEPS)]


def single(plan: str) -> Planned:
    return planned(plan, "one block each")


def through_flex(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    heads = block.inner(h)[:, None]
    return h + flex_attention(heads, heads, heads)[:, 0]


def hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda module, args, out: (out[0] * 2,))
    return model


CASES: dict[str, tuple[Callable[[], Any], Callable[[str], Planned], str]] = {
    "a span for each block": (lambda: Toy(adds, adds, adds), single, "several spans in a stack"),
    "a stack run through twice": (lambda: Toy(adds, adds, adds, passes=2), planned, "several times"),
    "forward hooks": (lambda: hooked(Toy(adds, adds, adds)), measuring, "forward hooks"),
    "notes lost behind flex attention": (
        lambda: Toy(through_flex, through_flex, adds),
        measuring,
        "flex attention",
    ),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
def test_without_fullgraph_it_is_as_in_the_eager_model_and_with_it_the_error_says_what_to_do(
    case: str,
) -> None:
    make, strategy, reason = CASES[case]
    run = images()
    eager = strategy(PLAN)
    model = make()
    eager.enable(model, card=ONE)
    outputs = stepped(eager, model, run, Graphs())[0]
    for how in (by_method, by_function):
        backend = strategy(PLAN)
        called = how(make(), Graphs(), False)
        backend.enable(called, card=ONE)
        assert same(stepped(backend, called, run, Graphs())[0], outputs)
        assert backend.summary().rows == eager.summary().rows
    backend = strategy(PLAN)
    called = by_function(make(), Graphs(), True)
    backend.enable(called, card=ONE)
    with pytest.raises(CompileError, match=rf"{reason}.*compile_repeated_blocks"), backend.step(0, STEPS):
        called(*run[0])
    backend.disable()
    assert torch.equal(called(*run[0])[0], make()(*run[0])[0])


def test_blocks_that_do_not_fit_their_card_are_refused_before_a_graph_is_made() -> None:
    graphs, backend = Graphs(), measuring(PLAN)
    called = by_function(Toy(adds, writes_into, adds), graphs, True)
    backend.enable(called, card=ONE)
    with pytest.raises(CardError, match="writes_in_place"), backend.step(0, STEPS):
        called(*images()[0])
    assert graphs.compiled == 0


PAIR = Card(
    "Toy",
    (
        stack(BlockList("blocks", (H, E), (H, E), (0, 3))),
        stack(BlockList("blocks", (H, E), (H, E), (3, None))),
    ),
    library=None,
)


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_of_two_stacks_each_is_decided_behind_the_one_before(strategy: Any) -> None:
    run = images(2)
    eager, backend, graphs = strategy(PLAN), strategy(PLAN), Graphs()
    model = Toy(*(adds_to_both,) * 6)
    eager.enable(model, card=PAIR)
    outputs = stepped(eager, model, run, graphs)[0]
    called = by_function(Toy(*(adds_to_both,) * 6), graphs, True)
    backend.enable(called, card=PAIR)
    found, counts = stepped(backend, called, run, graphs)
    assert same(found, outputs)
    assert backend.summary().rows == eager.summary().rows
    computed = 1 if strategy is KNOWN else 3
    assert counts == [1, 1, computed, computed, 1, 1]
    assert breaks() == 0


class Leaving(Toy):
    """Leaves out the blocks it is told to, as SD3 does for skip-layer guidance."""

    def forward(self, hidden_states: Tensor, leave: tuple[str, ...] = ()) -> tuple[Tensor]:  # type: ignore[override]
        h = hidden_states
        for number, block in enumerate(self.blocks):
            if str(number) not in leave:
                h = block(h)
        return (h,)


def test_a_step_in_which_the_model_calls_other_blocks_is_made_again_in_full() -> None:
    run = images()
    # Names, as torch 2.13 takes one number in a tuple for another, with no backend enabled either.
    leaves: list[tuple[str, ...]] = [(), (), ("2",), ("2",), (), ("1",)]
    arguments = [(one[0], leave) for one, leave in zip(run, leaves, strict=True)]
    eager, backend, graphs = planned("100010"), planned("100010"), Graphs()
    model = Leaving(*(adds,) * 4)
    eager.enable(model, card=ONE)
    outputs = stepped(eager, model, arguments, graphs)[0]
    called = by_function(Leaving(*(adds,) * 4), graphs, True)
    backend.enable(called, card=ONE)
    assert same(stepped(backend, called, arguments, graphs)[0], outputs)
    assert backend.summary().rows == eager.summary().rows
    events = [(event.kind, event.count) for event in backend.summary().events]
    assert events == [(event.kind, event.count) for event in eager.summary().events]
    assert "forward_repeated" in dict(events)


class Cutting(Toy):
    """How many tokens run through its blocks is said by a number."""

    def forward(self, hidden_states: Tensor, tokens: int = 4) -> tuple[Tensor]:  # type: ignore[override]
        h = hidden_states[:, :tokens]
        for block in self.blocks:
            h = block(h)
        return (h,)


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_a_change_of_shape_that_no_argument_has_is_noticed(strategy: Any) -> None:
    arguments = [(one[0], tokens) for one, tokens in zip(images(), (4, 4, 2, 2, 3, 3), strict=True)]
    eager, backend, graphs = strategy("100000"), strategy("100000"), Graphs()
    model = Cutting(*(adds,) * 4)
    eager.enable(model, card=ONE)
    outputs = stepped(eager, model, arguments, graphs)[0]
    called = by_function(Cutting(*(adds,) * 4), graphs, True)
    backend.enable(called, card=ONE)
    assert same(stepped(backend, called, arguments, graphs)[0], outputs)
    assert backend.summary().rows == eager.summary().rows
    assert [row.reason for row in eager.summary().rows].count("plan, shape changed") == 0
    assert [row.reason for row in eager.summary().rows].count("shape changed") == 2


class Asking(Planned):
    """Its gates look at an argument of the transformer's call, which is there before any block has run."""

    name = "asking"

    def gate(self, place: Place) -> Gate:
        return AskingGate()


class AskingGate(Gate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        assert not list(probe.ahead())
        assert probe.measured is None
        return Decision(probe.argument("encoder_hidden_states").shape[1] != 3, "length")


def test_a_gate_that_looks_only_at_the_arguments_of_the_call_is_known_before_it() -> None:
    graphs, backend = Graphs(), Asking()
    called = by_function(Toy(*(adds_to_both,) * 4), graphs, True)
    backend.enable(called, card=BOTH)
    _, counts = stepped(backend, called, images(2), graphs)
    assert counts == [1] * STEPS
    assert backend.summary().cached_steps() == [1, 2, 3, 4, 5]


def test_the_graphs_of_a_model_are_found_again_by_the_next_backend() -> None:
    graphs, model = Graphs(), Toy(*(adds_to_both,) * 4)
    called = by_function(model, graphs, True)
    for plan in ("1001", "1010", "1100"):
        backend = measuring(plan)
        backend.enable(called, card=BOTH)
        stepped(backend, called, images(2), graphs)
        backend.disable()
        made = graphs.compiled
    assert made == graphs.compiled == 3
