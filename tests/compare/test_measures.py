"""The measures beside numbers worked out from their formulas, and the kinds of pictures that are read."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dit_cache_backends.compare import measures
from dit_cache_backends.compare.pixels import eight_bit, pixels_of, read_picture
from dit_cache_backends.compare.spread import spread
from dit_cache_backends.errors import ConfigError


def noise(seed: int, *shape: int, dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def test_mse_and_psnr_are_those_of_their_formulas() -> None:
    one, other = noise(1, 24, 40, 3), noise(2, 24, 40, 3)
    error = sum((int(a) - int(b)) ** 2 for a, b in zip(one.ravel(), other.ravel(), strict=True)) / one.size
    assert measures.mse(one, other) == pytest.approx(error)
    assert measures.psnr(one, other) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))


def test_ssim_is_that_of_wangs_formula() -> None:
    one = noise(1, 32, 32, 3)
    other = np.clip(one + np.random.default_rng(2).normal(0, 30, one.shape), 0, 255).astype(np.uint8)
    found = []
    for channel in range(3):
        a, b = (each[..., channel].astype(float) for each in (one, other))
        blur = {"sigma": 1.5, "truncate": 3.5}
        mean_a, mean_b = gaussian_filter(a, **blur), gaussian_filter(b, **blur)
        var_a, var_b = (gaussian_filter(x * x, **blur) - m * m for x, m in ((a, mean_a), (b, mean_b)))
        both = gaussian_filter(a * b, **blur) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        values /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        found.append(values[5:-5, 5:-5].mean())  # where the window lies within
    assert measures.ssim(one, other) == pytest.approx(np.mean(found), abs=1e-9)


def test_16_bits_are_compared_as_16_bits_on_the_scale_of_8(tmp_path: Path) -> None:
    deep = noise(3, 16, 16, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = read_picture(tmp_path / "deep.png")
    assert read.dtype == np.uint16
    assert np.array_equal(read[..., 1], deep)
    # One step of 16 bits is seen, and is a 257th of one of 8.
    assert measures.mse(deep, deep ^ 1) == pytest.approx((1 / 257) ** 2)
    shallow = noise(4, 16, 16)
    assert measures.mse(shallow.astype(np.uint16) * 257, shallow) == 0
    assert np.array_equal(eight_bit(pixels_of(shallow.astype(np.uint16) * 257))[..., 0], shallow)


def test_a_colour_picture_of_16_bits_which_pillow_would_cut_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">12H", *range(12)) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "deep.png").write_bytes(data)
    with pytest.raises(ConfigError, match=r"deep\.png is a colour picture of 16 bits"):
        read_picture(tmp_path / "deep.png")


def test_grey_is_three_equal_channels_and_opaque_alpha_is_none() -> None:
    grey = noise(5, 8, 8)
    for same in (
        grey,
        Image.fromarray(grey),
        Image.fromarray(grey).convert("RGB"),
        Image.fromarray(grey).convert("RGBA"),
    ):
        assert np.array_equal(pixels_of(same), np.repeat(grey[..., None], 3, axis=2))


def test_transparency_is_refused_until_it_is_said_what_stands_behind() -> None:
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[..., 3] = 200, 128
    with pytest.raises(ConfigError, match=r"transparent in part.*--background"):
        pixels_of(half)
    alpha = 128 / 255
    found = pixels_of(half, "white")[0, 0].astype(float)
    assert found == pytest.approx(
        [200 * alpha + 255 * (1 - alpha), 255 * (1 - alpha), 255 * (1 - alpha)], abs=1
    )
    assert pixels_of(half, "black")[0, 0].astype(float) == pytest.approx([200 * alpha, 0, 0], abs=1)
    with pytest.raises(ConfigError, match="--background is a colour"):
        pixels_of(half, "whiet")


def test_fractions_are_rounded_as_when_a_pipeline_makes_a_picture_of_them_and_strange_numbers_refused() -> (
    None
):
    fractions = np.random.default_rng(6).random((8, 8, 3))
    assert np.array_equal(pixels_of(fractions), (fractions * 255).round().astype(np.uint8))
    for wrong, why in ((fractions * np.nan, "not finite"), (fractions * 2 - 1, "between 0 and 1")):
        with pytest.raises(ConfigError, match=why):
            pixels_of(wrong)
    with pytest.raises(ConfigError, match="mode F"):
        pixels_of(Image.fromarray(fractions[..., 0].astype(np.float32)))


def test_the_bad_end_of_a_spread_is_low_where_more_is_better_and_high_where_less_is() -> None:
    values = [float(value) for value in range(1, 101)]
    names = [f"n{value:g}" for value in values]
    quality, error = spread("ssim", values, names), spread("mse", values, names)
    assert (quality.mean, quality.worst, quality.worst_name) == (50.5, 1, "n1")
    assert (error.mean, error.worst, error.worst_name) == (50.5, 100, "n100")
    assert quality.p5 == pytest.approx(5.95)
    assert error.p5 == pytest.approx(95.05)
    assert spread("psnr", [math.inf, 50.0], ["same", "other"]).mean == 75
    broken = spread("psnr", [1.0, math.nan], ["bad", "broken"])
    assert broken.worst_name == "broken"
    assert math.isnan(broken.mean)
