"""Bars that a comparison has to keep, for the exit status: ``psnr=30,ssim.worst=0.97``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_cache_backends.compare.comparison import Comparison
from dit_cache_backends.compare.measures import MEASURES
from dit_cache_backends.compare.spread import ENDS
from dit_cache_backends.errors import ConfigError, near


@dataclass(frozen=True)
class Bar:
    """A bound of one number of one measure."""

    measure: str
    end: str
    bound: float
    under: bool
    """It fails under the bound, else over it."""

    def failure(self, comparison: Comparison) -> str | None:
        """Why the comparison fails, in words; None where it keeps the bar. NaN never does."""
        whole = comparison.of_all.get(self.measure)
        spread = None if whole is not None else comparison.spread(self.measure)
        value = whole if spread is None else spread.of(self.end)
        assert value is not None
        if value >= self.bound if self.under else value <= self.bound:
            return None
        end = "" if spread is None else f" ({self.end})"
        named = f" at {spread.worst_name}" if spread is not None and self.end == "worst" else ""
        label = MEASURES[self.measure].label
        return f"{label}{end} is {value:.6g}{named}, {'under' if self.under else 'over'} {self.bound:g}"


def bars(text: str, under: bool, computed: Sequence[str]) -> list[Bar]:
    """Read bars such as ``psnr=30,psnr.worst=25``: of the mean unless ``.p5`` or ``.worst`` is said.

    Args:
        text: what was given.
        under: the comparison fails below them; else above.
        computed: the measures that are made.

    Raises:
        ConfigError: one is no such bar, is of a measure that is not made, or would pass what is worse.
    """
    found = []
    option = "--fail-under" if under else "--fail-over"
    for part in text.split(","):
        left, equals, right = part.strip().partition("=")
        name, _, end = left.strip().lower().partition(".")
        end = end or "mean"
        try:
            bound = float(right)
        except ValueError:
            bound = float("nan")
        if not equals or bound != bound:
            raise ConfigError(
                f"{option}: expected bars such as psnr=30,ssim.worst=0.97, got {part.strip()!r}"
            )
        if name not in MEASURES or end not in ENDS:
            wrong, known = (name, MEASURES) if name not in MEASURES else (end, ENDS)
            raise ConfigError(
                f"{option}: there is no {wrong!r}.{near(wrong, known)} There are {', '.join(known)}."
            )
        if name not in computed:
            raise ConfigError(f"{option}: {name} is not made. Ask for it: --measures {name}.")
        if MEASURES[name].higher_is_better != under:
            better = "more" if MEASURES[name].higher_is_better else "less"
            other = "--fail-over" if under else "--fail-under"
            raise ConfigError(f"{option}: of {name}, {better} is better; give its bar to {other}")
        if MEASURES[name].of_all and "." in left:
            raise ConfigError(f"{option}: {name} is one number for all pictures; it has no {end}")
        found.append(Bar(name, end, bound, under))
    return found
