"""torch.compile in tests: a compiler that counts graphs, and how often a graph was broken or made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends import Decision, Gate, Place, Probe, Step
from dit_cache_backends.bench.compiled import Graphs

from .strategies import Planned, planned
from .toys import BOTH, DIM, Toy, adds_to_both, text


def breaks() -> int:
    """How often a graph was broken since dynamo was reset and its counters cleared (``fresh``)."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def fresh() -> None:
    """Forget all graphs and counts."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


Compile = Callable[[nn.Module, Any, bool], Any]


def by_method(model: nn.Module, graphs: Any, full: bool) -> Any:
    model.compile(backend=graphs, fullgraph=full)
    return model


def by_function(model: nn.Module, graphs: Any, full: bool) -> Any:
    return torch.compile(model, backend=graphs, fullgraph=full)


class Measuring(Planned):
    """Goes by its plan, but only says so after a look at what the first blocks have added."""

    name = "measuring"

    def gate(self, place: Place) -> Gate:
        return MeasuringGate(self.config.plan)


class MeasuringGate(Gate):
    def __init__(self, plan: str) -> None:
        self._plan = plan
        self.told: list[tuple[int, bool, bool]] = []

    def should_run(self, step: Step, probe: Probe) -> Decision:
        size = float(probe.change.abs().sum() + probe.streams[0].abs().sum())  # type: ignore[union-attr]
        return Decision(self._plan[min(step.run_index, len(self._plan) - 1)] == "1", "plan", size)


STEPS = 6


def measuring(plan: str, layout: str = "all but the first") -> Planned:
    return Measuring({"layout": layout, "plan": plan})


KNOWN, MEASURED = planned, measuring


def stepped(
    backend: Any, model: Any, run: list[tuple[Any, ...]], graphs: Graphs, branch: str | None = None
) -> tuple[list[Tensor], list[int]]:
    """Every step of a run, told; the outputs, and how many graphs each step executed."""
    outputs: list[Tensor] = []
    counts: list[int] = []
    for index, arguments in enumerate(run):
        before = graphs.ran
        with backend.step(index, len(run), branch):
            outputs.append(model(*arguments)[0])
        counts.append(graphs.ran - before)
    return outputs, counts


def images(steps: int = STEPS, tokens: int = 4, batch: int = 2) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(batch, tokens, DIM, generator=generator), text(batch)) for _ in range(steps)]


def both() -> Toy:
    return Toy(*(adds_to_both,) * 5)


def expected(
    backend: Any, model: Toy, run: list[tuple[Any, ...]], card: Any = BOTH
) -> tuple[list[Tensor], Any]:
    """What an eager model gives with the same backend."""
    backend.enable(model, card=card)
    outputs = stepped(backend, model, run, Graphs())[0]
    summary = backend.summary()
    backend.disable()
    return outputs, summary


def enabled(
    backend: Any, model: Any, graphs: Graphs, how: Compile, first: str, card: Any = BOTH, full: bool = True
) -> Any:
    if first == "compile":
        called = how(model, graphs, full)
        backend.enable(called, card=card)
        return called
    backend.enable(model, card=card)
    return how(model, graphs, full)
