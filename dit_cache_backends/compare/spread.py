"""What many values of a measure come to: mean, the bad end, and the worst by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dit_cache_backends.compare.measures import MEASURES, SAME_DB

ENDS = ("mean", "p5", "worst")
"""The three numbers of a spread, by which it is asked for."""


@dataclass(frozen=True)
class Spread:
    """The values of one measure."""

    mean: float
    p5: float
    """The 5th percentile; where less is better the 95th, so that it is the bad end always."""
    worst: float
    worst_name: str = ""

    def of(self, end: str) -> float:
        """One of ``ENDS``."""
        return float(getattr(self, end))


def spread(measure: str, values: Sequence[float], names: Sequence[str]) -> Spread:
    """The spread of the values of pictures by their names. Equal pictures count as 100 dB in PSNR.

    NaN is the worst of all, and makes the mean NaN.
    """
    known = MEASURES[measure]
    found = np.asarray([min(v, SAME_DB) if measure == "psnr" else v for v in values], dtype=np.float64)
    badness = np.where(np.isnan(found), np.inf, -found if known.higher_is_better else found)
    worst = int(badness.argmax())
    return Spread(
        float(found.mean()),
        float(np.percentile(found, 5 if known.higher_is_better else 95)),
        float(found[worst]),
        names[worst],
    )
