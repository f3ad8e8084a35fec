"""Backends that break one promise each, of their interface, their options or their decisions."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from honest import Honest, HonestConfig, HonestGate
from torch import Tensor, nn

from dit_cache_backends import (
    AlreadyEnabledError,
    Capabilities,
    ConfigError,
    Decision,
    Gate,
    Place,
    Predictor,
    Probe,
    Reuse,
    Row,
    Span,
    Step,
    Stream,
    Summary,
    option,
)


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


class Votes(Honest):
    """Declares nothing, so that the engine lets the ranks vote."""

    conformance: ClassVar[Mapping[str, Any]] = {"eager": {"threshold": 0.2}, "never": {"threshold": 0.0}}


class AddsUp(Votes):
    """Decides by sums over all ranks."""

    capabilities = Capabilities(rank_agreement=True)


class IgnoresTheOtherRanks(Votes):
    """Takes the groups that it is to agree over, and asks no other rank."""

    caught_by = "ranks_take_one_decision"

    def agree_over(self, *groups: Any) -> None:
        """There is nobody but this one."""


class AgreesOnTheWorst(AddsUp):
    """Takes the largest difference of all ranks, which is not that of the whole."""

    caught_by = "ranks_decide_as_one_process_would"

    def gate(self, place: Place) -> Gate:
        return _Worst(self.config)


class _Worst(HonestGate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        alone = super().should_run(step, probe)
        if alone.reason == "due":
            return alone
        here = probe.streams[0]
        assert here is not None
        assert self.reference is not None
        worst = (here - self.reference).abs().sum() / self.reference.abs().sum()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
        return Decision(not float(worst) < self.threshold, "difference", float(worst))


class RefusesWithoutSayingSo(Honest):
    """Cannot serve a model, and does not declare it."""

    caught_by = "a_never_skipping_configuration_runs_every_block"
    caught_on = ("dit",)
    refused: ClassVar[str] = "DiTTransformer2DModel"

    def prepare(self, transformer: nn.Module, card: Any, pipeline: object) -> None:
        if card.transformer == self.refused:
            raise ConfigError(f"honest knows no {card.transformer}")


class DeclaresARefusalThatNeverComes(Honest):
    """Declares to refuse a model, and takes it."""

    caught_by = "a_refused_model_is_left_alone"
    conformance: ClassVar[Mapping[str, Any]] = {**Honest.conformance, "refuses": {"dit": "it is no flow"}}


class RefusesTooLate(DeclaresARefusalThatNeverComes):
    """Refuses a model after it has done something to it."""

    def enable(self, pipeline: Any, card: Any = None) -> None:
        transformer = getattr(pipeline, "transformer", pipeline)
        transformer.__dict__["_step_of_the_cache"] = 0
        if type(transformer).__name__ == RefusesWithoutSayingSo.refused:
            raise ConfigError(f"honest knows no {type(transformer).__name__}")
        super().enable(pipeline, card)


class RefusesNameless(RefusesTooLate):
    """Refuses a model without saying which."""

    def enable(self, pipeline: Any, card: Any = None) -> None:
        if type(getattr(pipeline, "transformer", pipeline)).__name__ == RefusesWithoutSayingSo.refused:
            raise ConfigError("this model will not do")
        Honest.enable(self, pipeline, card)


class RefusesAsDeclared(RefusesWithoutSayingSo):
    """Declares the model that it refuses."""

    caught_by = ""
    conformance = DeclaresARefusalThatNeverComes.conformance
