"""The frames of a video, from a file or as a pipeline gave them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_cache_backends.compare.pixels import Pixels, opened, pixels_of, refuse_lost_bits
from dit_cache_backends.errors import ConfigError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
PICTURES = (
    ".png",
    ".apng",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".avif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
"""Those that Pillow reads; several of them may hold several frames."""


@dataclass(frozen=True)
class Extent:
    """What is known of a file before it is decoded."""

    width: int
    height: int
    frames: int | None
    """None: only decoding tells."""


def extent_of(path: Path) -> Extent:
    """Size and number of frames.

    Raises:
        ConfigError: it cannot be read.
    """
    if path.suffix.lower() in VIDEOS:
        first = next(_decoded(path), None)
        if first is None:
            raise ConfigError(f"{path} has no frames")
        return Extent(first.shape[1], first.shape[0], None)
    from PIL import ExifTags

    with opened(path) as picture:
        width, height = picture.size
        if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # lies on its side
            width, height = height, width
        return Extent(width, height, getattr(picture, "n_frames", 1))


def frames_of(path: Path, background: str | None = None) -> Iterator[Pixels]:
    """The frames of a file with several, one after the other.

    Raises:
        ConfigError: it cannot be read, or what reads it is not installed.
    """
    if path.suffix.lower() in VIDEOS:
        yield from _decoded(path)
        return
    with opened(path) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            refuse_lost_bits(picture, str(path))
            yield pixels_of(picture, background, f"{path}, frame {number}")


def frames_in(drawn: Any) -> list[Any]:
    """The frames of one thing that a pipeline drew: a picture has one."""
    if hasattr(drawn, "convert"):
        return [drawn]
    if isinstance(drawn, (list, tuple)):
        return list(drawn)
    return list(drawn) if getattr(drawn, "ndim", 3) == 4 else [drawn]


def _decoded(path: Path) -> Iterator[Pixels]:
    """By imageio, which scikit-image brings, with PyAV or ffmpeg below it: what is installed of them."""
    plugin = next(
        (p for p, module in (("pyav", "av"), ("FFMPEG", "imageio_ffmpeg")) if _installed(module)), None
    )
    if plugin is None:
        raise ConfigError(
            f"{path}: nothing that reads {path.suffix} files is installed. pip install av (or imageio-ffmpeg); "
            "animated GIF, PNG and WebP are read without."
        )
    import imageio.v3 as imageio

    try:
        for frame in imageio.imiter(path, plugin=plugin):
            yield pixels_of(frame, None, str(path))
    except (OSError, ValueError) as error:  # PyAV's errors are one or the other
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as a video: {error}") from error


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
