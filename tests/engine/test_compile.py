"""torch.compile, of the blocks or of the whole model, before enabling and after: right outputs, and few graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import CardError
from dit_cache_conformance.tiny import build_transformer
from dit_cache_conformance.tiny.configs import flux

from .compiling import Graphs
from .runs import inputs, run_plain, run_told, same
from .strategies import planned

STEPS = 4


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_blocks(model: Any, graphs: Graphs) -> None:
    model.compile_repeated_blocks(backend=graphs, fullgraph=True)


def make(name: str) -> nn.Module:
    """FLUX has two classes of blocks; two of each are enough."""
    return flux(num_layers=2, num_single_layers=2) if name == "flux" else build_transformer(name)


def eager(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """A run without a cache and one with, nothing compiled."""
    model = make(name)
    run = inputs(name, STEPS)
    plain = run_plain(model, run)
    with planned("10") as backend:
        backend.enable(model)
        cached = run_told(backend, model, run)
    assert not same(plain, cached)
    return plain, cached


@pytest.mark.parametrize("name", ["flux", "wan"])
@pytest.mark.parametrize("order", ["compile, enable", "enable, compile"])
def test_compiled_blocks_are_as_many_graphs_as_without_a_backend(name: str, order: str) -> None:
    plain, cached = eager(name)
    run = inputs(name, STEPS)
    alone, graphs = Graphs(), Graphs()
    other = make(name)
    compile_blocks(other, alone)
    assert same(run_plain(other, run), plain)
    torch._dynamo.reset()

    model = make(name)
    backend = planned("10")
    if order == "compile, enable":
        compile_blocks(model, graphs)
        backend.enable(model)
    else:
        backend.enable(model)
        compile_blocks(model, graphs)
    assert same(run_told(backend, model, run), cached)
    assert same(run_told(backend, model, run), cached)
    assert 0 < graphs.compiled == alone.compiled
    assert graphs.ran < STEPS * alone.ran
    backend.disable()
    assert same(run_plain(model, run), plain)


def test_enabling_on_blocks_that_have_run_compiled_costs_one_compilation_a_class() -> None:
    model = build_transformer("wan")
    run = inputs("wan", STEPS)
    graphs = Graphs()
    compile_blocks(model, graphs)
    run_plain(model, run)
    before = graphs.compiled
    for _ in range(3):
        backend = planned("10")
        backend.enable(model)
        run_told(backend, model, run)
        backend.disable()
    assert graphs.compiled - before == before


def by_method(model: nn.Module, graphs: Graphs, full: bool) -> nn.Module:
    model.compile(backend=graphs, fullgraph=full)
    return model


def by_function(model: nn.Module, graphs: Graphs, full: bool) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend=graphs, fullgraph=full)  # type: ignore[assignment]
    return compiled


def by_block(model: nn.Module, graphs: Graphs, full: bool) -> nn.Module:
    blocks: nn.ModuleList = model.blocks  # type: ignore[assignment]
    for index, block in enumerate(blocks):
        blocks[index] = torch.compile(block, backend=graphs, fullgraph=full)  # type: ignore[assignment]
    return model


COMPILE = [by_method, by_function, by_block]


@pytest.mark.parametrize("order", ["compile, enable", "enable, compile"])
@pytest.mark.parametrize("compile_with", COMPILE)
def test_a_compiled_model_gives_the_outputs_of_the_eager_one(
    compile_with: Callable[[nn.Module, Graphs, bool], nn.Module], order: str
) -> None:
    plain, cached = eager("wan")
    run = inputs("wan", STEPS)
    model = build_transformer("wan")
    graphs = Graphs()
    backend = planned("10")
    if order == "compile, enable":
        called = compile_with(model, graphs, False)
        backend.enable(called)
    else:
        backend.enable(model)
        called = compile_with(model, graphs, False)
    found = run_told(backend, called, run)
    assert graphs.ran
    assert same(found, cached)
    assert backend.summary().cached_steps() == [1, 2, 3]
    assert same(run_told(backend, called, run), cached)
    backend.disable()
    assert same(run_plain(called, run), plain)


@pytest.mark.parametrize("order", ["compile, enable", "enable, compile"])
@pytest.mark.parametrize("compile_with", [by_method, by_function])
def test_a_whole_model_that_is_to_be_one_graph_is_one_a_step(
    compile_with: Callable[[nn.Module, Graphs, bool], nn.Module], order: str
) -> None:
    _, cached = eager("wan")
    run = inputs("wan", STEPS)
    model = build_transformer("wan")
    graphs, backend = Graphs(), planned("10")
    if order == "compile, enable":
        called = compile_with(model, graphs, True)
        backend.enable(called)
    else:
        backend.enable(model)
        called = compile_with(model, graphs, True)
    assert same(run_told(backend, called, run), cached)
    assert graphs.ran == STEPS


def test_a_model_compiled_before_and_called_past_the_backend_runs_in_full_and_says_so() -> None:
    plain, _ = eager("wan")
    run = inputs("wan", STEPS)
    model = build_transformer("wan")
    compiled = by_function(model, Graphs(), False)
    run_plain(compiled, run[:1])
    backend = planned("10")
    backend.enable(model)
    assert same(run_told(backend, compiled, run), plain)
    assert [event.kind for event in backend.summary().events] == ["called_outside"]


def test_a_card_that_does_not_fit_a_compiled_block_is_still_refused() -> None:
    from .toys import Toy, adds, card

    model = Toy(adds, adds)
    by_block(model, Graphs(), False)
    with pytest.raises(CardError, match="no parameter 'x'"):
        planned("10").enable(model, card=card(("x",), "x"))
