"""A backend that keeps every promise, and that the broken ones are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dit_cache_backends import (
    Decision,
    Gate,
    Place,
    Probe,
    Span,
    SpanBackend,
    Step,
    option,
    relative_difference,
)


@dataclass(frozen=True)
class HonestConfig:
    threshold: float = option(0.9, minimum=0, help="Skip while the first block's output differs by less.")


class HonestGate(Gate):
    """Compares what comes in with what came in when the span last ran; runs every third step in any case."""

    def __init__(self, config: HonestConfig) -> None:
        self.threshold = config.threshold
        self.reference: Tensor | None = None
        self.ran_at = 0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        here = probe.streams[0]
        assert here is not None
        if self.reference is None or self.reference.shape != here.shape or step.index - self.ran_at > 2:
            return Decision(True, "due")
        difference = float(relative_difference(self.reference, here))
        return Decision(not difference < self.threshold, "difference", difference)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if decision.run and probe.streams[0] is not None:
            self.reference, self.ran_at = probe.streams[0].clone(), step.index


class Honest(SpanBackend):
    """Keeps every promise."""

    name = "honest"
    Config: ClassVar[type] = HonestConfig
    conformance: ClassVar[Mapping[str, Any]] = {"eager": {"threshold": 0.9}, "never": {"threshold": 0.0}}
    caught_by: ClassVar[str] = ""

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(1, depth)]

    def gate(self, place: Place) -> Gate:
        return HonestGate(self.config)
