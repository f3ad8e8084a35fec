"""A backend that skips nothing and measures every step. Nobody asks for it by a name."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor, nn

from dit_cache_backends.backend import SpanBackend
from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.calibrate.tracks import Track
from dit_cache_backends.config import option
from dit_cache_backends.engine.clock import Step, Timestep
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.untraced import untraced_module
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.models import card_for
from dit_cache_backends.models.card import Card
from dit_cache_backends.pipelines import weakly
from dit_cache_backends.strategies.tea_cache_meters import Meter, meter_of

_LEADER, _TRACK, _SEEN = "recorder.leader", "recorder.track", "recorder.seen"

_runs: dict[str, dict[str, Series]] = {}
_numbers = count()


@contextmanager
def recorded_run() -> Iterator[tuple[str, dict[str, Series]]]:
    """The name of a run for ``RecorderConfig.run``, and what is recorded of it, by ``transformer:branch``."""
    name, series = f"run {next(_numbers)}", {}  # type: str, dict[str, Series]
    _runs[name] = series
    try:
        yield name, series
    finally:
        del _runs[name]


@dataclass(frozen=True)
class RecorderConfig:
    """The options of the recorder."""

    run: str = option(help="Which run this is, as recorded_run names it.")
    first_blocks: int = option(1, minimum=1, help="How many first blocks are measured apart.")


class Recorder(SpanBackend):
    """Measures what strategies decide by, in a run that computes every block."""

    name = "recorder"
    Config = RecorderConfig
    config: RecorderConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._met: weakref.WeakKeyDictionary[nn.Module, tuple[Card, Any]] = weakref.WeakKeyDictionary()

    def layout(self, depth: int) -> Sequence[Span]:
        first = min(self.config.first_blocks, depth)
        return [Span(0, first), *([Span(first, depth)] if first < depth else [])]

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        self._met[transformer] = (card, weakly(pipeline))

    def gate(self, place: Place) -> Gate:
        model = place.model()
        if model is None:
            raise RuntimeError(f"The {place.transformer} was called, but it does not exist any more.")
        card, pipeline = self._met.get(model) or (card_for(model), lambda: None)
        series = _runs.get(self.config.run)
        if series is None:
            raise ConfigError(
                f"the recorded run {self.config.run!r} is over; begin another with recorded_run()"
            )
        return _Gate(place, card, pipeline(), series, self.config.first_blocks)

    def predictor(self, stream: Stream) -> Predictor:
        return _Nothing()


class _Nothing(Predictor):
    """Nothing is skipped, so nothing is kept."""

    def observe(self, step: Step, value: Tensor) -> None:
        pass

    def predict(self, step: Step) -> Tensor:
        raise RuntimeError("A recorded run skips nothing.")


class _Gate(Gate):
    """Computes every step. The first span of the first stack sees what comes in, the last of a stack what comes out."""

    def __init__(
        self, place: Place, card: Card, pipeline: Any, series: dict[str, Series], first_blocks: int
    ) -> None:
        shared = place.shared
        self._place = place
        self._pipeline = weakly(pipeline)
        self._leads = shared.setdefault(_LEADER, place.stack) == place.stack
        self._enters = self._leads and place.span.start == 0
        self._leaves = place.span.stop == place.depth
        # A stack that is run through twice in a forward is measured the first time.
        site = f"recorder.{place.stack}.{place.span.start}"
        self._measures = shared.setdefault(site, self) is self
        self._fit = card.stacks[0].alternate
        self._meter: Meter | None = None
        if self._enters and self._measures:
            signal = card.signals[0] if card.signals else None
            found = Series(
                place.transformer, place.branch, place.stack, signal.name if signal else "", first_blocks
            )
            series[found.name] = found
            shared[_TRACK] = Track(found)
            peers = [peer._meter for peer in place.peers.values() if isinstance(peer, _Gate)]
            if signal is not None:
                self._meter = meter_of(signal, place, [peer for peer in peers if peer is not None])
        self._latent = _first_argument(place.model())

    def should_run(self, step: Step, probe: Probe) -> Decision:
        if self._meter is not None:
            # Here: its blocks may write into what the signal is read from.
            probe.notes[_SEEN] = self._meter.measure(step, probe)
        return Decision(True, "recorded")

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        track: Track | None = self._place.shared.get(_TRACK)
        entry, out = probe.entry[0], None if probe.exit is None else probe.exit[0]
        if track is None or not self._measures or entry is None or out is None:
            return
        if self._enters:
            self._begin(track, step, probe, entry)
            if out.shape == entry.shape:
                track.see("first", [out - entry], own=True)
        if self._leaves:
            if self._leads:
                begun = (
                    entry if out.shape == entry.shape or self._fit is None else self._fit(entry, out.shape)
                )
                track.see_residual(out - begun)
                track.see("exit", [out], size=True)
                track.note("output", track.series.columns["exit"][-1])
            else:
                track.see("output", [out], stack=self._place.stack)

    def _begin(self, track: Track, step: Step, probe: Probe, entry: Tensor) -> None:
        track.begin(step.run_index, step.run_total)
        track.note("timestep", self._timestep(step, probe))
        track.note("sigma", _sigma(self._pipeline(), step.run_index))
        track.note("signal", probe.notes.get(_SEEN))
        latents = _tensors(probe.argument(self._latent))
        if latents:
            track.see("latent", latents)
        track.see("input", [entry], size=True)
        if self._meter is not None:
            self._meter.told(step, probe)

    def _timestep(self, step: Step, probe: Probe) -> float | None:
        known = self._place.timesteps()
        if known is not None and step.run_index < len(known):
            return known[step.run_index]
        values = (Timestep(probe.argument(name)).value() for name in ("timestep", "timesteps", "t"))
        return next((value for value in values if value is not None), None)


def _first_argument(model: nn.Module | None) -> str:
    """The name of a transformer's first argument: the latents."""
    cls: Any = type(model)
    names = list(inspect.signature(cls.forward).parameters)
    return names[1] if len(names) > 1 else ""


def _tensors(value: object) -> list[Tensor]:
    """The latents, which some models take as a list of one tensor a sample."""
    found = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in found if isinstance(each, Tensor)]


def _sigma(pipeline: Any, step: int) -> float | None:
    scheduler = getattr(pipeline, "scheduler", None)
    sigmas, timesteps = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
    at = step + (getattr(scheduler, "begin_index", None) or 0)
    if not isinstance(sigmas, Tensor) or not isinstance(timesteps, Tensor):
        return None
    # Some schedulers keep those of training there.
    return float(sigmas[at]) if at < len(timesteps) <= len(sigmas) <= len(timesteps) + 1 else None


untraced_module(sys.modules[__name__])
