"""The dense run, recorded once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends.backend import SpanBackend
from dit_cache_backends.calibrators import CalibratorOptions
from dit_cache_backends.config import option
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.errors import ConfigError

__all__ = [
    "PlaceKey",
    "Recorder",
    "Recording",
    "RehearsalBackend",
    "device_of",
    "forwards",
    "front_and_back",
    "moved",
]

PlaceKey = tuple[str, str, int, str, int]
"""Transformer, stack, first block of the span, branch, and how often the span was entered before in one forward."""


@dataclass
class Recording:
    """What a dense run of some prompts gave, on the CPU."""

    latents: Tensor | None = None
    """The final ones, ``[prompts, ...]``."""
    rows: list[tuple[int, int]] = field(default_factory=list)
    """For each call and stack the step of the run, and how many blocks ran."""
    steps: int = 0
    """Steps of the run: with a second-order scheduler its model evaluations."""
    first_steps: dict[str, int] = field(default_factory=dict)
    """For each transformer the first step it makes; the second of two experts begins in the middle."""
    outputs: dict[str, list[tuple[int | None, Any]]] = field(default_factory=lambda: defaultdict(list))
    """For each transformer its calls in order: the step of the run, and what came out. No step: it has to run."""
    history: dict[PlaceKey, list[tuple[Step, dict[int, Tensor]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """For each span its steps, and what was shown to the predictor of each stream, by the stream's number."""
    main: dict[PlaceKey, tuple[int, ...]] = field(default_factory=dict)
    """For each span the numbers of the streams that are denoised."""
    latents_after: list[Tensor] = field(default_factory=list)
    """The latents after each step, as far as the pipeline shows them."""


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig(CalibratorOptions):
    """What a plan is rehearsed with."""

    Fn_compute_blocks: int = option(0, minimum=0, help="First blocks of each stack, which always run.")
    Bn_compute_blocks: int = option(0, minimum=0, help="Last blocks of each stack, which always run.")


def front_and_back(config: Any, depth: int) -> list[Span]:
    """The one span between the first and the last blocks.

    Raises:
        ConfigError: if it has no block.
    """
    front, back = config.Fn_compute_blocks, config.Bn_compute_blocks
    if front + back >= depth:
        raise ConfigError(
            f"Fn_compute_blocks={front} and Bn_compute_blocks={back} leave no block that could be skipped. "
            f"Expected them to be at most {depth - 1} together."
        )
    return [Span(front, depth - back)]


class RehearsalBackend(SpanBackend):
    """What recording and replaying share. Its gates learn what the predictors of their span were shown."""

    Config = RehearsalConfig
    config: RehearsalConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._entered: Counter[tuple[str, str, int, str]] = Counter()
        self.made: list[Predictor] = []
        """The predictors that were made since a gate was last told, one a stream. A span is left, its predictors are
        made and shown what it added, and then its gate is told: what lies here then is that span's."""

    def layout(self, depth: int) -> Sequence[Span]:
        return front_and_back(self.config, depth)

    def key(self, place: Place) -> PlaceKey:
        """Of the span that a gate is made for; those of one place are made in the order of a forward."""
        where = (place.transformer, place.stack, place.span.start, place.branch)
        self._entered[where] += 1
        return (*where, self._entered[where] - 1)


class Recorder(RehearsalBackend):
    """Runs everything and records it."""

    name = "plan_recorder"

    def __init__(self, config: Any = None, recording: Recording | None = None) -> None:
        super().__init__(config)
        self.recording = Recording() if recording is None else recording
        self.shown: dict[int, Tensor] = {}
        """What the predictors were shown since a gate was last told, by the number of the stream."""
        self.at: int | None = None
        """The step of the call under way; None as long as no gate was asked in it."""

    def gate(self, place: Place) -> Gate:
        return _RecordingGate(self, place.transformer, self.key(place))

    def predictor(self, stream: Stream) -> Predictor:
        self.made.append(_RecordingPredictor(self.shown, len(self.made), stream.main))
        return self.made[-1]

    @contextmanager
    def around(self, transformers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Record the calls of the transformers."""

        def call(name: str, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.at = None
            out = run(*args, **kwargs)
            self.recording.outputs[name].append((self.at, moved(out, "cpu")))
            return out

        with forwards(transformers, call):
            yield


class _RecordingGate(Gate):
    def __init__(self, recorder: Recorder, transformer: str, key: PlaceKey) -> None:
        self._recorder = recorder
        self._transformer = transformer
        self._key = key

    def should_run(self, step: Step, probe: Probe) -> Decision:
        recorder = self._recorder
        recorder.at = step.run_index
        recording = recorder.recording
        recording.steps = max(recording.steps, step.run_total or step.run_index + 1)
        recording.first_steps.setdefault(self._transformer, step.run_index)
        return Decision(True)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        recorder = self._recorder
        made = [each for each in recorder.made if isinstance(each, _RecordingPredictor)]
        if made:
            recorder.recording.main[self._key] = tuple(each.number for each in made if each.main)
        if recorder.shown:
            recorder.recording.history[self._key].append((step, dict(recorder.shown)))
        recorder.shown.clear()
        recorder.made.clear()


class _RecordingPredictor(Predictor):
    def __init__(self, shown: dict[int, Tensor], number: int, main: bool) -> None:
        self._shown = shown
        self.number = number
        self.main = main

    def observe(self, step: Step, value: Tensor) -> None:
        self._shown[self.number] = value.detach().to("cpu")

    def predict(self, step: Step) -> Tensor:
        raise RuntimeError("a run that is recorded skips nothing")


@contextmanager
def forwards(transformers: Mapping[str, nn.Module], call: Callable[..., Any]) -> Iterator[None]:
    """Have ``call(name, run, ...)`` stand in for each transformer's ``forward``, inside whatever wraps its call."""
    own: list[tuple[nn.Module, Any]] = []
    try:
        for name, module in transformers.items():
            own.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = partial(call, name, module.forward)
        yield
    finally:
        for module, before in own:
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


def moved(thing: Any, device: torch.device | str) -> Any:
    """A copy of the tensors in ``thing`` on ``device``: the pipeline may write into what it is given."""
    if isinstance(thing, Tensor):
        return thing.detach().to(device, copy=True)
    if isinstance(thing, Mapping):  # diffusers' outputs are such
        return type(thing)(**{name: moved(value, device) for name, value in thing.items()})
    if isinstance(thing, (list, tuple)):
        return type(thing)([moved(value, device) for value in thing])
    return thing


def device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where the first tensor among the arguments of a call lies."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")
