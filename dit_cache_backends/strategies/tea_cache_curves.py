"""What TeaCache makes of the signal's difference: a polynomial, or a line that never falls."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Polynomial:
    """As the published sets are."""

    coefficients: tuple[float, ...]
    """Highest power first."""

    def __call__(self, difference: float) -> float:
        value = 0.0
        for coefficient in self.coefficients:
            value = value * difference + coefficient
        return value


@dataclass(frozen=True, slots=True)
class Monotone:
    """Straight lines between knots; level outside of them."""

    x: tuple[float, ...]
    """Rising."""
    y: tuple[float, ...]
    """Never falling."""

    def __call__(self, difference: float) -> float:
        x, y = self.x, self.y
        at = bisect_right(x, difference)
        if at == 0:
            return y[0]
        if at == len(x):
            return y[-1]
        return y[at - 1] + (y[at] - y[at - 1]) * (difference - x[at - 1]) / (x[at] - x[at - 1])


Curve = Polynomial | Monotone


def along(x_range: Sequence[float], parts: int = 256) -> list[float]:
    """Evenly spaced differences, both ends included."""
    low, high = x_range
    return [low + (high - low) * part / parts for part in range(parts + 1)]
