"""The sheet of pictures and the two measures of difference."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_cache_backends.compare import measures, sheet


def _pictures(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _cut(path: Path, row: int, column: int, scale: int) -> Image.Image:
    side = 64 * scale
    left, top = sheet.place(row, column, (side, side))
    return (
        Image.open(path).crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.NEAREST)
    )


@pytest.mark.parametrize("scale", [1, 3])
def test_every_picture_and_every_difference_is_in_its_place(tmp_path: Path, scale: int):
    dense, one, two = (_pictures(3, seed) for seed in range(3))
    prompts = ["a large red circle on a white background", "another " * 30, ""]
    path = sheet.make(
        prompts,
        [("dense", dense), ("one", one), ("two\nof two", two)],
        tmp_path / "a" / "sheet.png",
        scale=scale,
    )
    width, height = _read(path).size
    left, top = sheet.place(4, 2, (64 * scale, 64 * scale))
    assert (width, height) == (left + 64 * scale + 2 * sheet.GAP, top + 64 * scale + 2 * sheet.GAP)
    for column in range(3):
        expected = [
            dense[column],
            one[column],
            sheet.difference(dense[column], one[column]),
            two[column],
            sheet.difference(dense[column], two[column]),
        ]
        for row, picture in enumerate(expected):
            assert _cut(path, row, column, scale).tobytes() == picture.tobytes()


def test_without_a_reference_there_are_only_the_rows_given(tmp_path: Path):
    rows = [("one", _pictures(1, 1)), ("two", _pictures(1, 2))]
    path = sheet.make(["prompt"], rows, tmp_path / "sheet.png", reference_row=None)
    assert _read(path).height == sheet.CAPTION + 2 * (3 * 64 + sheet.GAP) + sheet.GAP
    assert _cut(path, 1, 0, 3).tobytes() == rows[1][1][0].tobytes()


def test_captions_and_labels_are_written_where_no_picture_is(tmp_path: Path):
    rows = [("a label", _pictures(1, 1))]
    path = sheet.make(["a caption"], rows, tmp_path / "sheet.png")
    drawn = np.asarray(_read(path).convert("L"))
    assert (drawn[: sheet.CAPTION, sheet.LABEL :] < 128).any()
    assert (drawn[sheet.CAPTION :, : sheet.LABEL] < 128).any()
    assert (drawn[: sheet.CAPTION, : sheet.LABEL] == 255).all()


def test_a_sheet_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path):
    path = tmp_path / "sheet.png"
    two = _pictures(2, 1)
    with pytest.raises(ValueError, match="at least one prompt"):
        sheet.make([], [("row", [])], path)
    with pytest.raises(ValueError, match="'row' has 1 pictures for 2 prompts"):
        sheet.make(["a", "b"], [("row", two[:1])], path)
    with pytest.raises(ValueError, match="pictures of one size"):
        sheet.make(["a", "b"], [("row", [two[0], Image.new("RGB", (32, 32))])], path)
    with pytest.raises(ValueError, match="reference_row 1"):
        sheet.make(["a", "b"], [("row", two)], path, reference_row=1)
    assert not path.exists()


def test_differences_are_black_where_pictures_agree_and_amplified_elsewhere():
    gray, brighter = Image.new("RGB", (8, 8), (100, 100, 100)), Image.new("RGB", (8, 8), (100, 103, 250))
    assert sheet.difference(gray, gray).getextrema() == ((0, 0),) * 3
    assert sheet.difference(gray, brighter, amplified=4).getpixel((0, 0)) == (0, 12, 255)
    assert sheet.difference(brighter, gray).tobytes() == sheet.difference(gray, brighter).tobytes()


def test_a_picture_equals_itself_and_more_noise_is_further_away():
    picture = _pictures(1, 3)[0]
    assert measures.psnr(picture, picture) == math.inf
    assert measures.ssim(picture, picture) == pytest.approx(1.0)
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(64, 64, 3))
    noisy = [
        Image.fromarray((np.asarray(picture) + s * noise).clip(0, 255).astype(np.uint8)) for s in (2, 8, 32)
    ]
    near = [(measures.psnr(picture, other), measures.ssim(picture, other)) for other in noisy]
    assert near == sorted(near, reverse=True)
    assert measures.psnr(noisy[0], picture) == measures.psnr(picture, noisy[0])


def test_a_known_difference_has_the_psnr_of_its_formula():
    gray, brighter = Image.new("RGB", (16, 16), (100, 100, 100)), Image.new("RGB", (16, 16), (110, 110, 110))
    assert measures.psnr(gray, brighter) == pytest.approx(10 * math.log10(255**2 / 100))


def test_means_count_equal_pictures_as_a_hundred_decibels():
    assert measures.mean([math.inf, 50.0]) == 75.0
    assert math.isnan(measures.mean([]))


@pytest.mark.parametrize("measure", [measures.psnr, measures.ssim])
def test_pictures_of_two_sizes_are_not_compared(measure):
    with pytest.raises(ValueError, match="one size"):
        measure(Image.new("RGB", (16, 16)), Image.new("RGB", (8, 8)))
