"""From what a user gives (a mapping, JSON text, a file, a dataclass) to a backend's own configuration.

A backend declares its options in a frozen dataclass::

    @dataclass(frozen=True)
    class Config:
        residual_diff_threshold: float = option(0.24, help="Skip below this difference.", minimum=0)

and :func:`make_config` fills it. Nothing is dropped and nothing is guessed: an unknown key, a wrong type or a
value out of range is an error, and all of a configuration's errors are reported at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.options import Misfit, OptionInfo, check, describe, option, rules_of

__all__ = ["OptionInfo", "describe", "load_config", "make_config", "named_backend", "option"]

T = TypeVar("T")

_BACKEND_KEY, _OPTIONS_KEY = "cache_backend", "cache_config"
_SOURCES = "a mapping, JSON text such as '{\"key\": 1}', '@FILE', or the path of a .json, .yaml or .yml file"


def load_config(source: object) -> dict[str, Any]:
    """Read the options out of a source, without knowing which backend they are for.

    Args:
        source: ``None`` (no options), a mapping, JSON text, ``@file``, the path of a ``.json``, ``.yaml`` or
            ``.yml`` file, or a dataclass instance. A mapping, also one in a file, holds the options or
            has them under ``cache_config``; it may name its backend under ``cache_backend``.

    Raises:
        ConfigError: The source is none of these, is not readable, or gives one key twice.
    """
    return _split(source)[1]


def named_backend(source: object) -> str | None:
    """The backend that a source names under ``cache_backend``, if it names one.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    return _split(source)[0]


def make_config(config_class: type[T], source: object, backend_name: str) -> T:
    """Make a backend's configuration from whatever :func:`load_config` reads, and check it.

    Args:
        config_class: The backend's dataclass, its fields declared by :func:`option`.
        source: See :func:`load_config`; an instance of ``config_class`` is checked and copied.
        backend_name: For the messages, and compared with a ``cache_backend`` in the source.

    Raises:
        ConfigError: With every problem that was found, in ``problems`` one by one.
    """
    named, options = _split(source)
    if named is not None and _forgiven(named) != _forgiven(backend_name):
        raise ConfigError(
            f"{backend_name}: this configuration says {_BACKEND_KEY}: {named}. Ask for that backend, or"
            f" take {_BACKEND_KEY} out of the configuration."
        )
    values, problems = _check_all(config_class, options)
    _refuse(backend_name, problems, known=list(rules_of(config_class)))
    try:
        return config_class(**values)
    except ConfigError as error:
        # What spans several options is the dataclass's own to check; it need not know the backend's name.
        _refuse(backend_name, error.problems)
        raise


def layered(config_class: type, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of options from several, the later over the earlier; aliases are written as what they stand for.

    A later option also takes the place of those of its group: a mask given as a list that of a preset's policy.
    """
    rules = rules_of(config_class)
    aliases = {alias: name for name, (_, rule) in rules.items() for alias in rule.aliases}
    result: dict[str, Any] = {}
    for layer in layers:
        named = {aliases.get(key, key): value for key, value in layer.items()}
        groups = {rules[name][1].group for name in named if name in rules} - {""}
        result = {
            name: value
            for name, value in result.items()
            if name not in rules or rules[name][1].group not in groups
        }
        result |= named
    return result


def same_option(one: type, other: type, name: str) -> bool:
    """Whether two configurations share the option ``name``: of the same type and meaning (its group and choices)."""
    rules, others = rules_of(one), rules_of(other)
    return name in rules and name in others and rules[name] == others[name]


def _check_all(config_class: type, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    rules = rules_of(config_class)
    aliases = {alias: name for name, (_, rule) in rules.items() for alias in rule.aliases}
    values: dict[str, Any] = {}
    problems: list[str] = []
    given_as: dict[str, str] = {}
    for key, value in given.items():
        name = aliases.get(key, key)
        if name not in rules:
            problems.append(f"unknown option {key!r}.{near(str(key), [*rules, *aliases])}")
            continue
        if name in given_as:
            problems.append(f"{given_as[name]!r} and {key!r} are the same option; give one of them")
            continue
        given_as[name] = key
        annotation, rule = rules[name]
        try:
            values[name] = check(value, annotation, rule)
        except Misfit as misfit:
            problems.append(f"{key}: {misfit}")
    problems.extend(
        f"{info.name} has to be given ({info.help or info.type})"
        for info in describe(config_class)
        if info.required and info.name not in given_as
    )
    return values, problems


def _refuse(backend_name: str, problems: Iterable[str], known: Iterable[str] = ()) -> None:
    problems = list(problems)
    if not problems:
        return
    if len(problems) == 1:
        message = f"{backend_name}: {problems[0]}"
    else:
        message = f"{backend_name}: {len(problems)} problems in its configuration:\n  - " + "\n  - ".join(
            problems
        )
    if any(problem.startswith("unknown option") for problem in problems):
        separator = " " if len(problems) == 1 else "\n"
        message += f"{separator}Options of {backend_name}: {', '.join(known) or 'it has none'}."
    raise ConfigError(message, problems)


def _split(source: object) -> tuple[str | None, dict[str, Any]]:
    """The name of the backend, if given, and its options."""
    content, where = _read(source)
    if content is None:
        return None, {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a mapping from options to values, got {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the name of an option is text, got {key!r}")
    named = content.get(_BACKEND_KEY)
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"{where}: {_BACKEND_KEY} is the name of a backend, got {named!r}")
    rest = {key: value for key, value in content.items() if key != _BACKEND_KEY}
    if _OPTIONS_KEY not in rest:
        return named, rest
    options = rest.pop(_OPTIONS_KEY)
    if rest:
        raise ConfigError(
            f"{where}: beside {_OPTIONS_KEY} only {_BACKEND_KEY} may stand, got {', '.join(rest)}."
            f" Options belong under {_OPTIONS_KEY}; what is for another program, in a file of its own."
        )
    if options is not None and not isinstance(options, (Mapping, str)):
        raise ConfigError(
            f"{where}: {_OPTIONS_KEY} holds a mapping from options to values, got {type(options).__name__}"
        )
    inner, found = _split(options)
    return named or inner, found


def _read(source: object) -> tuple[object, str]:
    """The content of a source and what to call it in a message."""
    if source is None or isinstance(source, Mapping):
        return source, "the configuration"
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        names = [each.name for each in dataclasses.fields(source) if each.init]
        return {name: getattr(source, name) for name in names}, type(source).__name__
    if isinstance(source, Path):
        return _read_file(source)
    if not isinstance(source, str):
        raise ConfigError(f"a configuration is {_SOURCES}; got {type(source).__name__}")
    text = source.strip()
    if not text:
        return None, "the configuration"
    if text.startswith("@"):
        return _read_file(Path(text[1:]))
    if text.startswith("{"):
        return _parse_json(text, "the configuration"), "the configuration"
    if Path(text).suffix.lower() in (".json", ".yaml", ".yml"):
        return _read_file(Path(text))
    raise ConfigError(f"a configuration is {_SOURCES}; got {text[:80]!r}")


def _read_file(path: Path) -> tuple[object, str]:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    if path.suffix.lower() == ".json":
        return _parse_json(text, str(path)), str(path)
    return _parse_yaml(text, str(path)), str(path)


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


def _forgiven(name: str) -> str:
    return name.strip().lower().replace("-", "_")
