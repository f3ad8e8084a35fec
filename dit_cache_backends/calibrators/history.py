"""The base of predictors whose forecast is a weighted sum of the last observations."""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of, Predictor
from dit_cache_backends.engine.storage import PLAIN, Kept, Storage

HALF = (torch.float16, torch.bfloat16)
"""Dtypes that are summed in float32."""


class History(Predictor):
    """Keeps the last ``length`` observations and foretells a weighted sum of them.

    With a storage they are fetched from it one after the other, so that only one of them at a time is beside the sum;
    an observation fetches none.
    """

    def __init__(self, length: int, of: Of = "residual") -> None:
        self.of = of
        self._steps: deque[int] = deque(maxlen=length)
        self._values: deque[Kept] = deque(maxlen=length)
        self._first = 0
        self._storage = PLAIN

    def kept_in(self, storage: Storage) -> Predictor:
        self._storage = storage
        return self

    def observe(self, step: Step, value: Tensor) -> None:
        if not self._steps:
            self._first = step.index
        self._steps.append(step.index)
        self._values.append(value if self._storage is PLAIN else self._storage.keep(value))

    def predict(self, step: Step) -> Tensor:
        if not self._steps:
            raise RuntimeError(f"{type(self).__name__} was asked to predict before it had observed a value.")
        return weighted_sum(self._values, self.weights(step))

    @abstractmethod
    def weights(self, step: Step) -> Sequence[float]:
        """The weight of each kept observation in the forecast at ``step``, oldest first."""


def weighted_sum(tensors: Sequence[Kept], weights: Sequence[float]) -> Tensor:
    """``sum(weight * tensor)`` in the tensors' own dtype; a sum that is one of the tensors is that tensor.

    An extrapolation takes large numbers from one another, so float16 and bfloat16 are summed in float32 and rounded
    once. Measured in bfloat16 at order 3, two steps ahead: 0.002 % of the largest value off, summed term by term
    0.6 %, beside the 1.1 % that come from the rounding of the observations.
    """
    give = Storage.give
    terms = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0]
    if not terms:
        return torch.zeros_like(give(tensors[0]))
    first, weight = give(terms[0][0]), terms[0][1]
    if len(terms) == 1 and weight == 1.0:
        return first
    dtype = first.dtype
    if dtype in HALF:
        total = first.to(torch.float32)
        if weight != 1.0:
            total *= weight
        rest = terms[1:]
    elif weight == 1.0:
        total, rest = first.add(give(terms[1][0]), alpha=terms[1][1]), terms[2:]
    else:
        total, rest = first * weight, terms[1:]
    for tensor, weight in rest:
        total.add_(give(tensor), alpha=weight)
    return total.to(dtype)
