"""TaylorSeer: the Taylor series of what the blocks add."""

import math

from torch import Tensor

from dit_cache_backends.calibrators.history import HALF, weighted_sum
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of, Predictor

FIRST_SLOPE = 3
"""Steps after the first observation at which differences begin: cache-dit 1.5.3's rule."""


class TaylorSeer(Predictor):
    """Extrapolates by the Taylor series of TaylorSeer (arXiv 2503.06923, equation 5), as cache-dit 1.5.3 computes it.

    The derivatives are differences over the gap between the last two observations. As there, the differences begin
    with the fourth call of the branch (three steps after the first observation), so that the coarse first steps of a
    run do not set the slope. Keeps ``order + 1`` tensors.
    """

    def __init__(self, order: int = 1, of: Of = "residual") -> None:
        self.order = order
        self.of = of
        self._derivatives: list[Tensor] = []
        self._first = 0
        self._last = 0

    def observe(self, step: Step, value: Tensor) -> None:
        derivatives = [value]
        if self._derivatives:
            gap = step.index - self._last
            if step.index - self._first >= FIRST_SLOPE:
                for previous in self._derivatives[: self.order]:
                    change = derivatives[-1] - previous
                    derivatives.append(change if gap == 1 else change.div_(gap))
        else:
            self._first = step.index
        self._derivatives = derivatives
        self._last = step.index

    def predict(self, step: Step) -> Tensor:
        if not self._derivatives:
            raise RuntimeError(f"{type(self).__name__} was asked to predict before it had observed a value.")
        distance = step.index - self._last
        total = self._derivatives[0]
        if total.dtype in HALF:
            return weighted_sum(
                self._derivatives, [self._factor(power, distance) for power in range(len(self._derivatives))]
            )
        for power, derivative in enumerate(self._derivatives[1:], start=1):
            total = total.add(derivative, alpha=self._factor(power, distance))
        return total

    def _factor(self, power: int, distance: float) -> float:
        return self.polynomial(power, distance) / math.factorial(power)

    def polynomial(self, power: int, distance: float) -> float:
        """The polynomial that the difference of that order is multiplied with, at ``distance`` steps."""
        return distance**power
