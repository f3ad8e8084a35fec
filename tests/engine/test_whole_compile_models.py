"""A transformer that is compiled as a whole, of diffusers, by inductor, and with writes into what its blocks gave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_conformance.tiny import build_transformer

from .compiling import (
    KNOWN,
    MEASURED,
    Graphs,
    both,
    breaks,
    by_function,
    enabled,
    expected,
    fresh,
    images,
    measuring,
    stepped,
)
from .runs import inputs, output, run_told, same
from .toys import BOTH, ONE, Toy, adds, card, writes_into

PLAN = "101100"


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    fresh()
    yield
    fresh()


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_blocks_that_write_into_their_arguments_are_right(strategy: Any) -> None:
    in_place = card(writes_in_place=True)
    run = [arguments[:1] for arguments in images()]
    outputs, summary = expected(strategy(PLAN), Toy(*(writes_into,) * 4), run, in_place)
    graphs, backend = Graphs(), strategy(PLAN)
    called = enabled(backend, Toy(*(writes_into,) * 4), graphs, by_function, "compile", in_place)
    assert same(stepped(backend, called, run, graphs)[0], outputs)
    assert backend.summary().rows == summary.rows


class Writing(Toy):
    """Writes into what its blocks gave, between them, as models with ControlNet residuals do."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> tuple[Tensor]:
        h = hidden_states * 1.0
        for number, block in enumerate(self.blocks):
            h = block(h)
            h += 0.1 * (number + 1)
        return (h,)


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_what_the_model_adds_in_place_between_its_blocks_survives(strategy: Any) -> None:
    run = [arguments[:1] for arguments in images()]
    outputs, summary = expected(strategy(PLAN), Writing(*(adds,) * 5), run, ONE)
    graphs, backend = Graphs(), strategy(PLAN)
    called = enabled(backend, Writing(*(adds,) * 5), graphs, by_function, "compile", ONE)
    assert same(stepped(backend, called, run, graphs)[0], outputs)
    assert backend.summary().rows == summary.rows


@pytest.mark.parametrize("name", ["chroma", "hunyuan_image"])
def test_a_model_of_diffusers_gives_what_it_gives_eagerly(name: str) -> None:
    run = inputs(name, 4)
    model = build_transformer(name)
    eager = measuring("1010")
    eager.enable(model)
    outputs, rows = run_told(eager, model, run), eager.summary().rows
    eager.disable()
    graphs, backend = Graphs(), measuring("1010")
    called = by_function(model, graphs, True)
    backend.enable(called)
    found = []
    for index, arguments in enumerate(run):
        with backend.step(index, 4):
            found.append(output(called, arguments))
    assert same(found, outputs)
    assert backend.summary().rows == rows
    assert breaks() == 0


@pytest.mark.parametrize("strategy", [KNOWN, MEASURED])
def test_with_inductor_skipped_and_computed_steps_are_those_of_the_eager_model(strategy: Any) -> None:
    run = images(4)
    outputs, summary = expected(strategy("1010"), both(), run)
    backend = strategy("1010")
    called = torch.compile(both(), fullgraph=True)
    backend.enable(called, card=BOTH)
    for found, wanted in zip(stepped(backend, called, run, Graphs())[0], outputs, strict=True):
        torch.testing.assert_close(found, wanted)
    assert backend.summary().cached_steps() == summary.cached_steps()
