"""``dit-cache new-plugin``: a package with a cache backend in it that works, to be changed into one's own."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import entry_points
from pathlib import Path

import dit_cache_backends
from dit_cache_backends.errors import DitCacheError
from dit_cache_backends.registry import GROUP

__all__ = ["TEMPLATE", "new_plugin"]

TEMPLATE = Path(__file__).parent / "template"
"""A plugin called ``my_cache``; its names are replaced wherever they stand."""


def new_plugin(name: str, folder: Path) -> list[Path]:
    """Write a plugin called ``name`` into ``folder``.

    Args:
        name: Of the backend: lower case with underscores; ``-`` and upper case are forgiven.
        folder: Made where it does not exist; it has to be empty.

    Returns:
        The files, in the order of a reader.

    Raises:
        DitCacheError: The name is not one, or is an installed backend's; the folder is not empty.
    """
    name = name.strip().lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise DitCacheError(
            f"a backend's name is lower case with underscores, such as 'my_cache'; got {name!r}"
        )
    if _camel(name) in dir(dit_cache_backends):
        raise DitCacheError(
            f"the class {_camel(name)} would hide that of dit_cache_backends. Take another name."
        )
    for point in entry_points(group=GROUP, name=name):
        owner = point.dist.name if point.dist is not None else "another distribution"
        raise DitCacheError(f"a backend named {name!r} is installed, from {owner}. Take another name.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DitCacheError(f"{folder} exists and is not an empty folder. Name another one: --path FOLDER.")
    names = {
        "my_cache": name,
        "my-cache": name.replace("_", "-"),
        "MyCache": _camel(name),
        "MyGate": f"{_camel(name.removesuffix('_cache') or name)}Gate",
    }
    written = []
    for source in sorted(TEMPLATE.rglob("*"), key=lambda path: (len(path.parts), path)):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        target = folder / _replaced(str(source.relative_to(TEMPLATE)), names)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_replaced(source.read_text(encoding="utf-8"), names), encoding="utf-8")
        written.append(target)
    return written


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _replaced(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text
