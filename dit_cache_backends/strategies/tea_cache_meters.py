"""How far a model's signal has moved since the step before: measured as it comes, or known for the whole run."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Place, Probe, relative_difference
from dit_cache_backends.engine.storage import Kept, Storage
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.models import uncompiled
from dit_cache_backends.models.signals import BlockArguments, Signal, TimeSignal

_SIGNAL = "tea_cache.signal"


class Meter(ABC):
    """Measures one branch of one transformer. Asking changes nothing, as with a gate."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        """The tensors that are kept from step to step."""

    @abstractmethod
    def look(self, probe: Probe) -> None:
        """Called instead of ``measure`` where the difference does not matter, but that of the next step may."""

    @abstractmethod
    def measure(self, step: Step, probe: Probe) -> float | None:
        """``mean|now - before| / mean|before|`` to the branch's last call; None if there is nothing to compare with."""

    @abstractmethod
    def told(self, step: Step, probe: Probe) -> None:
        """The step is made: the next one is compared with it."""


class _TensorMeter(Meter):
    """Reads a tensor at every step, keeps the last one, and waits for the device at every step."""

    def __init__(self, signal: Signal, storage: Storage) -> None:
        super().__init__()
        self._signal = signal
        self._storage = storage

    def look(self, probe: Probe) -> None:
        block = uncompiled(probe.block)
        given = BlockArguments(block, probe.args, probe.kwargs)
        probe.notes[_SIGNAL] = self._signal.read(block, given).detach()

    def measure(self, step: Step, probe: Probe) -> float | None:
        self.look(probe)
        before, now = self.kept.get("signal"), probe.notes[_SIGNAL]
        if before is None or (before.shape, before.dtype, before.device) != (
            now.shape,
            now.dtype,
            now.device,
        ):
            return None
        return float(relative_difference(*self._storage.pair(before, now)).item())

    def told(self, step: Step, probe: Probe) -> None:
        self.kept.clear()
        if _SIGNAL in probe.notes:
            self.kept["signal"] = self._storage.keep(probe.notes[_SIGNAL])


class _TimeMeter(Meter):
    """Embeds the timesteps alone: those of the whole run at its first step, where the scheduler tells them.

    Then no step waits for the device and all ranks agree. Else each step's timestep is embedded with the last one's.
    """

    def __init__(self, signal: TimeSignal, place: Place, peers: Sequence[Meter]) -> None:
        super().__init__()
        self._signal = signal
        self._place = place
        self._at = -1
        known = [peer.steps for peer in peers if isinstance(peer, _TimeMeter)]
        self.steps: list[float] | None = known[0] if known else None
        """The difference of each step of the run to the one before it, from the second step on."""

    def look(self, probe: Probe) -> None:
        """The timestep stays where it is."""

    def measure(self, step: Step, probe: Probe) -> float | None:
        if "time" not in self.kept:
            return None
        if self.steps is not None and self._at == step.run_index - 1 < len(self.steps):
            return self.steps[self._at]
        # No storage holds it: a few numbers, which a narrower dtype would round to other timesteps.
        before, now = Storage.give(self.kept["time"]), self._called(probe)
        if before.shape != now.shape or before.device != now.device:
            return None
        embedded = self._embed(torch.cat([before, now]), probe)
        return float(relative_difference(embedded[: len(before)], embedded[len(before) :]).item())

    def told(self, step: Step, probe: Probe) -> None:
        now = self._called(probe)
        if "time" not in self.kept and self.steps is None:
            self.steps = self._whole_run(step, now, probe)
        self.kept["time"], self._at = now, step.run_index

    def _whole_run(self, step: Step, now: Tensor, probe: Probe) -> list[float] | None:
        timesteps = self._place.timesteps()
        if timesteps is None or step.run_index >= len(timesteps):
            return None
        run = torch.tensor(timesteps, dtype=now.dtype, device=now.device)
        if not bool((run[step.run_index] == now).all()):
            return None  # The pipeline gives its transformer other numbers than its scheduler has.
        embedded = self._embed(run, probe)
        steps: list[float] = relative_difference(embedded[:-1], embedded[1:], per_sample=True).tolist()
        return steps

    def _called(self, probe: Probe) -> Tensor:
        """The timestep of the present call, ``[batch]``."""
        time, stream = probe.argument(self._signal.argument), probe.streams[0]
        if not isinstance(time, Tensor):
            time = torch.tensor([float(time)], device=None if stream is None else stream.device)
        time = time.detach().reshape(time.shape[0] if time.dim() else 1, -1)
        # Wan 2.2 TI2V gives one to each token, 0 to those of a given picture, which stand still.
        return time.amax(dim=1)

    def _embed(self, timesteps: Tensor, probe: Probe) -> Tensor:
        model, stream = self._place.model(), probe.streams[0]
        dtype = timesteps.dtype if stream is None else stream.dtype
        if model is None:
            raise RuntimeError(f"The {self._place.transformer} was called, but it does not exist any more.")
        return self._signal.embed(model, timesteps, dtype, probe.argument).detach()


def meter_of(signal: Signal | TimeSignal, place: Place, peers: Sequence[Meter]) -> Meter:
    """The meter for a signal; ``peers`` are those of the branches that came before."""
    return (
        _TimeMeter(signal, place, peers)
        if isinstance(signal, TimeSignal)
        else _TensorMeter(signal, place.storage)
    )


untraced_module(sys.modules[__name__])
