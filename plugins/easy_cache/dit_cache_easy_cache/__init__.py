"""``easy_cache``: EasyCache (arXiv 2507.02860).

How fast the output of a model follows its input changes little over the later part of a run. So the rate between the
last two computed steps, times how far the input has moved since, tells how far the output would have moved. Nothing
is measured beforehand.

The paper's input and output are those of the model: the latent, and the velocity predicted from it. Here they are
those of the stack of blocks: the tokens at its entry and at its exit. Between the two lie embedding, norm and
projection, which are the same at every step but for the modulation of the last norm. What is added back on a skip,
exit minus entry, has one shape even where latent and output have different channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_cache_backends import (
    CalibratorOptions,
    Decision,
    Gate,
    Kept,
    PartOptions,
    Place,
    Predictor,
    Probe,
    Span,
    SpanBackend,
    Step,
    StorageOptions,
    Stream,
    make_calibrator,
    option,
)
from dit_cache_backends.calibrate import Series, rate_between, steps_of
from dit_cache_backends.search import PREDICTORS, Search, Threshold

__all__ = ["EasyCache", "EasyCacheConfig"]

_ERROR = "easy_cache.error"
_LEADER, _DECISION = "easy_cache.leader", "easy_cache.decision"


@dataclass(frozen=True)
class EasyCacheConfig(CalibratorOptions, PartOptions, StorageOptions):
    """The options of ``easy_cache``. Defaults are those of ComfyUI's node of that name."""

    threshold: float = option(
        0.2,
        aliases=("reuse_threshold",),
        help="Skip while the changes foretold since the last computed step sum up to less. 0 or less: never.",
    )
    start_percent: float = option(
        0.15, minimum=0, maximum=1, help="Steps in this part of the run, its beginning, are computed."
    )
    end_percent: float = option(
        0.95, minimum=0, maximum=1, help="Steps after this part of the run are computed."
    )
    batch_decision: str = option(
        "all",
        choices=("all", "mean"),
        help="Skip only if every sample agrees, each by its own rate; or decide by the mean over the batch.",
    )


class EasyCache(SpanBackend):
    """EasyCache: the rate at which the output follows the input tells when to skip; no calibration."""

    name = "easy_cache"
    Config = EasyCacheConfig
    conformance: ClassVar = {
        "eager": {"threshold": 1e6, "start_percent": 0.0, "end_percent": 1.0},
        "never": {"threshold": 0.0},
    }
    searches: ClassVar = (Search("threshold", Threshold("threshold", 0.01, 5.0), {"predictor": PREDICTORS}),)
    config: EasyCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def gate(self, place: Place) -> Gate:
        return EasyGate(self.config, place)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)

    def replay(self, series: Series) -> list[bool]:
        """Which steps of a recorded run it would compute; a batch is decided by its mean."""
        config, computed = self.config, list[bool]()
        rate: float | None = None
        last: int | None = None
        error = 0.0
        for step in steps_of(series):
            now, total = step.index, math.inf
            if last is not None and rate is not None and config.threshold > 0 and within(config, step):
                moved, size = series.change("input", now - 1, now), series.columns["input_size"][now - 1]
                out = series.columns["exit_size"][last]
                if moved is not None and size is not None and out:
                    total = error + rate * moved * size / out
            run = not total < config.threshold
            computed.append(run)
            error = 0.0 if run else total
            if run:
                found = None if last is None else rate_between(series, last, now)
                rate, last = rate if found is None else found, now
        return computed


def within(config: EasyCacheConfig, step: Step) -> bool:
    """Whether the step lies in the part of the run where steps may be skipped, by ComfyUI's two options."""
    if step.index == 0:
        return False
    started = step.total is None or step.index >= math.ceil(config.start_percent * step.total)
    ended = step.run_total is not None and step.run_index >= math.ceil(config.end_percent * step.run_total)
    return started and not ended


class EasyGate(Gate):
    """Decides for the first stack of a transformer; the gates of its other stacks do as it did at that step."""

    def __init__(self, config: EasyCacheConfig, place: Place) -> None:
        self._config = config
        self._shared = place.shared
        self._leads = place.shared.setdefault(_LEADER, place.stack) == place.stack
        self._storage = place.storage
        self._before: Kept | None = None
        """The entry at the step before."""
        self._computed: tuple[Kept, Kept] | None = None
        """Entry and exit at the last computed step."""
        self._rate: Tensor | None = None
        self._error: Tensor | float = 0.0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if not self._leads:
            index, run = self._shared.get(_DECISION, (None, True))
            return Decision(run or index != step.run_index, "as the first stack")
        if self._config.threshold <= 0:
            return Decision(True, "threshold 0", store=False)
        if not within(self._config, step):
            return Decision(True, "outside start_percent and end_percent")
        error = self._foretold(probe.entry[0])
        if error is None:
            return Decision(True, "no rate yet")
        probe.notes[_ERROR] = error
        worst = float(error.max())
        return Decision(not worst < self._config.threshold, "threshold", worst)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        entry, out = probe.entry[0], None if probe.exit is None else probe.exit[0]
        self._shared[_DECISION] = (step.run_index, decision.run)
        if not self._leads or entry is None or self._config.threshold <= 0 or step.last:
            return
        # Copies: a skipped block hands its input on and a last one its output, and the model may write into either.
        self._before = kept = self._storage.keep(entry.clone())
        self._error = 0.0 if decision.run else probe.notes.get(_ERROR, 0.0)
        if not decision.run or out is None:
            return
        if self._computed is not None and _alike(self._computed[0], entry) and _alike(self._computed[1], out):
            moved, followed = (
                self._moved(then, now) for now, then in zip((entry, out), self._computed, strict=True)
            )
            rate = followed / moved
            self._rate = rate if self._rate is None else torch.where(moved > 0, rate, self._rate)
        self._computed = (kept, self._storage.keep(out.clone()))

    def _foretold(self, entry: Tensor | None) -> Tensor | None:
        """The sum of ``k * |dIn| / |Out|`` since the last computed step, this one included (arXiv 2507.02860, 3.2)."""
        before, computed, rate = self._before, self._computed, self._rate
        if before is None or computed is None or rate is None or not _alike(before, entry) or entry is None:
            return None
        moved = self._moved(before, entry)
        change = rate * moved / self._mean(self._storage.give(computed[1]))
        return self._error + torch.where(moved > 0, change, torch.zeros_like(change))

    def _moved(self, kept: Kept, now: Tensor) -> Tensor:
        before, now = self._storage.pair(kept, now)
        return self._mean(now - before)

    def _mean(self, tensor: Tensor) -> Tensor:
        """The mean size of the numbers of each sample, or of the whole batch."""
        sizes = tensor.float().abs()
        return sizes.mean() if self._config.batch_decision == "mean" else sizes.flatten(1).mean(1)


def _alike(one: Kept, other: Tensor | None) -> bool:
    return other is not None and (one.shape, one.dtype, one.device) == (
        other.shape,
        other.dtype,
        other.device,
    )
