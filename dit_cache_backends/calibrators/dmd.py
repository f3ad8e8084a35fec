"""DMD: dynamic mode decomposition, which continues a sum of exponentials."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dit_cache_backends.calibrators.history import History, weighted_sum
from dit_cache_backends.calibrators.taylorseer import FIRST_SLOPE
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Of

Precision = Literal["low", "medium", "high"]

FEWEST = 4
"""Evenly spaced observations that a fit needs; cache-dit's: one oscillation takes three pairs of neighbours."""
NOISE = 1e-4
"""Singular values below this part of the largest are dropped where no rank is given; cache-dit's."""
STRIDE = 17
"""With low precision every 17th number is looked at: prime to the width of a model, so that every channel is seen."""
CHUNK = 1 << 20
"""Numbers of each observation that are taken to float64 at once."""


class DMD(History):
    """Dynamic mode decomposition (Schmid 2010, doi 10.1017/S0022112010001217), with the options of cache-dit 1.5.3.

    From the evenly spaced observations at the end of the history a linear map from each to the next is fitted, in the
    space they span; its eigenvalues, raised to the distance, continue decays and oscillations exactly where a
    polynomial runs away: one fewer than there are observations, an oscillation counting twice, each along directions of
    its own (a line along a single direction is none of these). Each sample of a batch has a fit of its own. With fewer
    than four such observations it is TaylorSeer of order 1, start rule included; where a fit fails, or a forecast is
    not finite in the model's dtype, that sample reuses its newest observation.

    Every mode is a sum of observations, so a forecast is one, too, and all that has to be known of them is their
    triangular factor ``R`` (``history`` squared numbers a sample): the method of snapshots (Sirovich 1987). ``R`` is
    taken from their inner products in float64, or with high precision by a QR decomposition, which needs a float64
    copy of the history for a moment. The fit is made on the host and kept until the next observation: reading ``R``
    waits for the device, once an observation that is followed by a skip; forecasts do not. Keeps ``history`` tensors,
    where cache-dit adds four, and the modes in complex128. A forecast fetches all of them at once from where they are
    kept. The device has to know float64, which Apple's does not.
    """

    def __init__(
        self,
        history: int = 6,
        rank: int = 0,
        ridge: float = 1e-8,
        precision: Precision = "medium",
        of: Of = "residual",
    ) -> None:
        super().__init__(history, of)
        self.rank = rank
        self.ridge = ridge
        self.precision = precision
        self._fits: list[_Fit | None] | None = None

    def observe(self, step: Step, value: Tensor) -> None:
        super().observe(step, value)
        self._fits = None

    def predict(self, step: Step) -> Tensor:
        count = self._evenly_spaced()
        if count < FEWEST or self._values[-1].shape.numel() == 0:
            return super().predict(step)
        tail = [self._storage.give(value) for value in list(self._values)[-count:]]
        if self._fits is None:
            # Known from the observations alone: asking again finds what asking now would have found.
            self._fits = [_fit(factor, self.rank, self.ridge) for factor in _factors(tail, self.precision)]
        spacing = self._steps[-1] - self._steps[-2]
        distance = (step.index - self._steps[-1]) / spacing
        newest = tail[-1]
        if len(self._fits) == 1:
            samples = [tail]
        else:
            samples = [[value[sample : sample + 1] for value in tail] for sample in range(len(self._fits))]
        foretold = [
            values[-1]
            if fit is None
            else _unless_infinite(weighted_sum(values[1:], fit.weights(distance)), values[-1])
            for values, fit in zip(samples, self._fits, strict=True)
        ]
        return foretold[0] if len(foretold) == 1 else torch.cat(foretold).view_as(newest)

    def weights(self, step: Step) -> Sequence[float]:
        """TaylorSeer's of order 1, for want of a fit."""
        weights = [0.0] * (len(self._steps) - 1) + [1.0]
        if len(self._steps) > 1 and self._steps[-1] - self._first >= FIRST_SLOPE:
            distance = (step.index - self._steps[-1]) / (self._steps[-1] - self._steps[-2])
            weights[-2:] = [-distance, 1 + distance]
        return weights

    def _evenly_spaced(self) -> int:
        """How many observations at the end of the history lie as far apart as the last two."""
        steps = list(self._steps)
        gaps = [after - before for before, after in pairwise(steps)]
        count = 1
        while count <= len(gaps) and gaps[-count] == gaps[-1]:
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class _Fit:
    """The modes of one sample, as sums of its observations but the oldest."""

    modes: Tensor
    """``[observations - 1, rank]``, complex128, as all of them on the host."""
    eigenvalues: Tensor
    amplitudes: Tensor

    def weights(self, distance: float) -> list[float]:
        """The weight of each observation but the oldest, ``distance`` spacings after the newest."""
        weights: list[float] = (self.modes @ (self.eigenvalues.pow(distance) * self.amplitudes)).real.tolist()
        return weights


def _fit(factor: Tensor, rank: int, ridge: float) -> _Fit | None:
    """Fit the map from each observation to the next; ``factor`` stands for them: ``[rows, observations]``."""
    before, after = factor[:, :-1], factor[:, 1:]
    try:
        left, values, right = torch.linalg.svd(before, full_matrices=False)
        kept = rank if rank > 0 else max(int((values > NOISE * values[0]).sum()), 1)
        kept = min(kept, len(values))
        scaled = (right[:kept].mH / (values[:kept] + ridge)).to(torch.complex128)
        after = after.to(torch.complex128)
        eigenvalues, vectors = torch.linalg.eig(left[:, :kept].mH.to(torch.complex128) @ after @ scaled)
        modes = scaled @ vectors
        # Not by lstsq: on the CPU its last bits depend on where the memory lies, and a seed would not give one picture.
        amplitudes = torch.linalg.pinv(after @ modes) @ after[:, -1]
    except RuntimeError:  # LinAlgError, which is one: nothing came out, or nothing finite went in
        return None
    return _Fit(modes, eigenvalues, amplitudes)


def _factors(observations: Sequence[Tensor], precision: Precision) -> Tensor:
    """For each sample the factor ``R`` of its observations, ``[samples, rows, observations]``, on the host."""
    newest = observations[-1]
    samples = newest.shape[0] if newest.dim() > 1 else 1
    flat = [value.reshape(samples, -1) for value in observations]
    if precision == "high":
        triangular: Tensor = torch.linalg.qr(torch.stack(flat, dim=-1).double(), mode="r").R
        return triangular.cpu()
    stride = STRIDE if precision == "low" and flat[0].shape[1] > STRIDE * STRIDE else 1
    products = torch.zeros(samples, len(flat), len(flat), dtype=torch.float64, device=newest.device)
    for start in range(0, flat[0].shape[1], CHUNK * stride):
        part = torch.stack([row[:, start : start + CHUNK * stride : stride] for row in flat], dim=1).double()
        products += part @ part.mT
    products = products.cpu()
    finite = products.isfinite().all(dim=-1).all(dim=-1).view(-1, 1, 1)
    squares, vectors = torch.linalg.eigh(products.where(finite, 0.0))
    factors = squares.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT
    result: Tensor = factors.where(finite, torch.nan)
    return result


def _unless_infinite(foretold: Tensor, newest: Tensor) -> Tensor:
    """Decided on the device, so that nobody waits for it."""
    return torch.where(torch.isfinite(foretold).all(), foretold, newest)
