"""How, beyond plain reuse: predictors that extrapolate what a span has added, each usable under any gate."""

from dit_cache_backends.calibrators import (
    chebyshev,
    dmd,
    fitted,
    foca,
    hermite,
    history,
    newton,
    options,
    taylorseer,
)
from dit_cache_backends.calibrators.chebyshev import Chebyshev
from dit_cache_backends.calibrators.dmd import DMD
from dit_cache_backends.calibrators.fitted import Fitted
from dit_cache_backends.calibrators.foca import FoCa
from dit_cache_backends.calibrators.hermite import Hermite
from dit_cache_backends.calibrators.history import History, weighted_sum
from dit_cache_backends.calibrators.newton import Newton
from dit_cache_backends.calibrators.options import CalibratorOptions, make_calibrator
from dit_cache_backends.calibrators.taylorseer import TaylorSeer
from dit_cache_backends.engine.untraced import untraced_module

for _module in (chebyshev, dmd, fitted, foca, hermite, history, newton, options, taylorseer):
    untraced_module(_module)

__all__ = [
    "CalibratorOptions",
    "Chebyshev",
    "DMD",
    "Fitted",
    "FoCa",
    "Hermite",
    "History",
    "Newton",
    "TaylorSeer",
    "make_calibrator",
    "weighted_sum",
]
