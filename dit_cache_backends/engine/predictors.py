"""How: what a skipped span would have given, from what it gave before."""

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
        """The value at ``step``, of the shape, dtype and device last observed.

        Asking must change no answer, neither to the same question nor to a later one; what follows from the
        observations may be worked out once and kept.
        """


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
