"""A gate that is asked about a recorded run, for backends whose gates tell their measuring from their deciding."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Gate, Place, Probe
from dit_cache_backends.engine.spans import Span

__all__ = ["ask", "place_of", "steps_of"]


def place_of(series: Series) -> Place:
    """The place that a gate would be made for; there is no model, and nobody to report to."""
    span = Span(0, 1)
    return Place(
        series.transformer,
        series.stack,
        span,
        span.stop,
        series.branch,
        {},
        {},
        lambda kind, what: None,
        lambda: None,
        lambda: None,
    )


def steps_of(series: Series) -> Iterator[Step]:
    """The steps of the run, as the engine would number them."""
    for index, run_index in enumerate(series.steps):
        yield Step(index, len(series), series.branch, run_index, series.total)


def ask(gate: Gate, series: Series) -> list[bool]:
    """Ask a gate at every step, tell it, and give what it would compute. Its probes show no tensors."""
    computed: list[bool] = []
    for step in steps_of(series):
        probe = Probe((None,), (None,), nn.Identity(), (), {})
        decision = gate.should_run(step, probe)
        gate.observe(step, probe, decision)
        computed.append(decision.run)
    return computed
