"""A recorded run, given out again for the steps before the first one that is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends.calibrators import Fitted, make_calibrator
from dit_cache_backends.calibrators.fitted import Weights
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Stream
from dit_cache_backends.planning.recording import (
    PlaceKey,
    Recording,
    RehearsalBackend,
    device_of,
    forwards,
    moved,
)

__all__ = ["Replay"]


class Replay(RehearsalBackend):
    """Runs a mask. Before step ``live`` the recorded outputs stand in for the transformer; all of those must compute.

    The scheduler sees the same outputs and the predictors are shown the same values as in a run that computes them, so
    the result is the same to the last bit.
    """

    name = "plan_replay"

    def __init__(
        self,
        config: Any,
        recording: Recording,
        mask: Sequence[int],
        live: int = 0,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(config)
        if not all(mask[:live]):
            raise ValueError(
                f"the steps before {live} are given out as recorded, so that none can be skipped"
            )
        self.recording = recording
        self.mask = mask
        self.live = live
        self._weights = weights
        self._observed = max((step for step in range(len(mask)) if not mask[step]), default=-1)

    def gate(self, place: Place) -> Gate:
        return _ReplayGate(self, self.key(place))

    def predictor(self, stream: Stream) -> Predictor:
        weights = self._weights
        made = _Primed(Fitted(weights, self.mask) if weights else make_calibrator(self.config, stream))
        self.made.append(made)
        return made

    def needed(self, step: Step) -> bool:
        """Whether something is skipped after ``step``."""
        return step.run_index < self._observed

    @contextmanager
    def around(self, transformers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Give out what was recorded."""
        calls: Counter[str] = Counter()

        def call(name: str, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            recorded = self.recording.outputs.get(name, [])
            number = calls[name]
            calls[name] += 1
            step, out = recorded[number] if number < len(recorded) else (None, None)
            if step is None or step >= self.live:
                return run(*args, **kwargs)
            return moved(out, device_of(args, kwargs))

        with forwards(transformers, call):
            yield


class _ReplayGate(Gate):
    def __init__(self, replay: Replay, key: PlaceKey) -> None:
        self._replay = replay
        self._key = key

    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(bool(self._replay.mask[step.run_index]), store=self._replay.needed(step))

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        replay = self._replay
        if not replay.made:
            return
        main = probe.streams[0]
        device = torch.device("cpu") if main is None else main.device
        history = replay.recording.history.get(self._key, [])
        before = [(at, shown) for at, shown in history if at.run_index < replay.live]
        for number, predictor in enumerate(replay.made):
            if isinstance(predictor, _Primed):
                predictor.prime([(at, shown[number].to(device)) for at, shown in before if number in shown])
        replay.made.clear()


class _Primed(Predictor):
    """A predictor that is shown what was recorded before it is shown anything else."""

    def __init__(self, inner: Predictor) -> None:
        self._inner = inner
        self.of = inner.of
        self._waiting: list[tuple[Step, Tensor]] | None = []

    def observe(self, step: Step, value: Tensor) -> None:
        if self._waiting is None:
            self._inner.observe(step, value)
        else:
            self._waiting.append((step, value))

    def prime(self, recorded: Sequence[tuple[Step, Tensor]]) -> None:
        waiting, self._waiting = self._waiting or [], None
        for step, value in (*recorded, *waiting):
            self._inner.observe(step, value)

    def predict(self, step: Step) -> Tensor:
        return self._inner.predict(step)
