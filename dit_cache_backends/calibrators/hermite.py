"""Hermite: TaylorSeer's differences on scaled Hermite polynomials."""

from dit_cache_backends.calibrators.taylorseer import TaylorSeer
from dit_cache_backends.engine.predictors import Of


class Hermite(TaylorSeer):
    """HiCache (arXiv 2508.16984): in TaylorSeer's series the power ``x**i`` becomes ``s**i * H_i(s * x)``.

    ``H_i`` are the physicists' Hermite polynomials: 1, ``2x``, ``4x**2 - 2``, ... With a scale ``s`` below 1 the terms
    grow less with the distance. A constant is foretold exactly; a line if ``2 * s**2`` is 1 (about 0.7), else it is
    damped or overshot by that factor; nothing beyond, since even polynomials have a constant term. Differences, their
    start and the ``order + 1`` tensors are TaylorSeer's.
    """

    def __init__(self, order: int = 2, scale: float = 0.5, of: Of = "residual") -> None:
        super().__init__(order, of)
        self.scale = scale

    def polynomial(self, power: int, distance: float) -> float:
        x = self.scale * distance
        before, value = 0.0, 1.0
        for degree in range(power):
            before, value = value, 2 * x * value - 2 * degree * before
        return self.scale**power * value
