"""The options of ``tea_cache`` with what they leave open filled in, and the decisions that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.models.card import Card
from dit_cache_backends.models.signals import Signal, TimeSignal
from dit_cache_backends.strategies.tea_cache_coefficients import PUBLISHED, CoefficientSet
from dit_cache_backends.strategies.tea_cache_curves import Curve, Polynomial, along
from dit_cache_backends.strategies.tea_cache_models import USES, choose
from dit_cache_backends.strategies.tea_cache_options import (
    FALLBACK_THRESHOLD,
    RULES,
    Boundary,
    TeaCacheConfig,
)

if TYPE_CHECKING:
    from dit_cache_backends.calibrate.series import Series

Event = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """When a step is skipped, by the sum of the rescaled differences."""

    curve: Curve
    absolute: bool
    threshold: float
    x_range: tuple[float, float] | None
    clamps: bool
    """A difference outside the range counts as the nearest one within; else it computes."""
    start: Boundary
    end: Boundary
    most_in_row: int

    def least(self) -> float:
        """The least that a step adds to the sum, over the fitted differences or those up to 1."""
        values = [self.curve(difference) for difference in along(self.x_range or (0.0, 1.0))]
        if self.absolute:
            return min(abs(value) for value in values)
        return min((value for value in values if value >= 0), default=math.inf)

    def forced(self, step: Step, in_row: int) -> str:
        """Why a step behind ``in_row`` skipped ones is computed whatever its difference; empty where that decides."""
        if step.index == 0:
            return "first step"
        start: float | None = self.start
        if isinstance(self.start, float):
            start = None if step.total is None else self.start * step.total
        if start is not None and step.index < start:
            return "start_step"
        end: float | None = self.end
        if isinstance(self.end, float):
            end = None if step.run_total is None else self.end * step.run_total
        elif self.end < 0:
            end = None if step.run_total is None else step.run_total + self.end
        if end is not None and step.run_index >= end:
            return "end_step"
        if 0 <= self.most_in_row <= in_row:
            return "max_continuous_cached_steps"
        return ""

    def judge(self, difference: float, summed: float, where: str) -> tuple[Decision, Event | None]:
        """What a difference decides where ``summed`` has come up before, and what the summary should tell of it."""
        if not math.isfinite(difference):
            return Decision(True, "signal", difference), None
        event: Event | None = None
        if self.x_range is not None and not self.x_range[0] <= difference <= self.x_range[1]:
            low, high = self.x_range
            done = "the nearest of them was taken" if self.clamps else "the blocks ran"
            event = (
                "outside_coefficients_range",
                f"{where}: the signal's difference was not within {low:g} to {high:g}, the differences that the "
                f"coefficients were fitted on; {done}.",
            )
            if not self.clamps:
                return Decision(True, "outside the fitted range"), event
            difference = min(max(difference, low), high)
        value = self.curve(difference)
        if value < 0:
            done = "its size was taken, as vLLM-Omni does" if self.absolute else "the blocks ran"
            event = (
                "negative_rescaled_difference",
                f"{where}: the polynomial is negative at the signal's difference, where it does not fit; {done}.",
            )
            if not self.absolute:
                return Decision(True, "negative value"), event
        total = summed + abs(value)
        return Decision(not total < self.threshold, "rel_l1_thresh", total), event

    def replay(self, series: Series) -> list[bool]:
        """Which steps of a recorded run it would compute."""
        computed: list[bool] = []
        summed, in_row = 0.0, 0
        changes = series.columns["signal"]
        for index, (run_index, change) in enumerate(zip(series.steps, changes, strict=True)):
            step = Step(index, len(series), series.branch, run_index, series.total)
            run = self.threshold <= 0 or bool(self.forced(step, in_row)) or change is None
            if not run and change is not None:
                decision, _ = self.judge(change, summed, series.transformer)
                run, summed = decision.run, decision.difference or 0.0
            summed, in_row = (0.0, 0) if run else (summed, in_row + 1)
            computed.append(run)
        return computed


def plan_with(config: TeaCacheConfig, chosen: CoefficientSet) -> Plan:
    """The options with a set of coefficients."""
    rule = RULES[config.rule]
    lowest = chosen.thresholds[0][0] if chosen.thresholds else FALLBACK_THRESHOLD
    threshold = config.rel_l1_thresh
    if config.rel_l1_thresh_scale is not None:
        threshold = lowest * config.rel_l1_thresh_scale
    if threshold is None:
        # A rule's own threshold is for published polynomials, not for one that tells how far the output moves.
        threshold = lowest if rule.threshold is None or chosen.measured else rule.threshold
    window = chosen.window if rule.own_window else None
    start, end = window or (rule.start_step, rule.end_step)
    given, most = config.coefficients_range, config.max_continuous_cached_steps
    outside = config.coefficients_outside
    return Plan(
        curve=chosen.curve or Polynomial(chosen.values),
        absolute=rule.absolute,
        threshold=threshold,
        x_range=chosen.x_range if given is None else (given[0], given[1]),
        clamps=chosen.measured if outside is None else outside == "clamp",
        start=start if config.start_step is None else config.start_step,
        end=end if config.end_step is None else config.end_step,
        most_in_row=rule.most_in_row if most is None else most,
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """Where and by which signal a transformer is compared, and what is known of its coefficients."""

    plan: Plan
    leader: str
    """The stack that decides: the first, since there the signal is read."""
    signal: Signal | TimeSignal
    donor: str
    """The model that the coefficients are of, if it is another one."""
    measured_steps: int | None
    """Steps of the runs that a calibration measured."""


def reading_of(
    config: TeaCacheConfig, card: Card, name: str, model: nn.Module, pipeline: str, experts: int
) -> Reading:
    """Fill in what the options leave open for the transformer ``name``.

    Raises:
        ConfigError: if the model has no signal, or no coefficients are known for it.
    """
    cls = card.transformer
    if not card.signals:
        raise ConfigError(
            f"tea_cache compares the modulated input of the first block, and the card of {cls} does not say how that "
            'is read. Add it to the card: signals=(Signal("modulated_input", read),), where read(block, argument) '
            "gives the tensor (dit_cache_backends.models.Signal)."
        )
    chosen, donor, calibration = config.given_set(), "", config.calibration()
    if calibration is not None:
        chosen = calibration.coefficients_of(name)
    elif chosen is None:
        use = choose(cls, model, pipeline, experts, config.rule)
        chosen, donor = PUBLISHED[use.name], use.donor
    elif chosen in PUBLISHED.values():
        own = {PUBLISHED[use.name].model for use in USES if use.transformer == cls and not use.donor}
        donor = "" if chosen.model in own else chosen.model
    by_name = {signal.name: signal for signal in card.signals}
    return Reading(
        plan=plan_with(config, chosen),
        leader=card.stacks[0].name,
        signal=by_name.get(chosen.signal, card.signals[0]),
        donor=donor,
        measured_steps=None if calibration is None else calibration.origin.steps,
    )


def replayed(config: TeaCacheConfig, series: Series) -> list[bool]:
    """Which steps of a recorded run ``tea_cache`` would compute.

    Raises:
        ConfigError: if the coefficients depend on the model, or the run has no signal.
    """
    calibration = config.calibration()
    chosen = config.given_set() if calibration is None else calibration.coefficients_of(series.transformer)
    if chosen is None:
        raise ConfigError(
            "tea_cache: name the coefficients; a record does not tell which published set is the model's"
        )
    if not series.signal:
        raise ConfigError(f"tea_cache: {series.transformer} has no signal, so none was recorded")
    if chosen.signal not in ("", series.signal):
        raise ConfigError(
            f"tea_cache: the coefficients are for the signal {chosen.signal}, and {series.signal} was recorded"
        )
    return plan_with(config, chosen).replay(series)
