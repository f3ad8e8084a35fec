"""What is searched: a mask of steps, and the predictor that fills the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.search import PREDICTORS

__all__ = ["DEFAULT_PREDICTORS", "FITTED", "PREDICTORS", "Candidate", "Fit", "Quality", "predictors_named"]

Mask = tuple[int, ...]


class Fit(NamedTuple):
    """How a forecast is fitted, see ``dit_cache_backends.planning.forecast``."""

    keep: int
    """Computed steps that it is made of, at most."""
    lasts: float
    """Part of the error gathered before a computed step that a later forecast takes back."""


FITTED = {"fitted 3 0.5": Fit(3, 0.5), "fitted 4 0.7": Fit(4, 0.7), "fitted 3 0.7": Fit(3, 0.7)}
"""Predictors with weights of their own for each step, fitted to the model and the mask."""

DEFAULT_PREDICTORS = (*FITTED, "taylorseer 1", "taylorseer 2", "hermite 2", "newton 2")
"""Those that are tried unless others are asked for; of those without fitted weights the segments of the first ones are
measured first."""

SAME_DB = 150.0
"""Written for final latents that are equal to the last bit."""


@dataclass(frozen=True)
class Candidate:
    """A plan to try."""

    mask: Mask
    """A digit for each step of the run: 1 computes, 0 skips."""
    predictor: str
    """Its name in ``FITTED`` or ``PREDICTORS``."""

    @property
    def computed(self) -> int:
        """How many steps it computes."""
        return sum(self.mask)

    @property
    def digits(self) -> str:
        """The mask as text."""
        return "".join(map(str, self.mask))


@dataclass(frozen=True)
class Quality:
    """How near runs come to the dense ones: the signal-to-noise ratio of the final latents, in dB."""

    mean: float
    worst: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Quality:
        """Of the relative errors of some prompts."""
        found = [decibels(error) for error in errors]
        return cls(sum(found) / len(found), min(found))

    @property
    def rank(self) -> float:
        """Compares two of them, more is better: the worst prompt counts as much as the mean of all.

        The worst alone is one prompt's luck: with it first, a search for 8 of the demo model's 28 steps gave up 3.7 dB
        in the mean for 1 dB at the worst of 16 prompts.
        """
        return self.worst + self.mean

    def exceeds(self, other: Quality) -> bool:
        """Whether both the mean and the worst prompt are better."""
        return self.mean > other.mean and self.worst > other.worst

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.worst:.1f}) dB"


def decibels(error: float) -> float:
    """The signal-to-noise ratio of a relative error ``|x - dense| / |dense|``; an infinite error has the lowest."""
    if not math.isfinite(error):
        return -SAME_DB
    return SAME_DB if error <= 0 else max(min(-20 * math.log10(error), SAME_DB), -SAME_DB)


def predictors_named(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        ConfigError: if one is unknown, or there is none.
    """
    known = (*FITTED, *PREDICTORS)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"there is no predictor {name!r} for a plan.{near(name, known)} There are {', '.join(known)}."
            )
    if not names:
        raise ConfigError(f"a plan needs a predictor to fill its steps with; name some of {', '.join(known)}")
    return tuple(dict.fromkeys(names))
