"""A forecast whose weights were fitted beforehand to one model, one scheduler and one mask of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dit_cache_backends.calibrators.history import History
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of

Weights = Mapping[int, Sequence[float]]
"""For each skipped step those of the last computed steps before it, the newest last."""


class Fitted(History):
    """A weighted sum of what the last computed steps gave, with weights of its own for each skipped step.

    A polynomial takes the same weights for every model; these were fitted to a dense run
    (``dit_cache_backends.planning.forecast``), and hold for the one mask that they were fitted with. Where other steps
    were computed than the mask says, after a refresh or in the first step of an expert, the line through the last two
    values is taken.

    Args:
        weights: as ``Weights``.
        mask: the steps that are computed, 1, and skipped, 0.
        of: what is observed and foretold, as ``Predictor.of``.
    """

    def __init__(self, weights: Weights, mask: Sequence[int], of: Of = "residual") -> None:
        super().__init__(max(2, *map(len, weights.values())) if weights else 2, of)
        self._fitted = weights
        self._mask = mask

    def observe(self, step: Step, value: Tensor) -> None:
        super().observe(step, value)
        self._steps[-1] = self._place(step)

    def weights(self, step: Step) -> Sequence[float]:
        at, kept = self._place(step), list(self._steps)
        fits = step.total is None or len(self._mask) in (step.run_total, step.total)
        weights = self._fitted.get(at) if fits else None
        if weights is None or kept[-len(weights) :] != self._computed(at, len(weights)):
            weights = _line(kept[-2:], at)
        return [0.0] * (len(kept) - len(weights)) + list(weights)

    def _place(self, step: Step) -> int:
        """The step's place in the mask, which is for the whole run where it is as long."""
        return step.run_index if len(self._mask) == step.run_total else step.index

    def _computed(self, before: int, count: int) -> list[int]:
        """The last ``count`` steps before one that the mask computes."""
        return [place for place in range(before) if self._mask[place]][-count:]


def _line(steps: Sequence[int], at: int) -> list[float]:
    """The weights of the values at one or two steps in the line through them."""
    if len(steps) < 2 or steps[0] >= steps[1]:  # counted anew after a refresh
        return [0.0] * (len(steps) - 1) + [1.0]
    slope = (at - steps[0]) / (steps[1] - steps[0])
    return [1.0 - slope, slope]
