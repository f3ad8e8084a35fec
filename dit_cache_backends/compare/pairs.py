"""Which files are compared with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_cache_backends.compare.video import PICTURES, VIDEOS, extent_of
from dit_cache_backends.errors import ConfigError

SHOWN = 10
"""Names in one message at most."""


@dataclass(frozen=True)
class Pair:
    """Two files, the first of which is the reference."""

    name: str
    reference: Path
    other: Path


def pairs_of(reference: Path | str, other: Path | str, only_common: bool = False) -> list[Pair]:
    """The pairs of two files, or of two folders by their files' names.

    In folders (and those below them) a picture or video is paired with that of the same path and name, whatever its
    suffix; other files are left out.

    Args:
        reference: what is compared with.
        other: the other file or folder.
        only_common: leave out what has no partner, instead of refusing it.

    Raises:
        ConfigError: one does not exist, a file lacks its partner, or the partners differ in size or frames; all such
            pairs are named.
    """
    reference, other = Path(reference).expanduser(), Path(other).expanduser()
    for path in (reference, other):
        if not path.exists():
            raise ConfigError(f"there is no {path}")
    if reference.is_dir() != other.is_dir():
        file, folder = sorted((reference, other), key=Path.is_dir)
        raise ConfigError(f"{folder} is a folder and {file} is not; give two files or two folders")
    pairs = (
        _of_folders(reference, other, only_common)
        if reference.is_dir()
        else [Pair(other.name, reference, other)]
    )
    _same_extent(pairs)
    return pairs


def _of_folders(reference: Path, other: Path, only_common: bool) -> list[Pair]:
    ours, theirs = _named(reference), _named(other)
    common = [name for name in ours if name in theirs]
    alone = {
        reference: [name for name in ours if name not in theirs],
        other: [name for name in theirs if name not in ours],
    }
    if not common:
        raise ConfigError(
            f"{reference} ({len(ours)} pictures and videos) and {other} ({len(theirs)}) have no name in common"
        )
    if any(alone.values()) and not only_common:
        missing = "; ".join(f"only in {folder}: {_few(names)}" for folder, names in alone.items() if names)
        raise ConfigError(
            f"some have no partner: {missing}. --only-common compares the {len(common)} that have one."
        )
    return [Pair(name, ours[name], theirs[name]) for name in common]


def _named(folder: Path) -> Mapping[str, Path]:
    """The pictures and videos below a folder by their path in it without the suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inner.parts)
        if hidden or path.suffix.lower() not in (*PICTURES, *VIDEOS) or not path.is_file():
            continue
        name = inner.with_suffix("").as_posix()
        if name in found:
            raise ConfigError(
                f"{found[name]} and {path} differ by their suffix only, so which is meant is not known"
            )
        found[name] = path
    return found


def _same_extent(pairs: Sequence[Pair]) -> None:
    problems = []
    for pair in pairs:
        a, b = extent_of(pair.reference), extent_of(pair.other)
        if (a.width, a.height) != (b.width, b.height):
            problems.append(
                f"{pair.reference} is {a.width}x{a.height} and {pair.other} is {b.width}x{b.height} (width x height)"
            )
        elif None not in (a.frames, b.frames) and a.frames != b.frames:
            problems.append(f"{pair.reference} has {a.frames} frames and {pair.other} has {b.frames}")
    if problems:
        raise ConfigError(f"these cannot be compared: {_few(problems, '; ')}", problems)


def _few(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more
