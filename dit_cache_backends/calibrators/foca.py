"""FoCa: forecast, then calibrate by the forecasts before."""

from torch import Tensor

from dit_cache_backends.calibrators.history import weighted_sum
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of, Predictor

HORIZON = 3
"""Steps after the last observation from which on a forecast goes back towards it."""


class FoCa(Predictor):
    """Feature caching as an ODE: FoCa (arXiv 2508.16211, its Heun step), in the form of cache-dit 1.5.3.

    With ``A`` the last observation, ``D`` its difference from the one before, and ``F(t)`` the value ``t`` steps later,
    ``F(t) = A + c(t) (D + F(t-1) - F(t-2))``, where ``F(0) = A``, ``F(-1)`` is the value one step before ``A`` (a
    forecast, if that step was skipped), and ``c(t) = t/2`` up to three steps, ``4.5/t`` beyond.
    Gaps between observations are not divided out, so a line is followed exactly only from two neighbouring steps and
    up to three steps far; a constant always.

    cache-dit keeps every forecast for the next one. Here they are not needed: every ``F(t)`` is ``A + a D + b E`` with
    ``E = A - F(-1)`` and two numbers found from ``t`` alone, so predicting changes nothing, and two or three tensors
    are kept instead of four. Every step between two observations counts as foretold, which is what skipping means.
    """

    def __init__(self, of: Of = "residual") -> None:
        self.of = of
        self._anchor: Tensor | None = None
        self._change: Tensor | None = None
        """``D``: from the observation before to the last one."""
        self._turn: Tensor | None = None
        """``E``: from what was taken for the step before to the last observation."""
        self._last = 0

    def observe(self, step: Step, value: Tensor) -> None:
        anchor = self._anchor
        if anchor is not None:
            change = value - anchor
            gap = step.index - self._last
            if gap == 1 or self._change is None or self._turn is None:
                self._turn = change
            else:
                along, turned = _coefficients(gap - 1)
                self._turn = weighted_sum(
                    (value, anchor, self._change, self._turn), (1.0, -1.0, -along, -turned)
                )
            self._change = change
        self._anchor = value
        self._last = step.index

    def predict(self, step: Step) -> Tensor:
        if self._anchor is None:
            raise RuntimeError("FoCa was asked to predict before it had observed a value.")
        if self._change is None or self._turn is None:
            return self._anchor
        return weighted_sum(
            (self._anchor, self._change, self._turn), (1.0, *_coefficients(step.index - self._last))
        )


def _coefficients(distance: int) -> tuple[float, float]:
    """What ``D`` and ``E`` are multiplied with ``distance`` steps after the last observation."""
    value, before = (0.0, 0.0), (0.0, -1.0)
    for ahead in range(1, distance + 1):
        factor = ahead / 2 if ahead <= HORIZON else HORIZON**2 / (2 * ahead)
        rise = (value[0] - before[0], value[1] - before[1])
        value, before = (factor * (1 + rise[0]), factor * rise[1]), value
    return value
