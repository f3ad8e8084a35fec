"""``my_cache``: all blocks are skipped while the tokens that enter them have moved little since they last ran."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cache_backends import (
    CalibratorOptions,
    Decision,
    Gate,
    Kept,
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


@dataclass(frozen=True)
class MyCacheConfig(CalibratorOptions, StorageOptions):
    """The options of ``my_cache``; those that choose a predictor, and where what is kept is kept, are inherited."""

    threshold: float = option(0.05, help="Skip while the difference is less. 0 or less: never.")
    warmup_steps: int = option(2, minimum=1, help="Steps at the start of a run that are computed.")


class MyCache(SpanBackend):
    """Skips while the input of the first block has moved little."""

    name = "my_cache"
    Config = MyCacheConfig
    conformance: ClassVar = {"eager": {"threshold": 1e9}, "never": {"threshold": 0.0}}
    config: MyCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def gate(self, place: Place) -> Gate:
        return MyGate(self.config, place.storage)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)


class MyGate(Gate):
    """Lives for one generation, on one branch, at one span: what it remembers needs no reset."""

    def __init__(self, config: MyCacheConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self._reference: Kept | None = None

    def should_run(self, step: Step, probe: Probe) -> Decision:
        tokens = probe.streams[0]
        if self._config.threshold <= 0:
            return Decision(True, "threshold 0", store=False)
        if step.index < self._config.warmup_steps:
            return Decision(True, "warm-up")
        if self._reference is None or tokens is None or self._reference.shape != tokens.shape:
            return Decision(True, "nothing to compare")
        difference = float(relative_difference(*self._storage.pair(self._reference, tokens)))
        return Decision(not difference < self._config.threshold, "difference", difference)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        tokens = probe.streams[0]
        if decision.run and decision.store and tokens is not None and not step.last:
            self._reference = self._storage.keep(tokens.clone())  # the model may write into its own later
