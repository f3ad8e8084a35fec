"""``tea_cache``: TeaCache (arXiv 2411.19108), under the rules of the four projects that have it.

At each step the modulated input of the first block is compared with that of the step before. The relative difference,
rescaled by a polynomial fitted to the model, is summed up, and while the sum is below a threshold no block runs: what
all of them added last is added again. ``docs/tea_cache.md`` has the rules, the signals and the coefficients.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from dit_cache_backends.backend import Capabilities, SpanBackend
from dit_cache_backends.calibrators import make_calibrator
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.models import card_for, signals
from dit_cache_backends.models.card import Card
from dit_cache_backends.pipelines import name_of
from dit_cache_backends.search import PREDICTORS, PRESETS, Search, Threshold
from dit_cache_backends.strategies.presets import TEA_THRESHOLDS
from dit_cache_backends.strategies.tea_cache_meters import Meter, meter_of
from dit_cache_backends.strategies.tea_cache_options import TeaCacheConfig
from dit_cache_backends.strategies.tea_cache_plan import Reading, reading_of, replayed

if TYPE_CHECKING:
    from dit_cache_backends.calibrate.series import Series


class TeaCache(SpanBackend):
    """All blocks or none: skipped while the modulated input of the first has changed little."""

    name = "tea_cache"
    Config = TeaCacheConfig
    capabilities = Capabilities(rank_agreement=True)
    searches: ClassVar = (
        Search(
            "threshold",
            Threshold("rel_l1_thresh", 0.01, 3.0),
            {
                "coefficients": {"published": {}, "identity": {"coefficients": "identity"}},
                "predictor": PREDICTORS,
            },
        ),
        Search("presets", PRESETS),
    )
    config: TeaCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        experts = sum(getattr(pipeline, name, None) is not None for name in ("transformer", "transformer_2"))
        name = name_of(transformer, pipeline)
        met = _met[transformer] = _Met(card, name, type(pipeline).__name__, max(experts, 1))
        self._reading(met, transformer)
        calibration = self.config.calibration()
        if calibration is not None:
            calibration.hold_for(self.name, transformer, card, pipeline, self.config.provenance == "check")

    @classmethod
    def preset(cls, name: str, steps: int | None) -> Mapping[str, Any]:
        return {"rel_l1_thresh_scale": TEA_THRESHOLDS[name], "calibrator": "taylorseer"}

    def gate(self, place: Place) -> Gate:
        model = place.model()
        if model is None:
            raise RuntimeError(f"The {place.transformer} was called, but it does not exist any more.")
        met = _met.get(model) or _Met(card_for(model), place.transformer, "", 1)
        return _Gate(self._reading(met, model), place)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)

    def replay(self, series: Series) -> list[bool]:
        """Which steps of a recorded run it would compute; see ``calibrate.simulate``."""
        return replayed(self.config, series)

    def _reading(self, met: _Met, model: nn.Module) -> Reading:
        return reading_of(self.config, met.card, met.name, model, met.pipeline, met.experts)


@dataclass(frozen=True, slots=True)
class _Met:
    """How a transformer was met."""

    card: Card
    name: str
    """Its name on its pipeline."""
    pipeline: str
    """The class of its pipeline."""
    experts: int
    """How many transformers that has."""


_met: weakref.WeakKeyDictionary[nn.Module, _Met] = weakref.WeakKeyDictionary()
"""Of every transformer that was enabled; the backends of a preset and of an override look here as well."""


_DECISION, _EVENT = "tea_cache.decision", "tea_cache.event"


class _Gate(Gate):
    """Decides for the first stack of a transformer; the gates of the others do as it did at the same step."""

    def __init__(self, reading: Reading, place: Place) -> None:
        self._plan = reading.plan
        self._reading = reading
        self._place = place
        self._leads = place.stack == reading.leader
        peers = [peer.meter for peer in place.peers.values() if isinstance(peer, _Gate)]
        self.meter: Meter = meter_of(reading.signal, place, peers)
        self._kept = self.meter.kept  # where the engine finds the tensors that are held
        self._accumulated = 0.0
        self._in_row = 0
        self._told = False

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if self._plan.threshold <= 0:
            return Decision(True, "threshold 0", store=False)
        if not self._leads:
            return self._as_the_leader(step, probe)
        forced = self._plan.forced(step, self._in_row)
        if forced:
            if not step.last:
                self.meter.look(probe)
            return Decision(True, forced)
        difference = self.meter.measure(step, probe)
        if difference is None:
            return Decision(True, "nothing to compare")
        return self._judge(difference, probe)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        event = probe.notes.get(_EVENT)
        if event is not None:
            self._place.report(*event)
        if not self._leads:
            return
        if not self._told:
            self._told = True
            self._tell(step)
        if self._plan.threshold > 0 and not step.last:
            self.meter.told(step, probe)
        self._accumulated = 0.0 if decision.run else decision.difference or 0.0
        self._in_row = 0 if decision.run else self._in_row + 1
        self._place.shared[_DECISION] = (step.run_index, decision.run)

    def _as_the_leader(self, step: Step, probe: Probe) -> Decision:
        leader = self._reading.leader
        index, run = self._place.shared.get(_DECISION, (None, True))
        if index != step.run_index:
            probe.notes[_EVENT] = (
                "first_stack_silent",
                f"{self._place.transformer}: {self._place.stack} is skipped when {leader} is, but tea_cache took no "
                "decision there; the blocks ran.",
            )
            return Decision(True, f"{leader} did not decide")
        return Decision(run, f"as {leader}")

    def _judge(self, difference: float, probe: Probe) -> Decision:
        decision, event = self._plan.judge(difference, self._accumulated, self._place.transformer)
        if event is not None:
            probe.notes[_EVENT] = event
        return decision

    def _tell(self, step: Step) -> None:
        """Say in the summary what a user should know of the plan."""
        reading, plan, place = self._reading, self._plan, self._place
        if reading.donor:
            place.report(
                "coefficients_copied",
                f"{place.transformer}: the coefficients were fitted on {reading.donor}, another model; nobody has "
                "shown that they fit this one.",
            )
        if reading.measured_steps is not None and step.run_total not in (None, reading.measured_steps):
            place.report(
                "calibrated_for_other_steps",
                f"{place.transformer}: the coefficients were fitted in runs of {reading.measured_steps} steps, and "
                f"this one has {step.run_total}.",
            )
        least = plan.least()
        if 0 < plan.threshold <= least:
            place.report(
                "threshold_never_met",
                f"{place.transformer}: rel_l1_thresh {plan.threshold:g} is not above {least:.3g}, the least that the "
                "coefficients give for any difference, so no step can be skipped.",
            )
        unknown = step.run_total is None and (plan.end < 0 or (isinstance(plan.end, float) and plan.end < 1))
        if unknown or (step.total is None and isinstance(plan.start, float)):
            place.report(
                "steps_unknown",
                f"{place.transformer}: how many steps the run has is not known, so start_step and end_step do not "
                "count from its end. Tell it: backend.refresh(pipeline, steps).",
            )


for _module in (signals, sys.modules[__name__]):
    untraced_module(_module)
