"""Text and files of a configuration as mappings, with the line on which each key stands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dit_cache_backends.errors import ConfigError

if TYPE_CHECKING:
    import yaml

__all__ = ["Reading", "read"]

SOURCES = "a mapping, JSON text such as '{\"key\": 1}', '@FILE', or the path of a .json, .yaml or .yml file"

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a source holds, and where it stands."""

    content: object
    where: str = "the configuration"
    """What to call the source in a message."""
    file: Path | None = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    """The line of each key of a file, by the keys that lead to it; empty where it cannot be told."""

    def origin(self, path: KeyPath, otherwise: str = "") -> str:
        """Where the key at ``path`` stands: the file and its line; ``otherwise`` if there is no file."""
        if self.file is None:
            return otherwise
        line = self.lines.get(path)
        return f"file {self.file}" + (f" line {line}" if line else "")


def read(source: object) -> Reading:
    """Read a source: a mapping, a dataclass instance, JSON text, ``@file``, or the path of a file.

    Raises:
        ConfigError: It is none of these, cannot be read, or gives one key twice.
    """
    if source is None or isinstance(source, Mapping):
        return Reading(source)
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        names = [each.name for each in dataclasses.fields(source) if each.init]
        return Reading({name: getattr(source, name) for name in names}, type(source).__name__)
    if isinstance(source, Path):
        return _read_file(source)
    if not isinstance(source, str):
        raise ConfigError(f"a configuration is {SOURCES}; got {type(source).__name__}")
    text = source.strip()
    if not text:
        return Reading(None)
    if text.startswith("@"):
        return _read_file(Path(text[1:]))
    if text.startswith("{"):
        return Reading(_parse_json(text, "the configuration"))
    if Path(text).suffix.lower() in (".json", ".yaml", ".yml"):
        return _read_file(Path(text))
    raise ConfigError(f"a configuration is {SOURCES}; got {text[:80]!r}")


def _read_file(path: Path) -> Reading:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    parse = _parse_json if path.suffix.lower() == ".json" else _parse_yaml
    return Reading(parse(text, str(path)), str(path), path, _lines(text))


def _parse_json(text: str, where: str) -> object:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{where}: {key!r} is given twice")
            seen[key] = value
        return seen

    try:
        return cast(object, json.loads(text, object_pairs_hook=once))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error


def _parse_yaml(text: str, where: str) -> object:
    import yaml

    class Once(yaml.SafeLoader):
        """Refuses what YAML's own loader does silently: keep the last of several equal keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1 and key != "<<":
                    raise ConfigError(f"{where}: {key!r} is given twice")
            return super().construct_mapping(node, deep)

    try:
        return cast(object, yaml.load(text, Loader=Once))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error


def _lines(text: str) -> dict[KeyPath, int]:
    """The line of each key, from 1. JSON is YAML for this purpose, but where it is not, there are no lines."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return {}
    found: dict[KeyPath, int] = {}
    waiting: list[tuple[KeyPath, yaml.Node | None]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if (
            isinstance(node, yaml.MappingNode) and len(path) < 4
        ):  # no deeper option exists; aliases may be cyclic
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    deeper = (*path, str(key.value))
                    found[deeper] = key.start_mark.line + 1
                    waiting.append((deeper, value))
    return found
