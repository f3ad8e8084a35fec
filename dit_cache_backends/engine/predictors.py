"""How: what a skipped span would have given, from what it gave before."""

import math
from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from dit_cache_backends.engine.clock import Step

Of = Literal["residual", "output"]


class Predictor(ABC):
    """Predicts one stream of one span on one branch, during one generation."""

    of: Of = "residual"
    """What is observed and predicted: the residual (exit minus entry), or the output of the span itself."""

    @abstractmethod
    def observe(self, step: Step, value: Tensor) -> None:
        """Told the value whenever the span has run. The tensor may be kept: nobody writes into it."""

    @abstractmethod
    def predict(self, step: Step) -> Tensor:
        """The value at ``step``, of the shape, dtype and device last observed. Must not change the predictor."""


class Reuse(Predictor):
    """The last value, as it was."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def observe(self, step: Step, value: Tensor) -> None:
        self._value = value

    def predict(self, step: Step) -> Tensor:
        if self._value is None:
            raise RuntimeError("Reuse was asked to predict before it had observed a value.")
        return self._value


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
            if step.index - self._first > 2:
                for previous in self._derivatives[: self.order]:
                    derivatives.append((derivatives[-1] - previous) / gap)
        else:
            self._first = step.index
        self._derivatives = derivatives
        self._last = step.index

    def predict(self, step: Step) -> Tensor:
        if not self._derivatives:
            raise RuntimeError("TaylorSeer was asked to predict before it had observed a value.")
        distance = step.index - self._last
        total = self._derivatives[0]
        for power, derivative in enumerate(self._derivatives[1:], start=1):
            total = total.add(derivative, alpha=distance**power / math.factorial(power))
        return total
