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

from torch import Tensor

from dit_cache_backends import (
    CalibratorOptions,
    Capabilities,
    ConfigError,
    Decision,
    Gate,
    PartOptions,
    Place,
    Predictor,
    Probe,
    Span,
    SpanBackend,
    Step,
    Stream,
    make_calibrator,
    option,
    relative_difference,
)

__all__ = ["FirstBlockCache", "FirstBlockCacheConfig"]


@dataclass(frozen=True)
class FirstBlockCacheConfig(CalibratorOptions, PartOptions):
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
    config: FirstBlockCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        if depth < 2:
            raise ConfigError(f"fb_cache runs the first block and skips the others; this stack has {depth}.")
        return [Span(1, depth)]

    def gate(self, place: Place) -> Gate:
        return FirstBlockGate(self.config)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)


class FirstBlockGate(Gate):
    """Compares what the first block adds now with what it added when the span last ran."""

    def __init__(self, config: FirstBlockCacheConfig) -> None:
        self._config = config
        self._reference: Tensor | None = None
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
        difference = float(relative_difference(reference, probe.change, by_sample).max())
        return Decision(not difference <= config.threshold, "difference", difference)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        self._in_row = 0 if decision.run else self._in_row + 1
        if decision.run and decision.store and not step.last:
            self._reference = probe.change
