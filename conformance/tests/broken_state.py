"""Backends that keep what they should not, or too long, or by reference: one promise each."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from honest import Honest, HonestConfig, HonestGate
from torch import Tensor

from dit_cache_backends import (
    Decision,
    Gate,
    Place,
    Predictor,
    Probe,
    Reuse,
    Step,
    StorageOptions,
    Stream,
)


class Kept:
    """Residuals by stream, and what else several gates or predictors share."""

    def __init__(self) -> None:
        self.values: dict[Hashable, Tensor] = {}
        self.calls = 0


class FromKept(Predictor):
    """Keeps and hands out through something shared."""

    def __init__(self, kept: Kept, key: Callable[[], Hashable]) -> None:
        self.kept, self.key = kept, key

    def observe(self, step: Step, value: Tensor) -> None:
        self.kept.values[self.key()] = self.latest = value

    def predict(self, step: Step) -> Tensor:
        found = self.kept.values.get(self.key())
        return found if found is not None else self.latest


class KeptGate(HonestGate):
    def __init__(self, config: HonestConfig, kept: Kept) -> None:
        super().__init__(config)
        self.kept = kept

    def should_run(self, step: Step, probe: Probe) -> Decision:
        self.kept.calls += 1
        return super().should_run(step, probe)


class Sharing(Honest):
    """What is kept hangs on something that is shared by more than it should be."""

    def shared(self, place: Place) -> Kept:
        raise NotImplementedError

    def gate(self, place: Place) -> Gate:
        self.latest = self.shared(place)
        return KeptGate(self.config, self.latest)

    def predictor(self, stream: Stream) -> Predictor:
        return FromKept(self.latest, lambda: stream.name)


class SharesBranches(Sharing):
    """Keeps one residual for all branches of a run."""

    caught_by = "branches_do_not_mix"

    def shared(self, place: Place) -> Kept:
        first = next(iter(place.peers.values()), None)
        return first.kept if isinstance(first, KeptGate) else Kept()


class DecidesByParity(SharesBranches):
    """Takes every second call for the other branch."""

    caught_by = "three_branches_do_not_mix"

    def predictor(self, stream: Stream) -> Predictor:
        kept = self.latest
        return FromKept(kept, lambda: (stream.name, kept.calls % 2))


class SharesPipelines(Sharing):
    """Keeps its state on the class, by names that two pipelines share."""

    caught_by = "two_models_do_not_mix"
    everywhere: ClassVar[dict[Hashable, Kept]] = {}

    def shared(self, place: Place) -> Kept:
        return self.everywhere.setdefault((place.transformer, place.stack, place.branch), Kept())


class RemembersAcrossRuns(Honest):
    """Compares the first steps of a run with the last ones of the run before."""

    caught_by = "a_new_generation_remembers_nothing"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.gates: dict[Hashable, Gate] = {}

    def gate(self, place: Place) -> Gate:
        return self.gates.setdefault((place.transformer, place.stack, place.branch), _Tiring(self.config))


class _Tiring(HonestGate):
    """Skips at most four times."""

    skipped = 0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        return super().should_run(step, probe) if self.skipped < 4 else Decision(True, "tired")

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        self.skipped += not decision.run


class LeaksTensors(Honest):
    """Keeps a diary."""

    caught_by = "no_tensor_outlives_its_run"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.diary: list[Tensor] = []

    def gate(self, place: Place) -> Gate:
        return _Writing(self.config, self.diary)


class _Writing(HonestGate):
    def __init__(self, config: HonestConfig, diary: list[Tensor]) -> None:
        super().__init__(config)
        self.diary = diary

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        self.diary.append(probe.change)


@dataclass(frozen=True)
class StorageConfig(HonestConfig, StorageOptions):
    """Says that what is kept may be kept otherwise."""


class KeepsAsItComes(Honest):
    """Its gate keeps a tensor without asking the storage."""

    caught_by = "what_is_kept_has_the_dtype_asked_for"
    Config: ClassVar[type] = StorageConfig


class KeepsAReference(Sharing):
    """Keeps the very tensor that the model goes on with."""

    caught_by = "a_model_may_write_into_what_its_blocks_gave"

    def shared(self, place: Place) -> Kept:
        return Kept()

    def gate(self, place: Place) -> Gate:
        super().gate(place)
        return _Referring(self.config, self.latest)

    def predictor(self, stream: Stream) -> Predictor:
        return _Referred(self.latest) if stream.main else Reuse()


class _Referring(KeptGate):
    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        if decision.run and probe.exit is not None and probe.exit[0] is not None:
            assert probe.streams[0] is not None
            self.kept.values["exit"], self.kept.values["entry"] = probe.exit[0], probe.streams[0].clone()


class _Referred(Reuse):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def predict(self, step: Step) -> Tensor:
        return self.kept.values["exit"] - self.kept.values["entry"]
