"""Newton: the polynomial through the last observations, wherever they lie."""

import math
from collections.abc import Sequence

from dit_cache_backends.calibrators.history import History
from dit_cache_backends.calibrators.taylorseer import FIRST_SLOPE
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of


class Newton(History):
    """Newton's interpolation by exact divided differences, carried beyond the last observation.

    The polynomial of degree ``order`` through the last ``order + 1`` observations (Newton, Principia, book III, lemma
    5; SeaCache, arXiv 2602.18993, uses order 1), exact for polynomials of that degree whatever the gaps, where
    TaylorSeer, which divides by the last gap only, is exact for lines. It is evaluated by its Lagrange weights, which
    are found from the step numbers alone: ``order + 1`` tensors, no difference is stored and none is rounded.

    As with TaylorSeer the order grows by one with each observation from ``start`` steps after the first one on, so
    that the coarse first steps of a run do not set the slope. With 0 it extrapolates from the second observation on.
    """

    def __init__(self, order: int = 1, start: int = FIRST_SLOPE, of: Of = "residual") -> None:
        super().__init__(order + 1, of)
        self.order = order
        self.start = start

    def weights(self, step: Step) -> Sequence[float]:
        begun = sum(index - self._first >= self.start for index in self._steps)
        unused = len(self._steps) - 1 - min(begun, len(self._steps) - 1)
        nodes = list(self._steps)[unused:]
        return [0.0] * unused + [
            math.prod((step.index - other) / (node - other) for other in nodes if other != node)
            for node in nodes
        ]
