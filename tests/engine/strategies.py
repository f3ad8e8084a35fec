"""Strategies of the tests' own, as a stranger would write them: a layout, and a gate that keeps to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dit_cache_backends import Decision, Gate, Place, Probe, Span, SpanBackend, Step, option

LAYOUTS: dict[str, Callable[[int], list[Span]]] = {
    "whole": lambda depth: [Span(0, depth)],
    "all but the first": lambda depth: [Span(1, depth)],
    "all but both ends": lambda depth: [Span(1, depth - 1)],
    "one block each": lambda depth: [Span(index, index + 1) for index in range(depth)],
    "ends in the middle": lambda depth: [Span(1, depth // 2 + 1)],
}


@dataclass(frozen=True)
class PlanConfig:
    layout: str = option("all but the first", choices=tuple(LAYOUTS), help="The spans.")
    plan: str = option("0", help="Run (1) or skip (0), by the step of the run; the last digit goes on.")


class Planned(SpanBackend):
    """Skips where the plan says 0; the engine has to see by itself that there is something to skip with."""

    name = "planned"
    Config = PlanConfig
    config: PlanConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return LAYOUTS[self.config.layout](depth)

    def gate(self, place: Place) -> Gate:
        return PlannedGate(self.config.plan)


class PlannedGate(Gate):
    def __init__(self, plan: str) -> None:
        self._plan = plan

    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(self._plan[min(step.run_index, len(self._plan) - 1)] == "1", "plan")


def always(layout: str = "all but the first") -> Planned:
    """Skips whenever it can."""
    return Planned({"layout": layout, "plan": "0"})


def never(layout: str = "all but the first") -> Planned:
    """Runs every block of every step."""
    return Planned({"layout": layout, "plan": "1"})


def planned(plan: str, layout: str = "all but the first") -> Planned:
    return Planned({"layout": layout, "plan": plan})
