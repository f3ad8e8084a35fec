"""``tea_cache``: TeaCache (arXiv 2411.19108), under the rules of the four projects that have it.

At each step the modulated input of the first block is compared with that of the step before. The relative difference,
rescaled by a polynomial fitted to the model, is summed up, and while the sum is below a threshold no block runs: what
all of them added last is added again. ``docs/tea_cache.md`` has the rules, the signals and the coefficients.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_cache_backends.backend import Capabilities, SpanBackend
from dit_cache_backends.calibrators import make_calibrator
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.models import card_for, signals
from dit_cache_backends.models.card import Card
from dit_cache_backends.models.signals import Signal, TimeSignal
from dit_cache_backends.strategies.presets import TEA_THRESHOLDS
from dit_cache_backends.strategies.tea_cache_coefficients import PUBLISHED
from dit_cache_backends.strategies.tea_cache_meters import Meter, meter_of
from dit_cache_backends.strategies.tea_cache_models import USES, choose
from dit_cache_backends.strategies.tea_cache_options import (
    FALLBACK_THRESHOLD,
    RULES,
    Boundary,
    TeaCacheConfig,
)


class TeaCache(SpanBackend):
    """All blocks or none: skipped while the modulated input of the first has changed little."""

    name = "tea_cache"
    Config = TeaCacheConfig
    capabilities = Capabilities(rank_agreement=True)
    config: TeaCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        experts = sum(getattr(pipeline, name, None) is not None for name in ("transformer", "transformer_2"))
        met = _met[transformer] = _Met(card, type(pipeline).__name__, max(experts, 1))
        _plan(self.config, met, transformer)

    @classmethod
    def preset(cls, name: str, steps: int | None) -> Mapping[str, Any]:
        return {"rel_l1_thresh_scale": TEA_THRESHOLDS[name], "calibrator": "taylorseer"}

    def gate(self, place: Place) -> Gate:
        model = place.model()
        if model is None:
            raise RuntimeError(f"The {place.transformer} was called, but it does not exist any more.")
        met = _met.get(model) or _Met(card_for(model), "", 1)
        return _Gate(_plan(self.config, met, model), place)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)


@dataclass(frozen=True, slots=True)
class _Met:
    """How a transformer was met."""

    card: Card
    pipeline: str
    """The class of its pipeline."""
    experts: int
    """How many transformers that has."""


_met: weakref.WeakKeyDictionary[nn.Module, _Met] = weakref.WeakKeyDictionary()
"""Of every transformer that was enabled; the backends of a preset and of an override look here as well."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The options with what they leave to the rule and to the model filled in."""

    leader: str
    """The stack that decides: the first, since there the signal is read."""
    signal: Signal | TimeSignal
    coefficients: tuple[float, ...]
    absolute: bool
    threshold: float
    x_range: tuple[float, float] | None
    start: Boundary
    end: Boundary
    most_in_row: int
    donor: str
    """The model that the coefficients are of, if it is another one."""

    def rescaled(self, difference: float) -> float:
        """The polynomial's value."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * difference + coefficient
        return value

    def least(self) -> float:
        """The least that a step adds to the sum, over the fitted differences or those up to 1."""
        low, high = self.x_range or (0.0, 1.0)
        values = [self.rescaled(low + (high - low) * part / 256) for part in range(257)]
        if self.absolute:
            return min(abs(value) for value in values)
        return min((value for value in values if value >= 0), default=math.inf)


def _plan(config: TeaCacheConfig, met: _Met, model: nn.Module) -> _Plan:
    """Fill in what the options leave open.

    Raises:
        ConfigError: if the model has no signal, or no coefficients are known for it.
    """
    rule, cls = RULES[config.rule], met.card.transformer
    if not met.card.signals:
        raise ConfigError(
            f"tea_cache compares the modulated input of the first block, and the card of {cls} does not say how that "
            'is read. Add it to the card: signals=(Signal("modulated_input", read),), where read(block, argument) '
            "gives the tensor (dit_cache_backends.models.Signal)."
        )
    chosen, donor = config.given_set(), ""
    if chosen is None:
        use = choose(cls, model, met.pipeline, met.experts, config.rule)
        chosen, donor = PUBLISHED[use.name], use.donor
    elif chosen in PUBLISHED.values():
        own = {PUBLISHED[use.name].model for use in USES if use.transformer == cls and not use.donor}
        donor = "" if chosen.model in own else chosen.model
    by_name = {signal.name: signal for signal in met.card.signals}
    lowest = chosen.thresholds[0][0] if chosen.thresholds else FALLBACK_THRESHOLD
    threshold = config.rel_l1_thresh
    if config.rel_l1_thresh_scale is not None:
        threshold = lowest * config.rel_l1_thresh_scale
    if threshold is None:
        threshold = lowest if rule.threshold is None else rule.threshold
    window = chosen.window if rule.own_window else None
    start, end = window or (rule.start_step, rule.end_step)
    given, most = config.coefficients_range, config.max_continuous_cached_steps
    return _Plan(
        leader=met.card.stacks[0].name,
        signal=by_name.get(chosen.signal, met.card.signals[0]),
        coefficients=chosen.values,
        absolute=rule.absolute,
        threshold=threshold,
        x_range=chosen.x_range if given is None else (given[0], given[1]),
        start=start if config.start_step is None else config.start_step,
        end=end if config.end_step is None else config.end_step,
        most_in_row=rule.most_in_row if most is None else most,
        donor=donor,
    )


_DECISION, _EVENT = "tea_cache.decision", "tea_cache.event"


class _Gate(Gate):
    """Decides for the first stack of a transformer; the gates of the others do as it did at the same step."""

    def __init__(self, plan: _Plan, place: Place) -> None:
        self._plan = plan
        self._place = place
        self._leads = place.stack == plan.leader
        peers = [peer.meter for peer in place.peers.values() if isinstance(peer, _Gate)]
        self.meter: Meter = meter_of(plan.signal, place, peers)
        self._kept = self.meter.kept  # where the engine finds the tensors that are held
        self._accumulated = 0.0
        self._in_row = 0
        self._told = False

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if self._plan.threshold <= 0:
            return Decision(True, "threshold 0", store=False)
        if not self._leads:
            return self._as_the_leader(step, probe)
        forced = self._forced(step)
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
        leader = self._plan.leader
        index, run = self._place.shared.get(_DECISION, (None, True))
        if index != step.run_index:
            probe.notes[_EVENT] = (
                "first_stack_silent",
                f"{self._place.transformer}: {self._place.stack} is skipped when {leader} is, but tea_cache took no "
                "decision there; the blocks ran.",
            )
            return Decision(True, f"{leader} did not decide")
        return Decision(run, f"as {leader}")

    def _forced(self, step: Step) -> str:
        """Why this step is computed whatever its difference; empty where that decides."""
        plan = self._plan
        if step.index == 0:
            return "first step"
        start: float | None = plan.start
        if isinstance(plan.start, float):
            start = None if step.total is None else plan.start * step.total
        if start is not None and step.index < start:
            return "start_step"
        end: float | None = plan.end
        if isinstance(plan.end, float):
            end = None if step.run_total is None else plan.end * step.run_total
        elif plan.end < 0:
            end = None if step.run_total is None else step.run_total + plan.end
        if end is not None and step.run_index >= end:
            return "end_step"
        if 0 <= plan.most_in_row <= self._in_row:
            return "max_continuous_cached_steps"
        return ""

    def _judge(self, difference: float, probe: Probe) -> Decision:
        plan, where = self._plan, self._place.transformer
        if not math.isfinite(difference):
            return Decision(True, "signal", difference)
        if plan.x_range is not None and not plan.x_range[0] <= difference <= plan.x_range[1]:
            low, high = plan.x_range
            probe.notes[_EVENT] = (
                "outside_coefficients_range",
                f"{where}: the signal's difference was not within {low:g} to {high:g}, the differences that the "
                "coefficients were fitted on; the blocks ran.",
            )
            return Decision(True, "outside the fitted range")
        value = plan.rescaled(difference)
        if value < 0:
            done = "its size was taken, as vLLM-Omni does" if plan.absolute else "the blocks ran"
            probe.notes[_EVENT] = (
                "negative_rescaled_difference",
                f"{where}: the polynomial is negative at the signal's difference, where it does not fit; {done}.",
            )
            if not plan.absolute:
                return Decision(True, "negative value")
        total = self._accumulated + abs(value)
        return Decision(not total < plan.threshold, "rel_l1_thresh", total)

    def _tell(self, step: Step) -> None:
        """Say in the summary what a user should know of the plan."""
        plan, place = self._plan, self._place
        if plan.donor:
            place.report(
                "coefficients_copied",
                f"{place.transformer}: the coefficients were fitted on {plan.donor}, another model; nobody has shown "
                "that they fit this one.",
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
