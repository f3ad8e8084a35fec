"""``cache_dit``: DBCache, step computation masks (SCM) and calibrators, with the options of cache-dit and vLLM-Omni.

The strategy is that of cache-dit 1.5.3 (its ``DBCache``); what differs on purpose is listed in ``docs/parity.md``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dit_cache_backends.backend import Capabilities
from dit_cache_backends.calibrators import make_calibrator
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.search import PREDICTORS, PRESETS, Ladder, Search, Threshold, even_steps
from dit_cache_backends.strategies.cache_dit_options import CacheDiTConfig
from dit_cache_backends.strategies.presets import planned_steps
from dit_cache_backends.strategies.schedule import (
    SHAPE_CHANGED,
    Schedule,
    ScheduledBackend,
    ScheduledGate,
)
from dit_cache_backends.strategies.scm import POLICIES

if TYPE_CHECKING:
    from dit_cache_backends.calibrate.series import Series


class CacheDiT(ScheduledBackend):
    """DBCache, SCM and TaylorSeer: the first blocks run and tell whether the middle ones have to."""

    name = "cache_dit"
    Config = CacheDiTConfig
    capabilities = Capabilities(rank_agreement=True)
    searches: ClassVar = (
        Search(
            "threshold",
            Threshold("residual_diff_threshold", 0.01, 0.99),
            {
                "predictor": PREDICTORS,
                "in a row": {f"{n} in a row": {"max_continuous_cached_steps": n} for n in (3, 2, 5)},
                "first blocks": {f"Fn {n}": {"Fn_compute_blocks": n} for n in (1, 2, 4)},
            },
        ),
        Search(
            "even steps",
            even_steps(
                "steps_computation_mask", {"steps_computation_policy": "static", "max_warmup_steps": 0}
            ),
            {"predictor": PREDICTORS},
        ),
        Search(
            "SCM masks",
            Ladder([{"scm_steps_mask_policy": name, "scm_steps_policy": "static"} for name in POLICIES]),
            {"predictor": PREDICTORS},
        ),
        Search("presets", PRESETS),
    )
    config: CacheDiTConfig

    def layout(self, depth: int) -> Sequence[Span]:
        front, back = self.config.Fn_compute_blocks, self.config.Bn_compute_blocks
        if front + back >= depth:
            raise ConfigError(
                f"Fn_compute_blocks={front} and Bn_compute_blocks={back} leave no block that could be skipped. "
                f"Expected Fn_compute_blocks + Bn_compute_blocks to be at most {depth - 1}."
            )
        return [Span(front, depth - back)]

    @classmethod
    def preset(cls, name: str, steps: int | None) -> Mapping[str, Any]:
        return planned_steps(name, steps)

    def gate(self, place: Place) -> Gate:
        return _Gate(self.config, place)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)

    def replay(self, series: Series) -> list[bool]:
        """Which steps of a recorded run it would compute; see ``calibrate.simulate``.

        Raises:
            ConfigError: if another number of first blocks was recorded, or steps are forgotten on the way.
        """
        from dit_cache_backends.calibrate.replay import ask, place_of

        front = self.config.Fn_compute_blocks
        if front != series.first_blocks:
            raise ConfigError(
                f"cache_dit: Fn_compute_blocks is {front}, and what the first {series.first_blocks} blocks add was "
                "recorded; record anew with as many first blocks"
            )
        if self.config.force_refresh_step_hint is not None:
            raise ConfigError("cache_dit: a run with force_refresh_step_hint cannot be simulated on a record")
        return ask(_Replayed(self.config, place_of(series), series), series)


class _Gate(ScheduledGate):
    """The rule of DBCache: the difference is that of what the first blocks add, and its sum may have a limit."""

    def __init__(self, config: CacheDiTConfig, place: Place) -> None:
        super().__init__(config, place, Schedule(config, place))
        self._limit = config.max_accumulated_residual_diff_threshold
        self._accumulated = 0.0

    def seen(self, probe: Probe) -> Tensor:
        return probe.change

    def settled(self, step: Step) -> Decision | None:
        settled = super().settled(step)
        if settled is None and self._limit is not None and 0 < self._limit <= self._accumulated:
            return Decision(True, "max_accumulated_residual_diff_threshold")
        return settled

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        if decision.difference is not None and math.isfinite(decision.difference):
            self._accumulated += max(decision.difference, 0.0)


class _Replayed(_Gate):
    """Takes its differences from a recorded run."""

    def __init__(self, config: CacheDiTConfig, place: Place, series: Series) -> None:
        super().__init__(config, place)
        self._series = series
        self._computed: int | None = None

    def measure(self, step: Step, probe: Probe) -> float:
        change = None if self._computed is None else self._series.change("first", self._computed, step.index)
        return SHAPE_CHANGED if change is None else change

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        if decision.run:
            self._computed = step.index


untraced_module(sys.modules[__name__])
