"""How a backend is searched: what ``dit-cache tune`` may turn to make it faster, and what it may choose.

A backend takes part by a class attribute ``searches``, a tuple of :class:`Search`::

    searches: ClassVar = (Search("threshold", Threshold("threshold", 0.01, 1.0), {"predictor": PREDICTORS}),)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dit_cache_backends.errors import ConfigError

__all__ = [
    "PREDICTORS",
    "PRESETS",
    "Choices",
    "Computed",
    "Dial",
    "Ladder",
    "Search",
    "Threshold",
    "even_steps",
    "searches_of",
]

Options = Mapping[str, Any]
Choices = Mapping[str, Options]
"""What may be chosen, by its label, each as the options that it stands for; the first is tried first."""

PREDICTORS: Choices = {
    "taylorseer 1": {"calibrator": "taylorseer"},
    "reuse": {"calibrator": "none"},
    "taylorseer 2": {"calibrator": "taylorseer", "taylorseer_order": 2},
    "newton 2": {"calibrator": "newton", "newton_order": 2},
    "newton 3": {"calibrator": "newton", "newton_order": 3},
    "hermite 2": {"calibrator": "hermite", "hermite_scale": 0.7},
    "foca": {"calibrator": "foca"},
    "dmd": {"calibrator": "dmd"},
    "chebyshev": {"calibrator": "chebyshev"},
}
"""For every backend whose ``Config`` inherits ``CalibratorOptions``."""


class Dial:
    """What is turned from careful, 0, to bold, 1: the further, the more is skipped."""

    def options(self, position: float, steps: int) -> Options:
        """The options at a position between 0 and 1, in a run of so many steps."""
        raise NotImplementedError

    def stops(self, steps: int) -> int | None:
        """How many different settings there are, evenly spread over the positions; None: any number."""
        return None

    def guess(self, part: float, steps: int) -> float | None:
        """About where so large a part of the blocks runs, where that can be told without drawing."""
        return None


@dataclass(frozen=True)
class Threshold(Dial):
    """A number. Turned in equal ratios where both ends are above 0, else in equal differences."""

    option: str
    careful: float
    """Where it skips next to nothing."""
    bold: float
    """Where it skips all that it ever does; it may be the smaller one."""

    def __post_init__(self) -> None:
        if self.careful == self.bold or not all(map(math.isfinite, (self.careful, self.bold))):
            raise ConfigError(
                f"Threshold({self.option!r}): expected two different finite numbers, got {self.careful} and {self.bold}"
            )

    def options(self, position: float, steps: int) -> Options:
        if self.careful > 0 and self.bold > 0:
            value = self.careful * (self.bold / self.careful) ** position
        else:
            value = self.careful + (self.bold - self.careful) * position
        return {self.option: float(f"{value:.4g}")}


@dataclass(frozen=True)
class Ladder(Dial):
    """Settings one after the other, the careful ones first, such as presets."""

    rungs: Sequence[Options]

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ConfigError("Ladder: expected at least one setting")

    def options(self, position: float, steps: int) -> Options:
        return self.rungs[round(position * (len(self.rungs) - 1))]

    def stops(self, steps: int) -> int | None:
        return len(self.rungs)


@dataclass(frozen=True)
class Computed(Dial):
    """The number of computed steps, from all but one down to ``least``."""

    make: Callable[[int, int], Options]
    """Gives the options for so many computed steps in a run of so many."""
    least: int = 3

    def options(self, position: float, steps: int) -> Options:
        return self.make(steps - 1 - round(position * (self.stops(steps) - 1)), steps)

    def stops(self, steps: int) -> int:
        return max(1, steps - self.least)

    def guess(self, part: float, steps: int) -> float | None:
        return min(1.0, max(0.0, (steps - 1 - part * steps) / max(self.stops(steps) - 1, 1)))


PRESETS = Ladder([{"preset": name} for name in ("quality", "balanced", "fast", "ultra")])
"""For every backend that has presets."""


def even_steps(option: str, more: Options | None = None) -> Computed:
    """The number of computed steps, evenly placed, as a mask in ``option``: 1 computes, 0 skips; ``more`` beside it."""

    def make(computed: int, steps: int) -> Options:
        from dit_cache_backends.strategies.presets import even_mask, leading_steps

        mask = even_mask(steps, computed, leading_steps(steps, computed))
        return {option: "".join(map(str, mask)), **(more or {})}

    return Computed(make)


@dataclass(frozen=True)
class Search:
    """One way to use a backend: a dial, and what may be chosen beside it."""

    name: str
    dial: Dial
    choices: Mapping[str, Choices] = field(default_factory=dict)
    """Each apart from the others; those that are worth most first."""
    options: Options = field(default_factory=dict)
    """Given in any case."""

    def first(self) -> dict[str, str]:
        """The label that is tried first, of everything that can be chosen."""
        return {name: next(iter(labels)) for name, labels in self.choices.items()}

    def given(self, chosen: Mapping[str, str], position: float, steps: int) -> dict[str, Any]:
        """The backend's options for what was chosen, at a position of the dial."""
        made = dict(self.options)
        for name, label in chosen.items():
            made.update(self.choices[name][label])
        made.update(self.dial.options(position, steps))
        return made


def searches_of(backend: type) -> tuple[Search, ...]:
    """How a backend's class says that it is searched; empty where it does not.

    Raises:
        ConfigError: what it says is something else, or two ways have one name.
    """
    said = getattr(backend, "searches", ())
    found = tuple(said) if isinstance(said, (tuple, list)) else (said,)
    name = getattr(backend, "name", backend.__name__)
    if not all(isinstance(each, Search) for each in found):
        raise ConfigError(
            f"{name}.searches: expected a tuple of dit_cache_backends.search.Search, got {said!r:.120}"
        )
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{name}.searches: each way has a name of its own, got {', '.join(names)}")
    for each in found:
        for choice, labels in each.choices.items():
            if not labels:
                raise ConfigError(f"{name}.searches: {each.name}: there is nothing to choose for {choice}")
    return found
