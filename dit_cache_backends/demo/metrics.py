"""How far one picture is from another: PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def psnr(reference: Image, picture: Image) -> float:
    """Peak signal to noise ratio of two RGB pictures of one size, in dB; infinite if they are the same.

    ValueError if the sizes differ.
    """
    a, b = _arrays(reference, picture)
    error = float(np.square(a - b).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def ssim(reference: Image, picture: Image) -> float:
    """Structural similarity of two RGB pictures of one size, 1 if they are the same (Wang et al., 2004).

    With the paper's Gaussian window of deviation 1.5; ValueError if the sizes differ.
    """
    from skimage.metrics import structural_similarity

    a, b = _arrays(reference, picture)
    found = structural_similarity(
        a, b, data_range=255.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(found)


def mean(values: Sequence[float]) -> float:
    """The mean of some decibels or similarities: same pictures (infinite) count as 100 dB. NaN if empty."""
    return float(np.mean([min(v, 100.0) for v in values])) if len(values) else float("nan")


def _arrays(reference: Image, picture: Image) -> tuple[np.ndarray, np.ndarray]:
    if reference.size != picture.size:
        raise ValueError(f"pictures of one size are needed, these have {reference.size} and {picture.size}")
    return tuple(np.asarray(p.convert("RGB"), dtype=np.float64) for p in (reference, picture))  # type: ignore[return-value]
