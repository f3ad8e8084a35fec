"""Forecasts that are fitted to a model, and what any forecast will be off by, both without running it.

The weights of a skipped step are those that leave the least of the error that the run has gathered so far: not only
what the step itself misses, but also what the steps before it did, which a forecast from newer values can take back. A
step that runs on latents which are a little off corrects part of it by itself; so much of it counts no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch

from dit_cache_backends.calibrators import DMD, CalibratorOptions, make_calibrator
from dit_cache_backends.calibrators.fitted import Weights
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.predictors import Predictor, Reuse
from dit_cache_backends.engine.spans import Stream
from dit_cache_backends.planning.candidates import FITTED, PREDICTORS, Candidate, Mask, Quality
from dit_cache_backends.planning.gram import Gram

__all__ = ["fitted_weights", "foreseen"]

OFF = 1e-4
"""Mean square by which what a cached run keeps differs from the dense run's, relative. Large weights make more of it:
a fit has it as its ridge, and what is foreseen counts it."""
LASTS = 0.85
"""Part of the gathered error that is left after a computed step."""
LEAST = 0.1
"""A step that moves the latents less than this, where 1 is the mean, takes no more back than one that moves them so
far: it would else be foretold by weights without measure."""


def fitted_weights(gram: Gram, candidate: Candidate) -> Weights | None:
    """The weights of a candidate whose predictor is fitted; None for any other.

    They are rounded as they stand in a plan's file, so that what was measured is what runs.
    """
    fit = FITTED.get(candidate.predictor)
    if fit is None:
        return None
    return {
        step: tuple(float(f"{weight:.6g}") for weight in weights[sources])
        for step, (sources, weights) in _fit(gram, _run(gram, candidate), fit.keep, fit.lasts).items()
    }


def foreseen(gram: Gram, candidate: Candidate) -> Quality:
    """About how near a run of a plan comes to the dense run.

    It ranks plans; the true error of a run is several dB apart from it.
    """
    mask = _run(gram, candidate)
    fit = FITTED.get(candidate.predictor)
    if fit is None:
        rows: Mapping[int, np.ndarray] = _rows_of(candidate.predictor, mask, gram.begins)
    else:
        rows = {at: row for at, (_, row) in _fit(gram, mask, fit.keep, fit.lasts).items()}
    error, noise = np.zeros(len(mask)), 0.0
    for step, digit in enumerate(mask):
        if digit:
            error *= LASTS
            noise *= LASTS**2
            continue
        size = gram.sizes[step]
        error += size * rows[step]
        error[step] -= size
        noise += OFF * size**2 * float(np.square(rows[step]).sum())
    squares = np.einsum("s,pst,t->p", error, gram.products, error) + noise
    return Quality.of(np.sqrt(np.maximum(squares, 0)).tolist())


def _run(gram: Gram, candidate: Candidate) -> Mask:
    """The mask as it runs: a transformer computes its first step whatever the mask says."""
    return tuple(int(digit or step in gram.begins) for step, digit in enumerate(candidate.mask))


def _fit(gram: Gram, mask: Mask, keep: int, lasts: float) -> dict[int, tuple[list[int], np.ndarray]]:
    """For each skipped step the computed ones that it is made of, and their weights among those of all steps."""
    steps = len(mask)
    # A step whose numbers are not finite is one of which nothing is known.
    products = np.nan_to_num(gram.products.mean(axis=0), nan=0.0, posinf=0.0, neginf=0.0)
    error = np.zeros(steps)
    found: dict[int, tuple[list[int], np.ndarray]] = {}
    for step, digit in enumerate(mask):
        if digit:
            error *= lasts
            continue
        sources = _sources(mask, gram.begins, step, keep)
        size = gram.sizes[step]
        wanted = -error / max(size, LEAST)
        wanted[step] += 1
        row = np.zeros(steps)
        own = products[np.ix_(sources, sources)]
        if products[step, step] > 0 and (own.diagonal() > 0).all():
            ridge = OFF * own.diagonal().mean()
            newest = np.zeros(len(sources))
            newest[-1] = ridge
            row[sources] = np.linalg.solve(
                own + ridge * np.eye(len(sources)), products[sources] @ wanted + newest
            )
        else:  # nor of the last step, which the engine does not keep
            row[sources[-1]] = 1
        found[step] = sources, row
        error += size * row
        error[step] -= size
    return found


def _sources(mask: Mask, begins: Sequence[int], step: int, keep: int) -> list[int]:
    """The last computed steps of the transformer that makes a step."""
    begin = max((each for each in begins if each <= step), default=0)
    return [each for each in range(begin, step) if mask[each]][-keep:]


@lru_cache(maxsize=4096)
def _rows_of(name: str, mask: Mask, begins: tuple[int, ...]) -> Mapping[int, np.ndarray]:
    """For each skipped step the weights that a predictor of the options has.

    They are seen in what it makes of unit vectors. DMD, which is no weighted sum, is taken for plain reuse.
    """
    steps = len(mask)
    options = CalibratorOptions(**PREDICTORS[name])
    units = torch.eye(steps)
    found: dict[int, np.ndarray] = {}
    predictor: Predictor = Reuse()
    begin = 0
    for at, digit in enumerate(mask):
        if at in begins or not at:
            made = make_calibrator(options, Stream("hidden_states", True))
            predictor, begin = (Reuse() if isinstance(made, DMD) else made), at
        step = Step(at - begin, None, "cond", at, steps)
        if digit:
            predictor.observe(step, units[at])
        else:
            found[at] = predictor.predict(step).double().numpy()
    return found
