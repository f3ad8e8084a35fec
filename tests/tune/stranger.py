"""A backend from nowhere in this repository, which says how it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cache_backends import Decision, Gate, Place, Probe, Span, SpanBackend, Step, option
from dit_cache_backends.search import Ladder, Search, Threshold


@dataclass(frozen=True)
class StrangerConfig:
    share: float = option(0.0, help="Part of the steps that is skipped, evenly.", minimum=0, maximum=1)
    where: str = option("spread", choices=("spread", "end"), help="Which steps.")
    broken: bool = option(False, help="Raises.")


class Stranger(SpanBackend):
    """Skips a part of the steps, wherever."""

    name = "stranger"
    Config = StrangerConfig
    searches: ClassVar = (
        Search("share", Threshold("share", 0.0, 0.8), {"where": {"spread": {}, "end": {"where": "end"}}}),
        Search("broken", Ladder([{"broken": True}])),
    )

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def gate(self, place: Place) -> Gate:
        return StrangerGate(self.config)


class StrangerGate(Gate):
    def __init__(self, config: StrangerConfig) -> None:
        self._config = config

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if self._config.broken:
            raise ValueError("it was never tried")
        total, share = step.total or 1, self._config.share
        if self._config.where == "end":
            return Decision(step.index < total * (1 - share) or step.index == 0, "end")
        return Decision(
            step.index == 0 or int((step.index + 1) * (1 - share)) > int(step.index * (1 - share)), "spread"
        )

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None: ...
