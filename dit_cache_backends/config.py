"""From what a user gives (a mapping, JSON text, a file, a dataclass) to a backend's own configuration.

A backend declares its options in a frozen dataclass::

    @dataclass(frozen=True)
    class Config:
        residual_diff_threshold: float = option(0.24, help="Skip below this difference.", minimum=0)

and :func:`make_config` fills it. Nothing is dropped and nothing is guessed: an unknown key, a wrong type or a
value out of range is an error, and all of a configuration's errors are reported at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dit_cache_backends.configuration.dialects import meant_for, without_nulls
from dit_cache_backends.configuration.parsing import BACKEND_KEY, Parsed, parse_config, same_name
from dit_cache_backends.errors import ConfigError, ConfigWarning, near
from dit_cache_backends.options import Misfit, OptionInfo, check, describe, option, rules_of

__all__ = [
    "OptionInfo",
    "check_options",
    "describe",
    "load_config",
    "make_config",
    "named_backend",
    "option",
]

T = TypeVar("T")


def load_config(source: object) -> dict[str, Any]:
    """Read the options out of a source, without knowing which backend they are for.

    Args:
        source: ``None`` (no options), a mapping, JSON text, ``@file``, the path of a ``.json``, ``.yaml`` or
            ``.yml`` file, or a dataclass instance. A mapping, also one in a file, holds the options or
            has them under ``cache_config``; it may name its backend under ``cache_backend``.

    Raises:
        ConfigError: The source is none of these, is not readable, gives one key twice, or has sections that are not
            for the cache (``parallelism_config``, ...), which here nobody would see.
    """
    return _options_alone(parse_config(source)).options


def named_backend(source: object) -> str | None:
    """The backend that a source names, under ``cache_backend`` or by cache-dit's ``cache_type``, if it names one.

    Raises:
        ConfigError: As :func:`parse_config`.
    """
    return parse_config(source).backend


def make_config(config_class: type[T], source: object, backend_name: str) -> T:
    """Make a backend's configuration from whatever :func:`load_config` reads, and check it.

    Args:
        config_class: The backend's dataclass, its fields declared by :func:`option`.
        source: See :func:`load_config`; an instance of ``config_class`` is checked and copied.
        backend_name: For the messages, and compared with a ``cache_backend`` in the source.

    Raises:
        ConfigError: With every problem that was found, in ``problems`` one by one.
    """
    parsed = _options_alone(parse_config(source))
    if parsed.backend is not None and not same_name(parsed.backend, backend_name):
        raise ConfigError(
            f"{backend_name}: this configuration says {BACKEND_KEY}: {parsed.backend}. Ask for that backend, or"
            f" take {BACKEND_KEY} out of the configuration."
        )
    values, problems = check_options(config_class, parsed.options)
    refuse(backend_name, [text for _, text in problems], known=list(rules_of(config_class)))
    try:
        return config_class(**values)
    except ConfigError as error:
        # What spans several options is the dataclass's own to check; it need not know the backend's name.
        refuse(backend_name, error.problems)
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


def check_options(
    config_class: type, given: Mapping[str, Any], *, whole: bool = True
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The options that fit, under their own names and as they are held; and each problem, with its key.

    Args:
        config_class: The dataclass that declares the options.
        given: Options by name or alias.
        whole: Whether these are all the options there will be, so that a required one that is missing is a problem.
    """
    rules = rules_of(config_class)
    aliases = {alias: name for name, (_, rule) in rules.items() for alias in rule.aliases}
    values: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    given_as: dict[str, str] = {}
    for key, value in without_nulls(config_class, given).items():
        name = aliases.get(key, key)
        if name not in rules:
            problems.append((key, f"unknown option {key!r}{_elsewhere(key, [*rules, *aliases])}"))
            continue
        if name in given_as:
            problems.append((key, f"{given_as[name]!r} and {key!r} are the same option; give one of them"))
            continue
        given_as[name] = key
        annotation, rule = rules[name]
        try:
            values[name] = check(value, annotation, rule)
        except Misfit as misfit:
            problems.append((key, f"{key}: {misfit}"))
    problems.extend(
        (info.name, f"{info.name} has to be given ({info.help or info.type})")
        for info in describe(config_class)
        if whole and info.required and info.name not in given_as
    )
    return values, problems


def refuse(backend_name: str, problems: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise one error for all problems; nothing happens if there are none.

    Raises:
        ConfigError: with ``known``, the options there are, where one was not.
    """
    problems = list(problems)
    if not problems:
        return
    if len(problems) == 1:
        message = f"{backend_name}: {problems[0]}"
    else:
        message = f"{backend_name}: {len(problems)} problems in its configuration:\n  - " + "\n  - ".join(
            problems
        )
    if any("unknown option" in problem for problem in problems):
        separator = " " if len(problems) == 1 else "\n"
        message += f"{separator}Options of {backend_name}: {', '.join(known) or 'it has none'}."
    raise ConfigError(message, problems)


def _elsewhere(key: str, known: Iterable[str]) -> str:
    """What to say behind an unknown key: whose it is, else which one is near."""
    owner = meant_for(key)
    return f": {key}{owner}." if owner else f".{near(key, known)}"


def _options_alone(parsed: Parsed) -> Parsed:
    if parsed.sections:
        parsed.problems.append(
            f"{' and '.join(parsed.sections)} {'is' if len(parsed.sections) == 1 else 'are'} not for the cache alone. "
            "Give the file to Omni(..., cache_config=FILE) or `dit-cache generate --cache-config FILE`, which know "
            "what to do with it, or take it out here."
        )
    if parsed.problems:
        raise ConfigError("; ".join(parsed.problems), parsed.problems)
    for warning in parsed.warnings:
        warnings.warn(warning, ConfigWarning, stacklevel=4)
    return parsed
