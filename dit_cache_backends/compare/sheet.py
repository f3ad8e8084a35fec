"""One PNG to look at: prompts across, settings down, and below each setting what it changed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

SCALE = 3  # a pixel of the picture becomes so many on the sheet
SIDE = 320  # a large picture is shrunk to this
GAP = 8
LABEL = 168  # width of the column of labels
CAPTION = 62  # height of the captions' row
DIFFERENCE = 4  # how much differences are amplified
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def make(
    prompts: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Image]]],
    path: Path | str,
    reference_row: int | None = 0,
    scale: float = SCALE,
) -> Path:
    """Writes a PNG with a column per prompt and a row per (label, pictures), and gives back its path.

    Below every row but `reference_row` comes the difference from that row, `DIFFERENCE` times amplified (None: no
    differences). A label may have several lines. All pictures have one size; ValueError if they do not, if a row
    has not as many pictures as there are prompts, or if `reference_row` is not a row.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    if not prompts or not rows:
        raise ValueError("a sheet needs at least one prompt and one row")
    sizes = {picture.size for _, pictures in rows for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"pictures of one size are needed, these have {sorted(sizes)}")
    for label, pictures in rows:
        if len(pictures) != len(prompts):
            raise ValueError(f"row {label!r} has {len(pictures)} pictures for {len(prompts)} prompts")
    if reference_row is not None and not 0 <= reference_row < len(rows):
        raise ValueError(f"reference_row {reference_row} is not one of {len(rows)} rows")
    lines = _lines(rows, reference_row)
    width, height = (max(1, round(scale * side)) for side in next(iter(sizes)))
    whole = (LABEL + len(prompts) * (width + GAP) + GAP, CAPTION + len(lines) * (height + GAP) + GAP)
    sheet = Images.new("RGB", whole, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        text = textwrap.fill(prompt, max(8, int(width / 6.6)), max_lines=4, placeholder=" ...")
        pen.text((place(0, column, (width, height))[0], GAP), text, fill=INK, font=_font(12), spacing=2)
    for row, (label, pictures, is_difference) in enumerate(lines):
        text = "\n".join(textwrap.fill(line, 23) for line in label.splitlines())
        corner = (GAP, place(row, 0, (width, height))[1])
        pen.text(corner, text, fill=FAINT if is_difference else INK, font=_font(13), spacing=3)
        for column, picture in enumerate(pictures):
            # Enlarged pixels stay what they are; only shrinking mixes them.
            how = Images.Resampling.NEAREST if scale >= 1 else Images.Resampling.LANCZOS
            sheet.paste(
                picture.convert("RGB").resize((width, height), how), place(row, column, (width, height))
            )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)
    return path


def place(row: int, column: int, size: tuple[int, int]) -> tuple[int, int]:
    """The upper left corner on the sheet of a picture of scaled `size`; rows count the difference rows, too."""
    return LABEL + column * (size[0] + GAP), CAPTION + row * (size[1] + GAP)


def scale_for(size: tuple[int, int]) -> float:
    """How much pictures of that size are enlarged, or shrunk, to be about as large as ``SIDE`` on a sheet."""
    side = max(size)
    return float(max(1, min(SCALE, SIDE // side))) if side <= SIDE else SIDE / side


def of_one_size(pictures: Sequence[Image]) -> list[Image]:
    """Pictures of several sizes on paper of the largest width and height."""
    from PIL import Image as Images

    whole = max(each.width for each in pictures), max(each.height for each in pictures)
    made = []
    for each in pictures:
        paper = Images.new("RGB", whole, PAPER)
        paper.paste(each.convert("RGB"), (0, 0))
        made.append(paper)
    return made


def difference(reference: Image, picture: Image, amplified: float = DIFFERENCE) -> Image:
    """The absolute difference of two RGB pictures of one size, amplified: black where they agree."""
    from PIL import ImageChops

    found = ImageChops.difference(reference.convert("RGB"), picture.convert("RGB"))
    return found.point([min(255, round(value * amplified)) for value in range(256)] * 3)


def _lines(
    rows: Sequence[tuple[str, Sequence[Image]]], reference_row: int | None
) -> list[tuple[str, list[Image], bool]]:
    """All rows of pictures, with the rows of differences among them (marked True)."""
    lines: list[tuple[str, list[Image], bool]] = []
    for number, (label, pictures) in enumerate(rows):
        lines.append((label, list(pictures), False))
        if reference_row is not None and number != reference_row:
            against, first = rows[reference_row]
            name = f"difference from {against.splitlines()[0]}, {DIFFERENCE} times"
            lines.append((name, [difference(a, b) for a, b in zip(first, pictures, strict=True)], True))
    return lines


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
