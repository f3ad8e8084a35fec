"""Pictures as numbers: which kinds are read, and what becomes of transparency, grey and 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_cache_backends.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = np.ndarray[Any, np.dtype[Any]]
"""Height x width x 3, of ``uint8`` or ``uint16``."""

PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pillow's modes that are pictures of 8 bits a channel."""


def pixels_of(picture: Any, background: str | None = None, name: str = "the picture") -> Pixels:
    """The numbers of a picture.

    Grey becomes three equal channels. Opaque alpha is dropped. 16 bits stay 16. Numbers with a fraction are taken for
    0 to 1, as pipelines give them, and rounded to 8 bits, as they are when a pipeline makes a picture of them.

    Args:
        picture: a Pillow picture, or an array of height x width (x 1, 3 or 4 channels).
        background: the colour behind what is transparent.
        name: what to call it in an error.

    Raises:
        ConfigError: it is of a kind whose numbers mean something else, is not finite, or is transparent without a
            ``background``.
    """
    if hasattr(picture, "mode") and hasattr(picture, "convert"):
        return _of_pillow(picture, background, name)
    values = np.asarray(picture)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise ConfigError(
            f"{name}: expected a picture, or an array of height x width x 1, 3 or 4 channels; got "
            f"{type(picture).__name__} of shape {values.shape}"
        )
    if np.issubdtype(values.dtype, np.floating):
        values = _of_fractions(values, name)
    if values.dtype not in (np.uint8, np.uint16):
        raise ConfigError(f"{name}: expected numbers of 8 or 16 bits, or of 0 to 1; got {values.dtype}")
    if values.shape[2] == 4:
        if values.dtype != np.uint8:
            raise ConfigError(
                f"{name}: transparency with 16 bits a channel is not read; convert it to 8 bits"
            )
        from PIL import Image as Images

        return _of_pillow(Images.fromarray(values, "RGBA"), background, name)
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def read_picture(path: Path | str, background: str | None = None) -> Pixels:
    """The numbers of a file with one picture, turned as its EXIF data say.

    Raises:
        ConfigError: it cannot be read, or as :func:`pixels_of`.
    """
    from PIL import ImageOps

    with opened(path) as picture:
        refuse_lost_bits(picture, str(path))
        return pixels_of(ImageOps.exif_transpose(picture), background, str(path))


def opened(path: Path | str) -> Image:
    """A picture's file, open but not yet decoded.

    Raises:
        ConfigError: it cannot be read as a picture.
    """
    from PIL import Image as Images

    try:
        return Images.open(path)
    except OSError as error:  # also UnidentifiedImageError
        raise ConfigError(f"{path} cannot be read as a picture: {error}") from error


def refuse_lost_bits(picture: Image, name: str) -> None:
    """Refuse an open file of which Pillow decodes the upper 8 of 16 bits only.

    Raises:
        ConfigError: it is one.
    """
    if picture.mode in PLAIN and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())):
        raise ConfigError(
            f"{name} is a colour picture of 16 bits a channel, of which Pillow reads 8. Convert it to 8 bits yourself, "
            "so that you know what is compared; grey ones of 16 bits are read as they are."
        )


def same_size(reference: Pixels, picture: Pixels, names: tuple[str, str] = ("one", "the other")) -> None:
    """Refuse two pictures of different sizes.

    Raises:
        ConfigError: naming both with their width and height.
    """
    if reference.shape[:2] != picture.shape[:2]:
        sizes = (
            f"{name} is {each.shape[1]}x{each.shape[0]}"
            for name, each in zip(names, (reference, picture), strict=True)
        )
        raise ConfigError(f"pictures of one size are needed: {', '.join(sizes)} (width x height)")


def eight_bit(pixels: Pixels) -> Pixels:
    """The same in 8 bits, to be looked at or for measures that take no more; rounded, not cut off."""
    return pixels if pixels.dtype == np.uint8 else np.round(pixels / 257).astype(np.uint8)


def scaled(pixels: Pixels) -> Pixels:
    """The same as float64 between 0 and 255, whatever its bits."""
    return pixels.astype(np.float64) / (257.0 if pixels.dtype == np.uint16 else 1.0)


def _of_pillow(picture: Image, background: str | None, name: str) -> Pixels:
    from PIL import Image as Images

    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint16)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode not in PLAIN:
        raise ConfigError(
            f"{name} is of Pillow's mode {picture.mode}, whose numbers have no range to compare by. Expected grey or "
            "RGB, with or without transparency; convert it."
        )
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("RGB"))
    clear = picture.convert("RGBA")
    if np.asarray(clear)[..., 3].min() == 255:
        return np.asarray(clear.convert("RGB"))
    if background is None:
        raise ConfigError(
            f"{name} is transparent in part, and what stands behind it is not known. Say it: --background white, black "
            "or #rrggbb."
        )
    behind = Images.new("RGBA", clear.size, _colour(background))
    return np.asarray(Images.alpha_composite(behind, clear).convert("RGB"))


def _colour(text: str) -> tuple[int, ...]:
    from PIL import ImageColor

    try:
        return ImageColor.getcolor(text, "RGB")  # type: ignore[return-value]
    except ValueError as error:
        raise ConfigError(
            f"--background is a colour such as white, black or #80a0ff, got {text!r}"
        ) from error


def _of_fractions(values: Pixels, name: str) -> Pixels:
    if not np.isfinite(values).all():
        raise ConfigError(f"{name} has numbers that are not finite; the run that made it went wrong")
    if values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise ConfigError(
            f"{name} has numbers from {values.min():g} to {values.max():g}; those of a pipeline lie between 0 and 1"
        )
    return np.round(values.clip(0, 1) * 255).astype(np.uint8)
