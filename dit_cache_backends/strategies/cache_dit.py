"""``cache_dit``: DBCache, step computation masks (SCM) and TaylorSeer, with the options of cache-dit and vLLM-Omni.

The strategy is that of cache-dit 1.5.3 (its ``DBCache``); what differs on purpose is listed in ``docs/parity.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from dit_cache_backends.backend import Capabilities, SpanBackend
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe, relative_difference
from dit_cache_backends.engine.predictors import Predictor, Reuse, TaylorSeer
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.strategies.cache_dit_options import CacheDiTConfig
from dit_cache_backends.strategies.scm import has_preset, policy_mask


class CacheDiT(SpanBackend):
    """DBCache, SCM and TaylorSeer: the first blocks run and tell whether the middle ones have to."""

    name = "cache_dit"
    Config = CacheDiTConfig
    capabilities = Capabilities()
    config: CacheDiTConfig

    def layout(self, depth: int) -> Sequence[Span]:
        front, back = self.config.Fn_compute_blocks, self.config.Bn_compute_blocks
        if front + back >= depth:
            raise ConfigError(
                f"Fn_compute_blocks={front} and Bn_compute_blocks={back} leave no block that could be skipped. "
                f"Expected Fn_compute_blocks + Bn_compute_blocks to be at most {depth - 1}."
            )
        return [Span(front, depth - back)]

    def gate(self, place: Place) -> Gate:
        return _Gate(self.config, place)

    def predictor(self, stream: Stream) -> Predictor:
        config = self.config
        encoder = (
            config.enable_taylorseer
            if config.enable_encoder_taylorseer is None
            else config.enable_encoder_taylorseer
        )
        if not (config.enable_taylorseer if stream.main else encoder) or config.taylorseer_order == 0:
            return Reuse()
        of = "output" if config.taylorseer_cache_type == "hidden_states" else "residual"
        return TaylorSeer(config.taylorseer_order, of)  # type: ignore[arg-type]

    def restarts(self, index: int, times: int) -> bool:
        hint = self.config.force_refresh_step_hint
        return (
            hint is not None
            and index == hint
            and (times == 0 or self.config.force_refresh_step_policy == "repeat")
        )

    def calls_per_step(self) -> int:
        return 2 if self.config.enable_separate_cfg else 1


class _Gate(Gate):
    """The rule of DBCache, in its order: warm-up, mask, limits, then the difference of what the first blocks add."""

    def __init__(self, config: CacheDiTConfig, place: Place) -> None:
        self._config = config
        self._place = place
        self._explicit = config.explicit_mask
        self._presets: dict[int, tuple[int, ...]] = {}
        share = not config.cfg_diff_compute_separate and not config.cfg_compute_first
        self._leader = next(iter(place.peers.values()), None) if share else None
        self._told = False
        self._stored = False
        self._reference: Tensor | None = None
        self._recorded: tuple[int, float] | None = None
        self._cached = 0
        self._in_row = 0
        self._last_cached: int | None = None
        self._accumulated = 0.0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        config, mask = self._config, self._mask(step)
        warmup = (
            config.max_warmup_steps if mask is None else min(config.max_warmup_steps, _leading_ones(mask))
        )
        if step.index in range(0, warmup, config.warmup_interval):
            return Decision(True, "warm-up")
        if mask is not None:
            if step.index >= len(mask):
                return Decision(True, "beyond the mask")
            if mask[step.index]:
                return Decision(True, "mask")
            if config.static:
                return Decision(False, "mask")
        if 0 <= config.max_cached_steps <= self._cached:
            return Decision(True, "max_cached_steps")
        if 0 <= config.max_continuous_cached_steps <= self._row_before(step):
            return Decision(True, "max_continuous_cached_steps")
        limit = config.max_accumulated_residual_diff_threshold
        if limit is not None and 0 < limit <= self._accumulated:
            return Decision(True, "max_accumulated_residual_diff_threshold")
        threshold = config.residual_diff_threshold
        if threshold <= 0:
            return Decision(True, "threshold 0")
        if not self._stored:
            return Decision(True, "nothing stored")
        if threshold >= 1:
            return Decision(False, "threshold 1", -1.0)
        return self._compare(step, probe, threshold)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        mask = self._mask(step)
        if not self._told:
            self._told = True
            self._tell(step, mask)
        if decision.difference is not None:
            self._recorded = (step.index, decision.difference)
            if math.isfinite(decision.difference):
                self._accumulated += max(decision.difference, 0.0)
        if decision.run:
            self._stored = True
            compares = 0 < self._config.residual_diff_threshold < 1 and not (
                self._config.static and mask is not None
            )
            if compares and not step.last:
                self._reference = probe.change
            return
        self._in_row = self._row_before(step) + 1
        self._last_cached = step.index
        self._cached += 1

    def _row_before(self, step: Step) -> int:
        return self._in_row if self._last_cached == step.index - 1 else 0

    def _compare(self, step: Step, probe: Probe, threshold: float) -> Decision:
        reference, leader = self._reference, self._leader
        here = probe.streams[0]
        if reference is None or here is None or reference.shape != here.shape:
            return Decision(True, "shape changed", -2.0)
        if isinstance(leader, _Gate) and leader._recorded is not None and leader._recorded[0] == step.index:
            difference = leader._recorded[1]
        else:
            every = self._config.batch_decision == "all"
            difference = float(relative_difference(reference, probe.change, per_sample=every).max().item())
        return Decision(not difference < threshold, "difference", difference)

    def _mask(self, step: Step) -> tuple[int, ...] | None:
        """The mask in force, one digit a step of this transformer."""
        explicit = self._explicit
        if explicit is not None:
            # With two experts a mask as long as the run is for the run; the second expert has its last part.
            whole_run = len(explicit) == step.run_total != step.total
            return explicit[step.run_index - step.index :] if whole_run else explicit
        policy, total = self._config.policy, step.total or self._config.num_inference_steps
        if policy is None or total is None or not has_preset(total):
            return None
        if total not in self._presets:
            self._presets[total] = policy_mask(policy, total)
        return self._presets[total]

    def _tell(self, step: Step, mask: tuple[int, ...] | None) -> None:
        """Say in the summary where the mask asked for is not the one in force."""
        where, total = self._place.transformer, step.total
        if (
            self._explicit is not None
            and total is not None
            and len(self._explicit) not in (total, step.run_total)
        ):
            self._place.report(
                "mask_length",
                f"{where}: the mask has {len(self._explicit)} steps and the run {total}; steps beyond the mask "
                "compute.",
            )
        if mask is None and self._config.policy is not None:
            self._place.report(
                "mask_off",
                f"{where}: there is no {self._config.policy!r} mask for {total or 'an unknown number of'} "
                "steps (presets are for "
                f"4, 6, and 8 or more), so no mask was used.",
            )


def _leading_ones(mask: Sequence[int]) -> int:
    return next((index for index, digit in enumerate(mask) if not digit), len(mask))
