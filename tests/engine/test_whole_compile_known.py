"""A step that is known to be skipped before a compiled transformer is called costs what its graph has to give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import Decision, Gate, Place, Probe, Step, enable_cache
from dit_cache_backends.bench.compiled import Graphs
from dit_cache_backends.bench.shapes import PYTHON, make_ideal, make_inputs, make_model
from dit_cache_backends.errors import CompileError

from .compiling import (
    KNOWN,
    MEASURED,
    MeasuringGate,
    both,
    breaks,
    by_function,
    enabled,
    expected,
    fresh,
    images,
    stepped,
)
from .runs import same
from .strategies import Planned, planned
from .test_whole_compile_limits import PAIR, Cutting
from .toys import BOTH, ONE, Toy, adds, adds_to_both


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    fresh()
    yield
    fresh()


class Watched(Graphs):
    """Tells of the last graph that ran which operations its results need, and how many numbers it gave out."""

    operations: Counter[Any]
    gave: int

    def __call__(self, graph: torch.fx.GraphModule, example: list[Any]) -> Any:
        run = super().__call__(graph, example)
        graph.graph.eliminate_dead_code()
        operations = Counter(node.target for node in graph.graph.nodes if node.op == "call_function")

        def watched(*arguments: Any) -> Any:
            found = run(*arguments)
            self.operations, self.gave = operations, sum(each.numel() for each in found)
            return found

        return watched


LINEAR = torch._C._nn.linear
MASK = {"steps_computation_mask": "100", "steps_computation_policy": "static", "Fn_compute_blocks": 1}


def test_its_graph_has_no_more_products_and_results_than_that_of_the_ideal_model() -> None:
    shape = replace(PYTHON, double=1, single=2)
    model, (arguments, _) = make_model(shape), make_inputs(shape)
    ideal, masked, compared = Watched(), Watched(), Watched()
    out = by_function(make_ideal(model, shape), ideal, True)(**arguments)[0]
    for graphs, options in ((masked, MASK), (compared, {"Fn_compute_blocks": 1, "max_warmup_steps": 1})):
        with enable_cache(model, "cache_dit", **options) as enabled_backend:
            backend: Any = enabled_backend
            called = by_function(model, graphs, True)
            for step in range(3):
                with backend.step(step, 3):
                    called(**arguments)
            assert backend.summary().cached_steps() == [1, 2]
    assert masked.operations[LINEAR] == ideal.operations[LINEAR] < compared.operations[LINEAR]
    assert masked.gave == ideal.gave == out.numel() < compared.gave


class Both(Planned):
    """By its plan runs (1) or skips (0) unseen, or does the one (+) or the other (-) after a look."""

    name = "both"

    def gate(self, place: Place) -> Gate:
        return BothGate(self.config.plan)


class BothGate(MeasuringGate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        word = self._plan[min(step.run_index, len(self._plan) - 1)]
        if word in "01":
            return Decision(word == "1", "unseen")
        return Decision(word == "+", "seen", float(probe.change.abs().sum()))


def test_known_and_measured_decisions_in_one_run_are_four_graphs_and_no_more() -> None:
    graphs, model = Graphs(), both()
    called = by_function(model, graphs, True)
    for plan, made in (("1+-010-", 4), ("10+-01-00", 4), ("1-0+0", 4)):
        run = images(len(plan))
        outputs, summary = expected(Both({"plan": plan}), both(), run)
        backend = Both({"plan": plan})
        backend.enable(called, card=BOTH)
        for branch in ("cond", "uncond"):
            found, counts = stepped(backend, called, run, graphs, branch)
            assert same(found, outputs)
            assert counts == [2 if word == "+" else 1 for word in plan]
            assert [row.reason for row in backend.summary().rows] == [row.reason for row in summary.rows]
        assert graphs.compiled == made
        backend.disable()
    assert breaks() == 0


class Looking(Planned):
    """Its gates skip by plan, and look at tensors only when they are told what was done."""

    name = "looking"

    def __init__(self, config: Any, keeps: bool = False) -> None:
        super().__init__(config)
        self.seen: list[float] = []
        self.probes: list[Probe] | None = [] if keeps else None

    def gate(self, place: Place) -> Gate:
        return LookingGate(self, place)


class LookingGate(MeasuringGate):
    def __init__(self, strategy: Looking, place: Place) -> None:
        super().__init__(strategy.config.plan)
        self._strategy, self._place = strategy, place

    def should_run(self, step: Step, probe: Probe) -> Decision:
        probe.notes["asked"] = step.run_index
        return Decision(self._plan[step.run_index] == "1", "plan")

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if self._strategy.probes is not None:
            self._strategy.probes.append(probe)
            return
        assert probe.notes["asked"] == step.run_index
        assert (probe.exit is None) is not decision.run
        first = self._place.span.start + (3 if self._place.stack == "blocks[3:]" else 0)
        assert probe.block is self._place.model().blocks[first]  # type: ignore[union-attr, index]
        streams = (*probe.streams, *probe.entry, probe.change, *probe.args)
        self._strategy.seen += [float(each.double().sum()) for each in streams if each is not None]


@pytest.mark.parametrize("card", [BOTH, PAIR])
def test_a_gate_that_looks_when_it_is_told_sees_what_it_sees_in_the_eager_model(card: Any) -> None:
    run, plan = images(), "100100"
    eager, backend, graphs = Looking({"plan": plan}), Looking({"plan": plan}), Graphs()
    outputs, summary = expected(eager, Toy(*(adds_to_both,) * 6), run, card)
    called = enabled(backend, Toy(*(adds_to_both,) * 6), graphs, by_function, "compile", card)
    found, counts = stepped(backend, called, run, graphs)
    assert same(found, outputs)
    assert backend.summary().rows == summary.rows
    assert backend.seen == pytest.approx(eager.seen, rel=1e-12)
    stacks = len(card.stacks)
    # Once for each stack it is found that its gate looks; from then on its tensors are given out at once.
    assert counts == [1, 1 + stacks, 1, 1, 1, 1]


def test_a_probe_that_is_kept_says_that_its_tensors_are_gone() -> None:
    run = images(2)
    backend = Looking({"plan": "10"}, keeps=True)
    called = enabled(backend, both(), Graphs(), by_function, "compile")
    stepped(backend, called, run, Graphs())
    assert backend.probes is not None
    assert backend.probes[0].streams[0].shape == run[0][0].shape  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="when the call that the probe was for was over"):
        _ = backend.probes[1].streams


class Following(Planned):
    """The second stack does as the first did in this step, or before that what it did in the one before."""

    name = "following"

    def gate(self, place: Place) -> Gate:
        return FollowingGate(self.config.plan, place)


class FollowingGate(MeasuringGate):
    def __init__(self, plan: str, place: Place) -> None:
        super().__init__(plan)
        self._place, self._leads = place, not place.peers and "first" not in place.shared
        place.shared.setdefault("first", place.stack)

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if self._leads:
            return Decision(self._plan[step.run_index] == "1", "plan")
        return Decision(not self._place.shared.get("skips", 0) % 3, "following")

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if self._leads and not decision.run:
            self._place.shared["skips"] = self._place.shared.get("skips", 0) + 1


def test_a_gate_that_is_known_otherwise_behind_the_stack_before_is_asked_again() -> None:
    run, plan = images(8), "10000000"
    model = Toy(*(adds_to_both,) * 6)
    outputs, summary = expected(Following({"plan": plan}), model, run, PAIR)
    graphs, backend = Graphs(), Following({"plan": plan})
    called = enabled(backend, Toy(*(adds_to_both,) * 6), graphs, by_function, "compile", PAIR)
    found, _ = stepped(backend, called, run, graphs)
    assert same(found, outputs)
    assert backend.summary().rows == summary.rows
    skipped = [(row.stack, row.step) for row in summary.rows if row.blocks_skipped]
    assert 7 < len(skipped) < 14
    assert breaks() == 0


class Parted(Planned):
    """What the first stack does is known, and in the second measured."""

    name = "parted"

    def gate(self, place: Place) -> Gate:
        return BothGate("100" if place.stack == "blocks" else "1+-")


def test_a_known_stack_before_one_that_is_measured_is_run_through_once() -> None:
    run, graphs, backend = images(3), Watched(), Parted()
    outputs, summary = expected(Parted(), Toy(*(adds_to_both,) * 6), run, PAIR)
    called = enabled(backend, Toy(*(adds_to_both,) * 6), graphs, by_function, "compile", PAIR)
    found, counts = stepped(backend, called, run[:2], graphs)
    assert same(found, outputs[:2])
    assert counts == [1, 2]
    assert graphs.operations[LINEAR] == 2 * 2  # of the two blocks of the second span
    assert backend.summary().rows == [replace(row, total=2) for row in summary.rows[:4]]


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_streams_that_what_is_stored_could_be_spread_over_are_not_skipped(strategy: Any) -> None:
    arguments = [(one[0], tokens) for one, tokens in zip(images(), (4, 4, 1, 1, 4, 1), strict=True)]
    outputs, summary = expected(strategy("100000"), Cutting(*(adds,) * 4), arguments, ONE)
    backend = strategy("100000")
    called = enabled(backend, Cutting(*(adds,) * 4), Graphs(), by_function, "compile", ONE)
    found, _ = stepped(backend, called, arguments, Graphs())
    assert [each.shape for each in found] == [each.shape for each in outputs]
    assert same(found, outputs)
    assert backend.summary().rows == summary.rows
    assert [(event.kind, event.count) for event in backend.summary().events] == [("shape_changed", 3)]


class Again(Toy):
    """Calls its last block once more where it is told to."""

    def forward(self, hidden_states: Tensor, word: str = "once") -> tuple[Tensor]:  # type: ignore[override]
        (h,) = super().forward(hidden_states)
        return (self.blocks[-1](h) if word == "again" else h,)


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_a_last_block_that_is_called_again_in_a_skipped_step_is_refused(strategy: Any) -> None:
    run = images(3)
    backend = strategy("100")
    called = enabled(backend, Again(*(adds,) * 4), Graphs(), by_function, "compile", ONE)
    stepped(backend, called, [(run[0][0],), (run[1][0],)], Graphs())
    with pytest.raises(CompileError, match="several times"), backend.step(2, 3):
        called(run[2][0], "again")


def test_a_third_resolution_compiles_nothing() -> None:
    graphs, backend = Graphs(), planned("100")
    called = enabled(backend, both(), graphs, by_function, "compile")
    made: list[int] = []
    for tokens in (4, 6, 9, 7):
        run = images(3, tokens=tokens)
        outputs: list[Tensor] = expected(planned("100"), both(), run)[0]
        assert same(stepped(backend, called, run, graphs)[0], outputs)
        made.append(graphs.compiled)
    assert made == [2, 4, 4, 4]
    assert breaks() == 0
