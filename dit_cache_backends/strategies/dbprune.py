"""``dbprune``: dynamic block pruning, each block on its own, with the options of cache-dit.

The strategy is that of cache-dit 1.5.3 (its ``DBPrune``); what differs on purpose is listed in ``docs/parity.md``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_float
from typing import Any, ClassVar

import torch
from torch import Tensor

from dit_cache_backends.backend import Capabilities
from dit_cache_backends.calibrators import make_calibrator
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe, magnitude, relative_difference
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.ranks import summed_over_ranks
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.storage import Storage
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.search import PREDICTORS, PRESETS, Search, Threshold
from dit_cache_backends.strategies.dbprune_options import DBPruneConfig
from dit_cache_backends.strategies.presets import pruned_blocks
from dit_cache_backends.strategies.schedule import Schedule, ScheduledBackend, ScheduledGate

FIRST = 5
"""Differences of a step by whose mean its threshold may rise."""


class DBPrune(ScheduledBackend):
    """Dynamic block pruning: a block is skipped while its input is like the one at which it last ran."""

    name = "dbprune"
    Config = DBPruneConfig
    capabilities = Capabilities(rank_agreement=True)
    searches: ClassVar = (
        Search("threshold", Threshold("residual_diff_threshold", 0.005, 0.9), {"predictor": PREDICTORS}),
        Search("presets", PRESETS),
    )
    config: DBPruneConfig

    def layout(self, depth: int) -> Sequence[Span]:
        front, back = self.config.Fn_compute_blocks, self.config.Bn_compute_blocks
        kept = set(self.config.non_prune_block_ids)
        spans = [Span(number, number + 1) for number in range(front, depth - back) if number not in kept]
        if not spans:
            raise ConfigError(
                f"Fn_compute_blocks={front}, Bn_compute_blocks={back} and "
                f"non_prune_block_ids={sorted(kept)} leave no block that could be pruned. "
                f"Expected them to spare at least one of the blocks 0 to {depth - 1}."
            )
        return spans

    @classmethod
    def preset(cls, name: str, steps: int | None) -> Mapping[str, Any]:
        return pruned_blocks(name, steps)

    def gate(self, place: Place) -> Gate:
        return _Gate(self.config, place)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)


class _Stack:
    """What the gates of one stack on one branch know together."""

    def __init__(self, config: DBPruneConfig, place: Place) -> None:
        self.schedule = Schedule(config, place)
        self._front = config.Fn_compute_blocks
        self._step = -1
        self._differences: list[float] = []
        self._spare = 0
        beyond = sorted(number for number in config.non_prune_block_ids if number >= place.depth)
        if beyond:
            place.report(
                "no_such_block",
                f"{place.transformer}: non_prune_block_ids names {', '.join(map(str, beyond))}, but the blocks of "
                f"{place.stack} are 0 to {place.depth - 1}.",
            )

    def note(self, step: Step, difference: float) -> None:
        """A span was decided by this difference."""
        self._begin(step)
        if len(self._differences) < FIRST:
            self._differences.append(difference)

    def ran(self, step: Step) -> None:
        """A block that could have been pruned ran."""
        self._begin(step)
        self._spare += 1

    def read(self, step: Step) -> None:
        """Differences are read from the device, which waits for it."""
        self._begin(step)
        self._spare -= 1

    def may_read_twice(self, step: Step) -> bool:
        """Whether, were the next reading in vain, there would still be at most one to a block that ran, and one."""
        self._begin(step)
        return self._spare >= 2

    def _begin(self, step: Step) -> None:
        if step.index != self._step:
            self._step, self._differences, self._spare = step.index, [], 1 + self._front

    def mean(self, step: Step) -> float | None:
        """The mean of the step's first differences, as far as they are known; None where there is none."""
        taken = [each for each in self._differences if each > 0] if step.index == self._step else []
        return sum(taken) / len(taken) if taken else None


class _Gate(ScheduledGate):
    """The rule of DBPrune: the difference is that of the block's input; limits and threshold are the stack's."""

    def __init__(self, config: DBPruneConfig, place: Place) -> None:
        key = f"dbprune: {place.stack}"
        stack = place.shared.get(key)
        if stack is None:
            stack = place.shared[key] = _Stack(config, place)
        super().__init__(config, place, stack.schedule)
        self._stack: _Stack = stack
        self._config = config
        self._dtype = getattr(torch, config.compare_dtype) if config.compare_dtype else None
        if self._dtype is not None and self._storage.dtype is not None:
            self._storage = Storage(self._storage.device)
        self._size: float | None = None
        """The sum of the reference, once it was read; a block that is skipped often is compared with one for long."""
        self._ran = False
        """Whether the block ran when it was last compared: then it is likely to run again."""

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if probe.measured is not None:
            # Nothing was settled when it was measured ahead, and what settles it holds all through the step.
            return self.judge(step, probe.measured)
        settled = self.settled(step)
        return self.judge(step, self._read(step, probe)) if settled is None else settled

    def _read(self, step: Step, probe: Probe) -> float:
        """The difference here, read from the device together with those of the blocks behind.

        As long as blocks are pruned their sums and differences can be made without knowing any of them. How far that
        goes is a wager: up to a block that ran the last time, since what lies behind it would have been measured in
        vain; to the end where the step has no reading to spare.
        """
        wager = self._stack.may_read_twice(step)
        if wager and self._ran:
            difference = self.measure(step, probe)
            if isinstance(difference, Tensor):
                self._stack.read(step)
            return float(difference)
        sums: list[Tensor] = []
        gates, known, told = [self], [self._take(step, probe, sums)], []
        for gate, ahead, foretell in probe.ahead():
            if not isinstance(gate, _Gate) or gate.settled(step) is not None:
                break
            gates.append(gate)
            known.append(gate._take(step, ahead, sums))
            told.append(foretell)
            if wager and gate._ran:
                break
        numbers = iter(())
        if sums:
            self._stack.read(step)
            stacked = torch.stack(sums)
            numbers = iter((stacked if self._every else summed_over_ranks(stacked)).tolist())
        found = [
            gate._given(numbers) if number is None else number
            for gate, number in zip(gates, known, strict=True)
        ]
        for foretell, number in zip(told, found[1:], strict=True):
            foretell(number)
        return found[0]

    def _take(self, step: Step, probe: Probe, sums: list[Tensor]) -> float | None:
        """The difference if it is known; else add to ``sums`` what has to be read for it."""
        pair = self.compared(step, probe)
        if isinstance(pair, float):
            return pair
        before, now = pair
        if self._every:
            sums.append(relative_difference(before, now, per_sample=True).max())
            return None
        sums.append(magnitude(before - now))
        if self._size is None:
            sums.append(magnitude(before))
        return None

    def _given(self, numbers: Iterator[float]) -> float:
        """The difference by what was read, of which this takes its part."""
        number = next(numbers)
        if self._every:
            return number
        if self._size is None:
            self._size = next(numbers)
        if not self._size:
            return math.inf if number > 0 else math.nan
        # As the device divides, so that it does not matter how many differences were read at once.
        return c_float(number / self._size).value

    def seen(self, probe: Probe) -> Tensor:
        here = probe.streams[0]
        if here is None:
            raise ValueError("The main stream of the stack is None; its card names another stream first.")
        every = self._config.downsample_factor
        if every > 1:
            here = here[..., ::every, :]
        return here if self._dtype is None else here.to(self._dtype)

    def kept(self, probe: Probe) -> Tensor:
        # A copy: the model's tensor may be part of a larger one, be written into behind the block, or lie in memory
        # that a CUDA graph uses again.
        self._size = None
        seen, here = self.seen(probe), probe.streams[0]
        shares = here is not None and seen.dtype == here.dtype
        return seen.clone(memory_format=torch.contiguous_format) if shares else seen.contiguous()

    def threshold(self, step: Step) -> float:
        config = self._config
        own = config.residual_diff_threshold
        mean = self._stack.mean(step) if config.enable_dynamic_prune_threshold else None
        if mean is None:
            return own
        cap = config.max_dynamic_prune_threshold
        raised = config.dynamic_prune_threshold_relax_ratio * mean
        return max(own, raised) if raised < (2 * own if cap is None else cap) else own

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        if decision.difference is not None:
            self._stack.note(step, decision.difference)
            self._ran = decision.run
        if decision.run:
            self._stack.ran(step)


untraced_module(sys.modules[__name__])
