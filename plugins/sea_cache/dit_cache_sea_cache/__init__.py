"""``sea_cache``: SeaCache (arXiv 2602.18993).

Early in a run a latent is mostly noise, and what changes from step to step is not yet the picture. SeaCache compares
steps by the part of the latent that is signal by now: each frequency is weighted by an optimal linear filter for the
noise level of the step, under the prior that the power of pictures falls with the frequency. The rest is TeaCache's:
relative differences are summed up, and while the sum is below a threshold no block runs. What the blocks would have
added is extrapolated along a line (Newton's interpolation of order 1).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dit_cache_backends import (
    CalibratorOptions,
    Card,
    ConfigError,
    Decision,
    Gate,
    Kept,
    Newton,
    PartOptions,
    Place,
    Predictor,
    Probe,
    Span,
    SpanBackend,
    Step,
    StorageOptions,
    Stream,
    make_calibrator,
    option,
    relative_difference,
)
from dit_cache_backends.search import PREDICTORS, Search, Threshold
from dit_cache_sea_cache.latents import READINGS, Reading, plain

__all__ = ["READINGS", "Reading", "SeaCache", "SeaCacheConfig", "signal_part"]

_SEEN, _LEADER, _DECISION = "sea_cache.seen", "sea_cache.leader", "sea_cache.decision"
LEAST = 1e-6
"""The noise level is kept this far from 0 and 1, where the filter would be 0 or infinite; diffusers' number."""


@dataclass(frozen=True)
class SeaCacheConfig(CalibratorOptions, PartOptions, StorageOptions):
    """The options of ``sea_cache``. Defaults are those of diffusers 0.42.1, which vLLM-Omni 0.30 shares."""

    threshold: float = option(
        0.25,
        aliases=("sea_threshold",),
        help="Skip while the differences since the last computed step sum up to less. 0 or less: never.",
    )
    power_exp: float = option(
        3.0,
        aliases=("sea_power_exp",),
        exclusive_minimum=0,
        help="The power of a picture is taken to fall with the frequency to this power; 3 for video.",
    )
    retention_steps: int = option(1, minimum=0, help="Steps at the start of a run that are computed.")
    cache_end_steps: int = option(1, minimum=0, help="Steps at the end of a run that are computed.")
    max_consecutive_cached: int = option(
        2,
        aliases=("sea_max_consecutive_cached", "max_continuous_cached_steps"),
        minimum=0,
        help="Cached steps in a row at most; 0: no limit.",
    )
    calibrator: str | None = option(
        None,
        choices=("none", "taylorseer", "foca", "dmd", "hermite", "chebyshev", "newton"),
        group="calibrator",
        help="How what is skipped is foretold; none: reused as it was. Null: what the enable_ options say, else along "
        "the line through the last two computed steps, as in the paper.",
    )


class SeaCache(SpanBackend):
    """SeaCache: steps are compared by the part of the latent that is signal by now."""

    name = "sea_cache"
    Config = SeaCacheConfig
    conformance: ClassVar = {
        "eager": {"threshold": 1e9, "cache_end_steps": 0, "calibrator": "none"},
        "never": {"threshold": 0.0},
        "refuses": {
            "cogvideox": "its latent is no mixture of picture and noise by a level that its call has",
            "dit": "its latent is no mixture of picture and noise by a level that its call has",
            "chroma": "its tokens come with ids of which the class is not listed",
        },
    }
    searches: ClassVar = (
        Search(
            "threshold",
            Threshold("threshold", 0.02, 4.0),
            {
                "predictor": {"newton 1": {}, **PREDICTORS},
                "in a row": {f"{n} in a row": {"max_consecutive_cached": n} for n in (2, 4)},
            },
        ),
    )
    config: SeaCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        if card.transformer not in READINGS:
            raise ConfigError(
                f"sea_cache needs the noise level and the grid of the latent, and does not know where "
                f"{card.transformer} has them. It knows {', '.join(READINGS)}. For another one: "
                "dit_cache_sea_cache.READINGS['CLASS'] = Reading(...)."
            )
        config = getattr(transformer, "config", None)
        inward, outward = (getattr(config, name, None) for name in ("in_channels", "out_channels"))
        if READINGS[card.transformer].latent is plain and outward not in (None, inward):
            raise ConfigError(
                f"sea_cache: this {card.transformer} takes {inward} channels and gives {outward}, so some are "
                "conditions, which have no noise level. The paper's filter is for models that take the latent alone."
            )
        _classes[transformer] = card.transformer

    def gate(self, place: Place) -> Gate:
        model = place.model()
        name = "" if model is None else _classes.get(model, type(model).__name__)
        return SeaGate(self.config, READINGS[name], place)

    def predictor(self, stream: Stream) -> Predictor:
        if self.config.calibrator is None and self.config.calibrator_of(main=True) == "none":
            return Newton(order=1, start=0)
        return make_calibrator(self.config, stream)


_classes: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""The name under which each enabled transformer is read: that of its class, or of a base that has a card."""


def signal_part(latent: Tensor, sigma: float, power_exp: float = 3.0) -> Tensor:
    """The latent as a linear filter for noise of level ``sigma`` passes it (arXiv 2602.18993, equations 5 to 7).

    ``latent`` is ``[batch, channels, axis, ...]``. Each axis has the gain ``a S / (a^2 S + sigma^2)``, where ``a`` is
    ``1 - sigma`` and ``S = |f|^-power_exp`` the power that a picture has at frequency ``f``; the product of the axes'
    gains is divided by its mean, so that differences at all noise levels can be compared.
    """
    sigma = min(max(sigma, LEAST), 1 - LEAST)
    axes = tuple(range(2, latent.dim()))
    gain = torch.ones((), device=latent.device)
    for axis in axes:
        frequencies = torch.fft.fftfreq(latent.shape[axis], device=latent.device)
        power = 1 / (frequencies.abs() ** power_exp + 1e-16)
        along = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)
        gain = gain.unsqueeze(-1) * along
    spectrum = torch.fft.fftn(latent.float(), dim=axes)
    passed: Tensor = torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=axes).real
    return passed


class SeaGate(Gate):
    """Decides for the first stack of a transformer; the gates of its other stacks do as it did at that step."""

    def __init__(self, config: SeaCacheConfig, reading: Reading, place: Place) -> None:
        self._config = config
        self._reading = reading
        self._place = place
        self._leads = place.shared.setdefault(_LEADER, place.stack) == place.stack
        self._before: Kept | None = None
        self._sum = 0.0
        self._in_row = 0

    def should_run(self, step: Step, probe: Probe) -> Decision:
        config = self._config
        if not self._leads:
            index, run = self._place.shared.get(_DECISION, (None, True))
            return Decision(run or index != step.run_index, "as the first stack")
        if config.threshold <= 0:
            return Decision(True, "threshold 0", store=False)
        seen = self._seen(step, probe)
        if seen is None:
            return Decision(True, "no grid")
        probe.notes[_SEEN] = seen
        if step.index < config.retention_steps:
            return Decision(True, "retention_steps")
        if step.run_total is not None and step.run_index >= step.run_total - config.cache_end_steps:
            return Decision(True, "cache_end_steps")
        if self._before is None or self._before.shape != seen.shape:
            return Decision(True, "nothing to compare")
        if 0 < config.max_consecutive_cached <= self._in_row:
            return Decision(True, "max_consecutive_cached")
        total = self._sum + float(relative_difference(*self._place.storage.pair(self._before, seen)))
        return Decision(not total < config.threshold, "threshold", total)

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        self._place.shared[_DECISION] = (step.run_index, decision.run)
        if not self._leads or self._config.threshold <= 0:
            return
        seen = probe.notes.get(_SEEN)
        if seen is None:
            self._place.report(
                "no_grid",
                f"{self._place.transformer}: the call has no grid or no noise level that sea_cache could read, so the "
                "blocks ran.",
            )
        self._before = None if step.last or seen is None else self._place.storage.keep(seen)
        self._in_row = 0 if decision.run else self._in_row + 1
        self._sum = 0.0 if decision.run else decision.difference or 0.0

    def _seen(self, step: Step, probe: Probe) -> Tensor | None:
        latent = self._reading.latent(probe.argument)
        sigma = self._sigma(step, probe)
        if latent is None or sigma is None:
            return None
        return signal_part(latent, sigma, self._config.power_exp)

    def _sigma(self, step: Step, probe: Probe) -> float | None:
        """The noise level: of the scheduler's timesteps, which cost no wait, else of the timestep of the call."""
        reading, timesteps = self._reading, self._place.timesteps()
        if timesteps is not None and step.run_index < len(timesteps):
            return timesteps[step.run_index] / 1000
        given = probe.argument(reading.timestep)
        if given is None:
            return None
        # Where each token has one (Wan 2.2 TI2V), those of a given picture have 0.
        value = float(given.max()) if isinstance(given, Tensor) else float(given)
        share = value / reading.scale
        return share if math.isfinite(share) else None
