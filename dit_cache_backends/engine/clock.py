"""The step clock: which denoising step, of how many, on which branch, a transformer call belongs to.

A host may tell the step; a pipeline's scheduler may show it; else it is counted from the timestep argument.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step as one transformer sees it."""

    index: int
    """Steps of this transformer before this one, counted from its first step or its last forced refresh."""
    total: int | None
    """Steps this transformer makes in the run, where known."""
    branch: str
    """The guidance branch: the name the host gives ("cond", "uncond"), else the number of the call in the step."""
    run_index: int
    """The step of the whole run, 0-based; differs from ``index`` for the second of two experts."""
    run_total: int | None
    """Steps of the whole run, where known."""

    @property
    def last(self) -> bool:
        """Whether the run ends with this step."""
        return self.run_total is not None and self.run_index >= self.run_total - 1


@dataclass(slots=True)  # made at every step, and freezing makes that three times as long
class Reading:
    """What a clock shows at a transformer call."""

    index: int
    total: int | None = None
    first: int | None = None
    """The step of the run at which this transformer takes over, where known beforehand."""
    count: int | None = None
    """How many steps this transformer makes, where known beforehand."""


@dataclass(slots=True)
class ToldStep:
    """A step that a host told by ``backend.step(...)``."""

    index: int
    total: int | None
    branch: str | None


@dataclass(slots=True)
class Tally:
    """Steps counted by the changes of one transformer's timestep argument within one generation."""

    index: int = -1
    value: float | None = None
    direction: float = 0.0
    calls: int = 0
    distrusted: bool = field(default=False)
    """The scheduler was seen not to move while the timestep did: count from now on."""

    def changed(self, value: float | None) -> bool:
        """Whether ``value`` is another timestep than that of the call before."""
        return value != self.value

    def turned_back(self, value: float | None) -> bool:
        """Whether ``value`` goes against the direction of the run, as at the start of another run."""
        return (
            value is not None
            and self.value is not None
            and self.direction != 0.0
            and (value - self.value) * self.direction < 0
        )

    def count(self, value: float | None, calls_per_step: int) -> int:
        """Note a call at timestep ``value`` and return the index of its step."""
        if value is None:
            self.index = self.calls // calls_per_step
        elif self.changed(value):
            if self.value is not None and self.direction == 0.0:
                self.direction = 1.0 if value > self.value else -1.0
            self.value = value
            self.index += 1
        self.calls += 1
        return self.index


class Timestep:
    """The timestep argument of one transformer call, read from the device only when somebody needs it."""

    __slots__ = ("_argument", "_known", "_value")

    def __init__(self, argument: object) -> None:
        self._argument = argument
        self._known = False
        self._value: float | None = None

    @property
    def at_hand(self) -> bool:
        """Whether the value can be had without waiting for a device."""
        return self._known or not isinstance(self._argument, Tensor) or self._argument.device.type == "cpu"

    def value(self) -> float | None:
        """The timestep as one number (the mean, where it is a tensor of many); None where there is none.

        Reading a tensor that lies on an accelerator waits for the device.
        """
        if not self._known:
            argument = self._argument
            if isinstance(argument, Tensor):
                self._value = float(argument.detach().double().mean().item())
            elif isinstance(argument, (int, float)):
                self._value = float(argument)
            self._known = True
        return self._value


class Clock(ABC):
    """Shows the step of a transformer call."""

    def run(self) -> object | None:
        """An object that lives as long as the present generation and is another one in the next; None if unknown."""
        return None

    def timesteps(self) -> Sequence[float] | None:
        """Every timestep of the present generation in order; None where this clock does not know them beforehand."""
        return None

    @abstractmethod
    def read(self, name: str, tally: Tally, timestep: Timestep) -> Reading | None:
        """The step at hand, for transformer ``name``; None where this clock cannot tell it."""


class CountedClock:
    """Counts the steps from the timestep argument: a new value is a new step, a value that turns back a new run.

    A transformer without such an argument makes ``calls_per_step`` calls a step.
    """

    def __init__(self, calls_per_step: int = 1) -> None:
        self._calls_per_step = calls_per_step

    def read(self, tally: Tally, timestep: Timestep, total: int | None) -> Reading | None:
        """Count a call into ``tally``; None says that the run of ``total`` steps is over and another has begun."""
        value = timestep.value()
        if value is None:
            over = total is not None and tally.calls >= total * self._calls_per_step
        else:
            over = tally.turned_back(value) or (
                total is not None and tally.index >= total - 1 and tally.changed(value)
            )
        if over:
            return None
        return Reading(tally.count(value, self._calls_per_step), total)
