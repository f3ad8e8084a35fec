"""How far one picture is from another: MSE, PSNR and SSIM, and what is better in every measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit_cache_backends.compare.pixels import Pixels, pixels_of, same_size, scaled

SAME_DB = 100.0
"""The PSNR that equal pictures, whose own is infinite, count in a mean, in dB."""


@dataclass(frozen=True)
class Measure:
    """A measure by its name."""

    name: str
    label: str
    higher_is_better: bool = True
    digits: int = 2
    needs_prompt: bool = False
    """It looks at one picture and its prompt, not at two pictures."""
    of_all: bool = False
    """It looks at all pictures at once, so that there is none for a single one."""


MEASURES = {
    each.name: each
    for each in (
        Measure("psnr", "PSNR, dB"),
        Measure("ssim", "SSIM", digits=4),
        Measure("mse", "MSE", higher_is_better=False),
        Measure("lpips", "LPIPS", higher_is_better=False, digits=4),
        Measure("clip", "CLIP score", needs_prompt=True),
        Measure("image_reward", "ImageReward", digits=3, needs_prompt=True),
        Measure("fid", "FID", higher_is_better=False, of_all=True),
    )
}
"""All there are; the first three need nothing more than scikit-image."""

ALWAYS = ("psnr", "ssim", "mse")


def mse(reference: Any, picture: Any) -> float:
    """Mean squared error of two pictures of one size, on the scale of 8 bits (0 to 255), whatever their bits."""
    a, b = _pair(reference, picture)
    return float(np.square(a - b).mean())


def psnr(reference: Any, picture: Any) -> float:
    """Peak signal to noise ratio of two pictures of one size, in dB; infinite if they are the same.

    Args:
        reference: a Pillow picture or an array, as :func:`~dit_cache_backends.compare.pixels.pixels_of` takes it.
        picture: the other.

    Raises:
        ConfigError: the sizes differ.
    """
    error = mse(reference, picture)
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def ssim(reference: Any, picture: Any) -> float:
    """Structural similarity of two pictures of one size, 1 if they are the same (Wang et al., 2004).

    With the paper's Gaussian window of deviation 1.5, by scikit-image.

    Raises:
        ConfigError: the sizes differ.
    """
    from skimage.metrics import structural_similarity

    a, b = _pair(reference, picture)
    found = structural_similarity(
        a, b, data_range=255.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(found)


def capped(values: Sequence[float]) -> list[float]:
    """Decibels that can be averaged: same pictures (infinite) count as 100 dB."""
    return [min(value, SAME_DB) for value in values]


def mean(values: Sequence[float]) -> float:
    """The mean of some decibels or similarities: same pictures (infinite) count as 100 dB. NaN if empty."""
    return float(np.mean(capped(values))) if len(values) else float("nan")


def _pair(reference: Any, picture: Any) -> tuple[Pixels, Pixels]:
    a, b = pixels_of(reference), pixels_of(picture)
    same_size(a, b)
    return scaled(a), scaled(b)
