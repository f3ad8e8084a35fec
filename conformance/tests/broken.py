"""An honest backend, and backends that break one promise each: what the suite is tested with."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dit_cache_backends import (
    AlreadyEnabledError,
    Capabilities,
    Decision,
    Gate,
    Place,
    Predictor,
    Probe,
    Reuse,
    Row,
    Span,
    SpanBackend,
    Step,
    Stream,
    Summary,
    option,
    relative_difference,
)


@dataclass(frozen=True)
class HonestConfig:
    threshold: float = option(0.9, minimum=0, help="Skip while the first block's output differs by less.")


class HonestGate(Gate):
    """Compares what comes in with what came in when the span last ran; runs every third step in any case."""

    def __init__(self, config: HonestConfig) -> None:
        self.threshold = config.threshold
        self.reference: Tensor | None = None
        self.ran_at = 0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        here = probe.streams[0]
        assert here is not None
        if self.reference is None or self.reference.shape != here.shape or step.index - self.ran_at > 2:
            return Decision(True, "due")
        difference = float(relative_difference(self.reference, here))
        return Decision(not difference < self.threshold, "difference", difference)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if decision.run and probe.streams[0] is not None:
            self.reference, self.ran_at = probe.streams[0].clone(), step.index


class Honest(SpanBackend):
    """Keeps every promise."""

    name = "honest"
    Config: ClassVar[type] = HonestConfig
    conformance: ClassVar[Mapping[str, Any]] = {"eager": {"threshold": 0.9}, "never": {"threshold": 0.0}}
    caught_by: ClassVar[str] = ""

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(1, depth)]

    def gate(self, place: Place) -> Gate:
        return HonestGate(self.config)


class AlwaysDense(Honest):
    """Never skips, whatever it is told."""

    caught_by = "an_eager_configuration_skips"

    def gate(self, place: Place) -> Gate:
        return HonestGate(HonestConfig(threshold=0.0))


class SkipsThoughNever(Honest):
    """Does not heed the option that switches it off."""

    caught_by = "a_never_skipping_configuration_runs_every_block"

    def gate(self, place: Place) -> Gate:
        return HonestGate(HonestConfig())


@dataclass(frozen=True)
class ForgottenConfig(HonestConfig):
    patience_of_the_cache: int = option(3, minimum=0, help="Steps in a row that may be skipped.")


class IgnoresAnOption(Honest):
    """Has an option that nothing reads."""

    Config = ForgottenConfig
    caught_by = "every_option_is_read"


class RefusesNothing(Honest):
    """Drops the options that it does not know."""

    caught_by = "an_unknown_option_is_named"

    def __init__(self, config: Any = None) -> None:
        if isinstance(config, Mapping):
            config = {key: value for key, value in config.items() if key == "threshold"}
        super().__init__(config)


@dataclass(frozen=True)
class UnboundedConfig:
    threshold: Any = option(0.9, help="Skip while the first block's output differs by less.")


class ChecksNothing(Honest):
    """Takes any value for an option."""

    Config = UnboundedConfig
    caught_by = "a_wrong_value_is_refused"


@dataclass
class LooseConfig:
    threshold: float = option(0.9, minimum=0, help="Skip while the first block's output differs by less.")


class CanChangeUnderway(Honest):
    """Its configuration is not frozen."""

    Config = LooseConfig
    caught_by = "the_backend_says_what_it_is"


@dataclass(frozen=True)
class LambdaConfig(HonestConfig):
    measure: Callable[[Tensor], Tensor] = field(default_factory=lambda: lambda x: x, init=False)


class CannotBePickled(Honest):
    """Its configuration holds a function."""

    Config = LambdaConfig
    caught_by = "a_configuration_can_be_copied_and_pickled"

    def gate(self, place: Place) -> Gate:
        return HonestGate(HonestConfig(self.config.threshold))


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


class BreaksOnAnotherBatch(Honest):
    """Believes that all batches are as large as the first."""

    caught_by = "after_another_batch_size"
    size = 0

    def gate(self, place: Place) -> Gate:
        return _Sized(self)


class _Sized(HonestGate):
    def __init__(self, backend: BreaksOnAnotherBatch) -> None:
        super().__init__(backend.config)
        self.backend = backend

    def should_run(self, step: Step, probe: Probe) -> Decision:
        assert probe.streams[0] is not None
        size = probe.streams[0].shape[0]
        self.backend.size = self.backend.size or size
        if size != self.backend.size:
            raise ValueError(f"expected a batch of {self.backend.size}, got {size}")
        return super().should_run(step, probe)


class RestoresHalf(Honest):
    """Leaves something on the model."""

    caught_by = "disable_restores_the_model"

    def enable(self, pipeline: Any, card: Any = None) -> None:
        super().enable(pipeline, card)
        getattr(pipeline, "transformer", pipeline).__dict__["_step_of_the_cache"] = 0


class EnablesTwice(Honest):
    """Thinks that enabling what is enabled is nothing to speak of."""

    caught_by = "enabling_twice_is_refused"

    def enable(self, pipeline: Any, card: Any = None) -> None:
        with suppress(AlreadyEnabledError):
            super().enable(pipeline, card)


class ReportsHitsItHasNotHad(Honest):
    """Counts what it decided, and not what happened."""

    caught_by = "the_hits_reported_are_those_had"

    def summary(self, key: Hashable = None) -> Summary:
        found = super().summary(key)
        told = Summary()
        told.rows = [
            Row(row.transformer, row.stack, row.branch, row.step, row.total, row.blocks_run, row.blocks_run)
            for row in found.rows
        ]
        return told


class SaysNothingOfNothing(Honest):
    """A run without a hit looks like any other."""

    caught_by = "a_run_in_which_nothing_was_skipped_says_so"

    def summary(self, key: Hashable = None) -> Summary:
        found = super().summary(key)
        if not found.blocks_skipped:
            told = _Silent()
            told.rows = found.rows
            return told
        return found


class _Silent(Summary):
    @property
    def events(self) -> list[Any]:
        return []


class RefreshByKeyword(Honest):
    """Takes the number of steps by its name only."""

    caught_by = "refresh_is_called_as_vllm_omni_does"

    def refresh(self, pipeline: Any, *, num_inference_steps: int) -> None:  # type: ignore[override]
        super().refresh(pipeline, num_inference_steps)


class NeedsRefresh(Honest):
    """Does nothing for a host that never heard of caches."""

    caught_by = "refresh_need_not_be_called"
    told = False

    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        super().refresh(pipeline, num_inference_steps, verbose)
        self.told = True

    def gate(self, place: Place) -> Gate:
        return HonestGate(self.config if self.told else HonestConfig(threshold=0.0))


class DrawsLots(Honest):
    """Lets chance decide."""

    caught_by = "no_random_number_is_drawn"

    def gate(self, place: Place) -> Gate:
        return _Lots(self.config)


class _Lots(HonestGate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        random.random()
        return super().should_run(step, probe) if torch.rand(()) < 0.9 else Decision(True, "chance")


class StaysBusy(Honest):
    """Notes that a forward has ended only where it ends as planned, and skips nothing in a nested one."""

    caught_by = "a_run_after_an_exception_is_fresh"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.depth = 0
        self.hooks: list[Any] = []

    def prepare(self, transformer: nn.Module, card: Any, pipeline: object) -> None:
        def move(by: int) -> None:
            self.depth += by

        self.hooks.append(transformer.register_forward_pre_hook(lambda *_: move(1)))
        self.hooks.append(transformer.register_forward_hook(lambda *_: move(-1)))

    def gate(self, place: Place) -> Gate:
        return _Nested(self)

    def disable(self, pipeline: object = None) -> None:
        super().disable(pipeline)
        while self.hooks and not self.is_enabled():
            self.hooks.pop().remove()


class _Nested(HonestGate):
    def __init__(self, backend: StaysBusy) -> None:
        super().__init__(backend.config)
        self.backend = backend

    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(True, "nested") if self.backend.depth > 1 else super().should_run(step, probe)


class OneRequestOnly(Honest):
    """Claims to keep requests apart, and does not."""

    caught_by = "interleaved_requests_do_not_mix"

    @contextmanager
    def session(self, key: Hashable) -> Iterator[None]:
        yield


class HandsOutTheOldOutput(Honest):
    """Gives the whole output of the last computed step, whatever comes in."""

    caught_by = "an_input_that_leaps_is_not_followed_blindly"

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def gate(self, place: Place) -> Gate:
        return _Every(self.config)

    def predictor(self, stream: Stream) -> Predictor:
        predictor = Reuse()
        predictor.of = "output"
        return predictor


class _Every(HonestGate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(self.threshold == 0 or step.index - self.ran_at > 2, "every third")


class WritesIntoItsInputs(Honest):
    """Normalises the model's own argument in place."""

    caught_by = "the_inputs_of_a_model_are_not_written_into"

    def gate(self, place: Place) -> Gate:
        return _Normalising(self.config)


class _Normalising(HonestGate):
    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        super().observe(step, probe, decision)
        latents = probe.argument("hidden_states")
        latents.div_(latents.std())


class ClaimsEachSample(Honest):
    """Declares a decision per sample, and takes one for all."""

    capabilities = Capabilities(batch_decision="per_sample")
    conformance: ClassVar[Mapping[str, Any]] = {"eager": {"threshold": 0.2}, "never": {"threshold": 0.0}}
    caught_by = "each_sample_of_a_batch_is_decided_alone"


class ClaimsAgreement(Honest):
    """Declares that ranks agree, and asks no other rank."""

    capabilities = Capabilities(rank_agreement=True)
    conformance: ClassVar[Mapping[str, Any]] = {"eager": {"threshold": 0.2}, "never": {"threshold": 0.0}}
    caught_by = "ranks_take_one_decision"


class Agrees(ClaimsAgreement):
    """Takes the largest difference of all ranks."""

    caught_by = ""

    def gate(self, place: Place) -> Gate:
        return _Agreeing(self.config)


class _Agreeing(HonestGate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        alone = super().should_run(step, probe)
        worst = torch.tensor(float(alone.run))
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
        return Decision(bool(worst), alone.reason)
