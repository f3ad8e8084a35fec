"""Which steps a strategy would compute in recorded runs, without drawing anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dit_cache_backends.backend import CacheBackend, SpanBackend
from dit_cache_backends.calibrate.record import Record
from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.registry import backend_class, get_cache_backend, installed_names

BISECTIONS = 20
LOWEST, HIGHEST = 1e-6, 1e6
"""Thresholds between which is looked."""


@runtime_checkable
class Replays(Protocol):
    """A backend that can be asked which steps of a recorded run it would compute."""

    def replay(self, series: Series) -> list[bool]:
        """For each step of one branch of one transformer, in a run that computed every block, whether it would.

        What skipping itself changes is not in it: the strategy would see other numbers from then on.

        Raises:
            ConfigError: if the record does not have what the options need.
        """
        ...


@dataclass(frozen=True)
class Simulation:
    """What a strategy would have done in recorded runs."""

    steps: int
    """Steps of a run, summed up over the transformers of a pipeline that has several for the same steps."""
    computed: tuple[float, ...]
    """Computed steps of each prompt's run, in the order of the prompts: the mean over the branches."""

    @property
    def mean(self) -> float:
        """Computed steps of a run, the mean over the prompts."""
        return sum(self.computed) / len(self.computed)

    @property
    def speedup(self) -> float:
        """Steps over computed steps."""
        return self.steps / self.mean if self.mean else math.inf


def simulate(record: Record, backend: str | type[CacheBackend], options: Mapping[str, Any]) -> Simulation:
    """Which part of the recorded steps a strategy would compute.

    Raises:
        ConfigError: if the strategy cannot say, the record lacks what it needs, or the options are wrong.
        UnknownBackendError: if no backend of that name is installed.
    """
    made = get_cache_backend(backend, dict(options))
    if made is None or not record.runs:
        raise ConfigError("there is nothing to simulate: no backend, or no recorded run")
    computed: list[float] = []
    steps = 0.0
    for number in sorted(record.runs):
        run = record.runs[number]
        total, all_steps = 0.0, 0.0
        for transformer in dict.fromkeys(each.transformer for each in run.values()):
            branches = [each for each in run.values() if each.transformer == transformer]
            total += sum(sum(_replay(made, each)) for each in branches) / len(branches)
            all_steps += sum(map(len, branches)) / len(branches)
        computed.append(total)
        steps = max(steps, all_steps)
    return Simulation(round(steps), tuple(computed))


def threshold_for(
    record: Record,
    backend: str | type[CacheBackend],
    threshold: str,
    computed: float,
    options: Mapping[str, Any] | None = None,
) -> float:
    """The lowest value of the option ``threshold`` at which at most so many steps are computed in the mean.

    Found by bisection, so to some digits, and as if a higher threshold never computed more.

    Raises:
        ConfigError: if no threshold computes so few, and as :func:`simulate`.
    """
    given = dict(options or {})
    # Once: looking a name up reads the entry points of everything that is installed.
    cls = backend_class(backend) if isinstance(backend, str) else backend

    def mean(value: float) -> float:
        return simulate(record, cls, {**given, threshold: value}).mean

    least = mean(HIGHEST)
    if least > computed:
        raise ConfigError(
            f"{cls.name}: with these options at least {least:.3g} steps are computed whatever {threshold} is, which is "
            f"more than {computed:.3g}"
        )
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(math.exp(middle)) <= computed else (middle, high)
    # Up, to digits that can be read; where that changes the answer, as it is.
    exact = math.exp(high)
    short = float(f"{exact * 1.00005:.5g}")
    return short if short >= exact and mean(short) == mean(exact) else exact


def replaying() -> list[str]:
    """The installed backends that can be simulated."""
    return [
        name
        for name in installed_names()
        if isinstance(_class(name), type) and hasattr(_class(name), "replay")
    ]


def _class(name: str) -> object:
    from dit_cache_backends.registry import find_backend

    return find_backend(name).cls


def _replay(backend: CacheBackend, series: Series) -> list[bool]:
    part = backend
    if isinstance(backend, SpanBackend):
        part = backend.part(series.transformer).for_steps(len(series))
    if not isinstance(part, Replays):
        raise ConfigError(
            f"{part.name} cannot be simulated on a record; those that can: {', '.join(replaying()) or 'none'}"
        )
    return part.replay(series)
