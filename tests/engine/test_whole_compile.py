"""A transformer that is compiled as a whole, in one graph where the user says so, is cached as an eager one is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends.strategies.cache_dit import CacheDiT

from .compiling import (
    KNOWN,
    MEASURED,
    STEPS,
    Compile,
    Graphs,
    both,
    breaks,
    by_function,
    by_method,
    enabled,
    expected,
    fresh,
    images,
    measuring,
    stepped,
)
from .runs import same
from .toys import BOTH, DIM, Toy, leaves_the_text

PLAN = "101100"
RUN, SKIP = 1, 1
"""Graphs of a step whose decision is known before it, and of one that is skipped."""
COMPUTED = 2
"""Graphs of a step that runs after its gate has looked."""


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    fresh()
    yield
    fresh()


@pytest.mark.parametrize("first", ["compile", "enable"])
@pytest.mark.parametrize("how", [by_method, by_function])
@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_outputs_and_summary_are_those_of_the_eager_model_in_unbroken_graphs(
    strategy: Any, how: Compile, first: str
) -> None:
    run = images()
    outputs, summary = expected(strategy(PLAN), both(), run)
    graphs, backend = Graphs(), strategy(PLAN)
    called = enabled(backend, both(), graphs, how, first)
    found, counts = stepped(backend, called, run, graphs)
    assert same(found, outputs)
    assert backend.summary().rows == summary.rows
    computed = RUN if strategy is KNOWN else COMPUTED
    assert counts == [RUN, SKIP, computed, computed, SKIP, SKIP]
    made = graphs.compiled
    assert made == (2 if strategy is KNOWN else 3)
    again, _ = stepped(backend, called, run, graphs)
    assert same(again, outputs)
    assert graphs.compiled == made
    assert breaks() == 0
    backend.disable()
    assert same([called(*arguments)[0] for arguments in run], [both()(*arguments)[0] for arguments in run])


def test_other_steps_thresholds_and_branches_compile_nothing_more() -> None:
    graphs, model = Graphs(), both()
    called = by_function(model, graphs, True)
    made = []
    for steps, threshold in ((6, 0.3), (9, 0.05), (7, 0.9)):
        options = {
            "max_warmup_steps": 1,
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 1,
            "enable_taylorseer": True,
        }
        backend = CacheDiT({**options, "residual_diff_threshold": threshold})
        other = CacheDiT({**options, "residual_diff_threshold": threshold})
        eager = both()
        other.enable(eager, card=BOTH)
        backend.enable(called, card=BOTH)
        run = images(steps)
        for index, arguments in enumerate(run):
            for branch in ("cond", "uncond"):
                scaled = tuple(value if branch == "cond" else value * 0.7 for value in arguments)
                with backend.step(index, steps, branch), other.step(index, steps, branch):
                    assert torch.equal(called(*scaled)[0], eager(*scaled)[0])
            if index == 2:
                made.append(graphs.compiled)
        assert backend.summary().rows == other.summary().rows
        assert not backend.held_tensors()
        backend.disable()
    assert made[0] <= graphs.compiled <= 3
    assert breaks() == 0


def test_taylorseer_with_blocks_behind_the_span_is_as_in_the_eager_model() -> None:
    options = {
        "max_warmup_steps": 3,
        "residual_diff_threshold": 0.9,
        "Fn_compute_blocks": 2,
        "Bn_compute_blocks": 1,
        "enable_taylorseer": True,
        "taylorseer_order": 2,
    }
    run = images(8)
    outputs, summary = expected(CacheDiT(options), both(), run)
    graphs, backend = Graphs(), CacheDiT(options)
    called = enabled(backend, both(), graphs, by_function, "compile")
    assert same(stepped(backend, called, run, graphs)[0], outputs)
    assert backend.summary().rows == summary.rows
    assert summary.cached_steps()


def test_a_stream_that_the_span_hands_on_is_neither_stored_nor_changed() -> None:
    run = images()
    model = Toy(*(leaves_the_text,) * 4)
    outputs, _ = expected(measuring(PLAN), model, run)
    graphs, backend = Graphs(), measuring(PLAN)
    called = enabled(backend, Toy(*(leaves_the_text,) * 4), graphs, by_function, "compile")
    with backend.step(0, STEPS):
        first = called(*run[0])[0]
    assert torch.equal(first, outputs[0])
    assert [tuple(tensor.shape) for tensor in backend.held_tensors()] == [(2, 4, DIM)]


def test_a_change_of_shape_within_a_run_is_noticed() -> None:
    run = images(3) + images(3, tokens=6)
    outputs, summary = expected(measuring("100000"), both(), run)
    graphs, backend = Graphs(), measuring("100000")
    called = enabled(backend, both(), graphs, by_function, "compile")
    found, _ = stepped(backend, called, run, graphs)
    assert same(found, outputs)
    assert backend.summary().rows == summary.rows
    assert [(event.kind, event.count) for event in backend.summary().events] == [
        (event.kind, event.count) for event in summary.events
    ]
    assert summary.rows[3].reason == "shape changed"


def test_with_gradients_the_call_is_plain() -> None:
    graphs, backend = Graphs(), measuring("10")
    model = both()
    called = enabled(backend, model, graphs, by_function, "compile")
    arguments = images(1)[0]
    with torch.enable_grad():
        out = called(*arguments)[0]
        out.sum().backward()
    assert model.blocks[0].inner.weight.grad is not None  # type: ignore[union-attr]
    assert [event.kind for event in backend.summary().events] == ["plain_call"]
    assert torch.equal(out, both()(*arguments)[0])
    assert graphs.ran


def test_an_error_in_a_step_leaves_nothing_behind() -> None:
    run = images()
    outputs, _ = expected(measuring(PLAN), both(), run)
    graphs, backend = Graphs(), measuring(PLAN)
    called = enabled(backend, both(), graphs, by_function, "compile")
    stepped(backend, called, run[:2], graphs)
    with backend.step(2, STEPS), pytest.raises(Exception, match=r"size|shape|match"):
        called(torch.zeros(2, 4, DIM + 1), run[0][1])
    assert not backend.held_tensors()
    assert same(stepped(backend, called, run, graphs)[0], outputs)


def test_suspended_and_resumed_it_goes_on_with_its_graphs_and_disabled_it_is_as_before() -> None:
    run = images()
    outputs, _ = expected(measuring(PLAN), both(), run)
    plain = [both()(*arguments)[0] for arguments in run]
    graphs, backend, model = Graphs(), measuring(PLAN), both()
    called = by_function(model, graphs, True)
    before = [(type(module), set(vars(module))) for module in model.modules()]
    backend.enable(called, card=BOTH)
    found = stepped(backend, called, run[:3], graphs)[0]
    made = graphs.compiled
    backend.suspend(called)
    assert [(type(module), set(vars(module))) for module in model.modules()] == before
    assert torch.equal(called(*run[1])[0], plain[1])
    without = graphs.compiled - made
    backend.resume(called)
    for index in (3, 4, 5):
        with backend.step(index, STEPS):
            found.append(called(*run[index])[0])
    assert same(found, outputs)
    assert graphs.compiled == made + without
    backend.disable()
    assert [(type(module), set(vars(module))) for module in model.modules()] == before
    assert same([called(*arguments)[0] for arguments in run], plain)
    assert graphs.compiled == made + without


def test_two_threads_on_one_compiled_model_do_not_mix() -> None:
    run = images()
    outputs, _ = expected(measuring(PLAN), both(), run)
    backend = measuring(PLAN)
    called = enabled(backend, both(), Graphs(), by_function, "compile")
    found: dict[str, list[Tensor]] = {"one": [], "other": []}

    def generate(key: str) -> None:
        with torch.no_grad(), backend.session(key):
            for index, arguments in enumerate(run):
                with backend.step(index, STEPS):
                    found[key].append(called(*arguments)[0])

    threads = [threading.Thread(target=generate, args=(key,)) for key in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(each, outputs) for each in found.values())


def test_an_eager_call_of_a_model_that_is_also_compiled_is_cached_too() -> None:
    run = images()
    outputs, _ = expected(measuring(PLAN), both(), run)
    graphs, backend, model = Graphs(), measuring(PLAN), both()
    called = enabled(backend, model, graphs, by_function, "enable")
    found = []
    for index, arguments in enumerate(run):
        with backend.step(index, STEPS):
            found.append((called if index % 2 else model)(*arguments)[0])
    assert same(found, outputs)


def test_where_compiling_is_switched_off_for_a_while_it_runs_eagerly() -> None:
    run = images()
    outputs, _ = expected(measuring(PLAN), both(), run)
    graphs, backend = Graphs(), measuring(PLAN)
    called = enabled(backend, both(), graphs, by_function, "compile", full=False)
    with torch.compiler.set_stance("force_eager"):
        assert same(stepped(backend, called, run, graphs)[0], outputs)
    assert graphs.ran == 0
    assert same(stepped(backend, called, run, graphs)[0], outputs)
    assert graphs.ran
