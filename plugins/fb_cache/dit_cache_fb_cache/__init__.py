"""``fb_cache``: First Block Cache.

The first block of a stack runs at every step. While what it adds differs little from what it added when all of them
last ran, the others are skipped, and what they added then is added again. The rule is that of ParaAttention, as
diffusers 0.42.1 has it (``FirstBlockCacheConfig``): TeaCache's measure (arXiv 2411.19108, section 3) on another signal.
A model whose blocks form two stacks has a first block in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cache_backends import (
    CalibratorOptions,
    Capabilities,
    ConfigError,
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
    Storage,
    StorageOptions,
    Stream,
    make_calibrator,
    option,
    relative_difference,
)
from dit_cache_backends.calibrate import Series
from dit_cache_backends.search import PREDICTORS, Search, Threshold

__all__ = ["FirstBlockCache", "FirstBlockCacheConfig"]


@dataclass(frozen=True)
class FirstBlockCacheConfig(CalibratorOptions, PartOptions, StorageOptions):
    """The options of ``fb_cache``. Defaults are those of diffusers, which has the threshold alone."""

    threshold: float = option(
        0.05,
        aliases=("residual_diff_threshold",),
        help="Skip while what the first block adds differs by no more. 0 or less: never.",
    )
    max_warmup_steps: int = option(0, minimum=0, help="Steps at the start of a run that are computed.")
    max_continuous_cached_steps: int = option(
        -1, minimum=-1, help="Cached steps in a row at most; -1: no limit."
    )
    batch_decision: str = option(
        "mean",
        choices=("mean", "all"),
        help="Decide for a batch by its mean difference, or skip only if every sample agrees.",
    )


class FirstBlockCache(SpanBackend):
    """First Block Cache: the first block runs and tells whether the others have to."""

    name = "fb_cache"
    Config = FirstBlockCacheConfig
    capabilities = Capabilities(rank_agreement=True)
    conformance: ClassVar = {"eager": {"threshold": 1e9}, "never": {"threshold": 0.0}}
    searches: ClassVar = (Search("threshold", Threshold("threshold", 0.01, 1.0), {"predictor": PREDICTORS}),)
    config: FirstBlockCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        if depth < 2:
            raise ConfigError(f"fb_cache runs the first block and skips the others; this stack has {depth}.")
        return [Span(1, depth)]

    def gate(self, place: Place) -> Gate:
        return FirstBlockGate(self.config, place.storage)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)

    def replay(self, series: Series) -> list[bool]:
        """Which steps of a recorded run it would compute; a batch is decided by its mean.

        Raises:
            ConfigError: if more than one first block was recorded.
        """
        if series.first_blocks != 1:
            raise ConfigError(
                f"fb_cache compares what one block adds, and that of {series.first_blocks} was recorded"
            )
        config, computed = self.config, list[bool]()
        last, in_row = -1, 0
        for now in range(len(series)):
            change = None if last < 0 else series.change("first", last, now)
            free = config.threshold > 0 and now >= config.max_warmup_steps
            limited = 0 <= config.max_continuous_cached_steps <= in_row
            run = not free or limited or change is None or not change <= config.threshold
            computed.append(run)
            last, in_row = (now, 0) if run else (last, in_row + 1)
        return computed


class FirstBlockGate(Gate):
    """Compares what the first block adds now with what it added when the span last ran."""

    def __init__(self, config: FirstBlockCacheConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self._reference: Kept | None = None
        self._in_row = 0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        config, reference = self._config, self._reference
        if config.threshold <= 0:
            return Decision(True, "threshold 0", store=False)
        if step.index < config.max_warmup_steps:
            return Decision(True, "warm-up")
        if reference is None or reference.shape != probe.change.shape:
            return Decision(True, "nothing to compare")
        if 0 <= config.max_continuous_cached_steps <= self._in_row:
            return Decision(True, "max_continuous_cached_steps")
        by_sample = config.batch_decision == "all"
        pair = self._storage.pair(reference, probe.change)
        difference = float(relative_difference(*pair, by_sample).max())
        return Decision(not difference <= config.threshold, "difference", difference)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        self._in_row = 0 if decision.run else self._in_row + 1
        if decision.run and decision.store and not step.last:
            self._reference = self._storage.keep(probe.change)
