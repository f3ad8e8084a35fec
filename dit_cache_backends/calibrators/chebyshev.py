"""Chebyshev: a ridge regression on Chebyshev polynomials over the whole run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cache_backends.calibrators.history import History
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of

STEPS = 50
"""Steps of a run whose number is not known: the ``tau_num_steps`` of Spectrum in SGLang."""


class Chebyshev(History):
    """Spectrum (arXiv 2603.01623): Chebyshev polynomials up to ``degree``, fitted to the last ``window`` observations.

    Steps are mapped to ``tau = 2 * index / total - 1``, so that the whole run lies within -1 and 1, where no Chebyshev
    polynomial exceeds 1 and an error of the fit grows little. The ridge solution is linear in the observations; its
    weights are found on the host, in float64, from the step numbers alone. Keeps ``window`` tensors.

    Spectrum's ridge pulls every coefficient to zero, and with them the forecast of a value that does not move. With
    ``anchored`` the differences from the newest observation are fitted, so that it is pulled to that one: a constant
    is foretold exactly. Nothing else is, the ridge sees to that; with a ridge near 0 polynomials up to ``degree`` are.
    """

    def __init__(
        self,
        degree: int = 4,
        ridge: float = 0.1,
        window: int = 8,
        anchored: bool = True,
        of: Of = "residual",
    ) -> None:
        super().__init__(window, of)
        self.degree = degree
        self.ridge = ridge
        self.anchored = anchored

    def weights(self, step: Step) -> Sequence[float]:
        total = max(step.total or STEPS, step.index + 1)
        basis = _polynomials([*self._steps, step.index], total, self.degree)
        known, asked = basis[:-1], basis[-1]
        normal = known.mT @ known + self.ridge * torch.eye(self.degree + 1, dtype=torch.float64, device="cpu")
        weights: list[float] = (known @ torch.linalg.solve(normal, asked)).tolist()
        if self.anchored:
            weights[-1] += 1.0 - sum(weights)
        return weights


def _polynomials(steps: Sequence[int], total: int, degree: int) -> Tensor:
    """``T_0`` to ``T_degree`` at each step: ``[steps, degree + 1]``."""
    tau = torch.tensor([2 * step / total - 1 for step in steps], dtype=torch.float64, device="cpu")
    columns = [torch.ones_like(tau), tau]
    while len(columns) <= degree:
        columns.append(2 * tau * columns[-1] - columns[-2])
    return torch.stack(columns[: degree + 1], dim=1)
