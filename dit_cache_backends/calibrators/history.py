"""The base of predictors whose forecast is a weighted sum of the last observations."""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of, Predictor


class History(Predictor):
    """Keeps the last ``length`` observations and foretells a weighted sum of them."""

    def __init__(self, length: int, of: Of = "residual") -> None:
        self.of = of
        self._steps: deque[int] = deque(maxlen=length)
        self._values: deque[Tensor] = deque(maxlen=length)
        self._first = 0

    def observe(self, step: Step, value: Tensor) -> None:
        if not self._steps:
            self._first = step.index
        self._steps.append(step.index)
        self._values.append(value)

    def predict(self, step: Step) -> Tensor:
        if not self._steps:
            raise RuntimeError(f"{type(self).__name__} was asked to predict before it had observed a value.")
        return weighted_sum(self._values, self.weights(step))

    @abstractmethod
    def weights(self, step: Step) -> Sequence[float]:
        """The weight of each kept observation in the forecast at ``step``, oldest first."""


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum(weight * tensor)`` in the tensors' own dtype; a sum that is one of the tensors is that tensor.

    An extrapolation takes large numbers from one another, so float16 and bfloat16 are summed in float32 and rounded
    once. Measured in bfloat16 at order 3, two steps ahead: 0.002 % of the largest value off, summed term by term
    0.6 %, beside the 1.1 % that come from the rounding of the observations.
    """
    terms = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0]
    if not terms:
        return torch.zeros_like(tensors[0])
    first, weight = terms[0]
    if len(terms) == 1 and weight == 1.0:
        return first
    wide = torch.float32 if first.dtype in (torch.float16, torch.bfloat16) else first.dtype
    total = first.to(wide) * weight
    for tensor, weight in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total.to(first.dtype)
