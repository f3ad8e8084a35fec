"""When, as cache-dit's strategies share it: warm-up, step mask and limits first, then a difference.

The rule is that of cache-dit 1.5.3 (``can_cache``); what differs on purpose is listed in ``docs/parity.md``.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from dit_cache_backends.backend import SpanBackend
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe, relative_difference
from dit_cache_backends.engine.storage import PLAIN, Kept, Packed
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.strategies.schedule_options import ScheduleOptions
from dit_cache_backends.strategies.scm import has_preset, policy_mask

SHAPE_CHANGED, UNCOMPARED = -2.0, -1.0
"""What stands for a difference where none was taken, as in cache-dit."""

WARM_UP, COMPUTE, CACHE = Decision(True, "warm-up"), Decision(True, "mask"), Decision(False, "mask")
NEVER = Decision(True, "threshold 0", store=False)


class ScheduledBackend(SpanBackend):
    """A strategy whose ``Config`` has the options of a schedule."""

    config: ScheduleOptions

    def restarts(self, index: int, times: int) -> bool:
        hint = self.config.force_refresh_step_hint
        return (
            hint is not None
            and index == hint
            and (times == 0 or self.config.force_refresh_step_policy == "repeat")
        )

    def calls_per_step(self) -> int:
        return 2 if self.config.enable_separate_cfg else 1


class Schedule:
    """What is decided without any difference, and the steps skipped so far, which its limits are about.

    It may be one span's alone, or common to the spans of a stack on one branch: a step in which anything is skipped
    counts once, and for the steps behind it.
    """

    def __init__(self, options: ScheduleOptions, place: Place) -> None:
        self._options = options
        self._place = place
        self._explicit = options.explicit_mask
        self.masked = self._explicit is not None or options.policy is not None
        self._presets: dict[int, tuple[int, ...]] = {}
        self.told = False
        """Whether ``tell`` was called."""
        self._skipped = 0
        self._in_row = 0
        self._last: int | None = None
        """The last step in which anything was skipped; it ends a row of so many."""
        self._answer: tuple[Step | None, Decision | None] = (None, None)

    def decision(self, step: Step) -> Decision | None:
        """Run or skip; None where a difference decides. What is answered first holds all through the step."""
        asked, answer = self._answer
        if asked is not step:
            answer = self._decide(step)
            self._answer = (step, answer)
        return answer

    def _decide(self, step: Step) -> Decision | None:
        options, mask = self._options, self._mask(step) if self.masked else None
        warmup = options.max_warmup_steps
        if mask is not None:
            warmup = min(warmup, _leading_ones(mask))
        if step.index in range(0, warmup, options.warmup_interval):
            return WARM_UP
        if mask is not None:
            if step.index >= len(mask):
                return Decision(True, "beyond the mask")
            if mask[step.index]:
                return COMPUTE
            if options.static:
                return CACHE
        if 0 <= options.max_cached_steps <= self._skipped:
            return Decision(True, "max_cached_steps", store=False)
        if 0 <= options.max_continuous_cached_steps <= self._row_before(step):
            return Decision(True, "max_continuous_cached_steps")
        return None

    def compares(self, step: Step) -> bool:
        """Whether differences are taken in this run."""
        options = self._options
        if not 0 < options.residual_diff_threshold < 1:
            return False
        return not (self.masked and options.static and self._mask(step) is not None)

    def skipped(self, step: Step) -> None:
        """Told, once in a step or more often, that something is skipped in it."""
        if self._last != step.index:
            self._in_row = self._row_before(step) + 1
            self._last = step.index
            self._skipped += 1

    def tell(self, step: Step) -> None:
        """Say in the summary where the mask asked for is not the one in force."""
        self.told = True
        where, total, explicit = self._place.transformer, step.total, self._explicit
        if explicit is not None and total is not None and len(explicit) not in (total, step.run_total):
            self._place.report(
                "mask_length",
                f"{where}: the mask has {len(explicit)} steps and the run {total}; steps beyond the mask compute.",
            )
        if self._options.policy is not None and self._mask(step) is None:
            self._place.report(
                "mask_off",
                f"{where}: there is no {self._options.policy!r} mask for {total or 'an unknown number of'} steps "
                "(presets are for 4, 6, and 8 or more), so no mask was used.",
            )

    def _row_before(self, step: Step) -> int:
        """Skipped steps in a row that end right before this one."""
        return self._in_row if self._last == step.index - 1 else 0

    def _mask(self, step: Step) -> tuple[int, ...] | None:
        """The mask in force, one digit a step of this transformer."""
        explicit = self._explicit
        if explicit is not None:
            # With two experts a mask as long as the run is for the run; the second expert has its last part.
            whole_run = len(explicit) == step.run_total != step.total
            return explicit[step.run_index - step.index :] if whole_run else explicit
        policy, total = self._options.policy, step.total or self._options.num_inference_steps
        if policy is None or total is None or not has_preset(total):
            return None
        if total not in self._presets:
            self._presets[total] = policy_mask(policy, total)
        return self._presets[total]


class ScheduledGate(Gate):
    """Asks its schedule, then compares what is seen now with what was seen when the span last ran.

    Taking the difference (``measure``, on the device) and deciding by it (``judge``, from what was observed before) are
    apart, so that differences of several spans can be taken first and judged in their order afterwards.
    """

    def __init__(self, options: ScheduleOptions, place: Place, schedule: Schedule) -> None:
        self.schedule = schedule
        self._threshold = options.residual_diff_threshold
        self._never = self._threshold <= 0 and not (schedule.masked and options.static)
        self._every = options.batch_decision == "all"
        share = not options.cfg_diff_compute_separate and not options.cfg_compute_first
        leader = next(iter(place.peers.values()), None) if share else None
        self._leader = leader if isinstance(leader, ScheduledGate) else None
        self._stored = False
        self._storage = place.storage
        self._reference: Kept | None = None
        self._shape: Sequence[int] | None = None
        """That of the main stream when the reference was kept."""
        self._recorded: tuple[int, float] | None = None

    @abstractmethod
    def seen(self, probe: Probe) -> Tensor:
        """What is compared."""

    def kept(self, probe: Probe) -> Tensor:
        """What is seen, as a tensor of this gate's own."""
        return self.seen(probe)

    def threshold(self, step: Step) -> float:
        """What the difference has to stay below, as things stand; between 0 and 1 where it was given so."""
        return self._threshold

    def should_run(self, step: Step, probe: Probe) -> Decision:
        settled = self.settled(step)
        return self.judge(step, float(self.measure(step, probe))) if settled is None else settled

    def settled(self, step: Step) -> Decision | None:
        """What is decided without a look at any tensor; None where the difference decides."""
        if self._never:
            return NEVER
        decision = self.schedule.decision(step)
        if decision is not None:
            return decision
        if self._threshold <= 0:
            return NEVER
        if not self._stored:
            return Decision(True, "nothing stored")
        return Decision(False, "threshold 1", UNCOMPARED) if self._threshold >= 1 else None

    def measure(self, step: Step, probe: Probe) -> Tensor | float:
        """The difference: a scalar on the device, or a number where it is known without it. Changes nothing."""
        pair = self.compared(step, probe)
        if isinstance(pair, float):
            return pair
        difference = relative_difference(*pair, per_sample=self._every)
        return difference.max() if self._every else difference

    def compared(self, step: Step, probe: Probe) -> tuple[Tensor, Tensor] | float:
        """What was seen when the span last ran, and what is seen now; or the difference where it is known."""
        reference, leader, here = self._reference, self._leader, probe.streams[0]
        if reference is None or here is None or self._shape != here.shape:
            return SHAPE_CHANGED
        if leader is not None and leader._recorded is not None and leader._recorded[0] == step.index:
            shared = leader._recorded[1]
            if shared >= 0:
                return shared
        now = self.seen(probe)
        if isinstance(reference, Packed):
            reference, now = self._storage.pair(reference, now)
        return reference, now

    def judge(self, step: Step, difference: float) -> Decision:
        """What a difference decides, after all that was observed so far. Changes nothing."""
        if difference < 0:
            return Decision(True, "shape changed", difference)
        return Decision(not difference < self.threshold(step), "difference", difference)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if not self.schedule.told:
            self.schedule.tell(step)
        if self._never:
            return
        if decision.difference is not None:
            self._recorded = (step.index, decision.difference)
        if not decision.run:
            self.schedule.skipped(step)
            return
        self._stored = True
        here = probe.streams[0]
        if here is not None and decision.store and not step.last and self.schedule.compares(step):
            kept = self.kept(probe)
            self._reference = kept if self._storage is PLAIN else self._storage.keep(kept)
            self._shape = here.shape


def _leading_ones(mask: Sequence[int]) -> int:
    return next((index for index, digit in enumerate(mask) if not digit), len(mask))


untraced_module(sys.modules[__name__])
