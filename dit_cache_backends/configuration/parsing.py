"""From a source to what it says: the backend it names, its options, and its sections for others than the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_cache_backends.configuration.dialects import translate
from dit_cache_backends.configuration.reading import Reading, read
from dit_cache_backends.errors import ConfigError, near

__all__ = ["SECTIONS", "Parsed", "parse_config", "same_name"]

SECTIONS = ("parallelism_config", "quantize_config", "attention_backend", "compile")
"""What may stand in a file beside the cache's options: it is for whoever runs the whole pipeline."""

BACKEND_KEY, OPTIONS_KEY = "cache_backend", "cache_config"
_BESIDE = "calibrator_config"


@dataclass
class Parsed:
    """What a source says, before it is known for which backend."""

    backend: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    """Those of ``SECTIONS`` that are given and not null."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where each option and section stands, if in a file; inner ones as ``secondary.NAME``, ``SECTION.KEY``."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    where: str = "the configuration"
    """What to call the source in a message."""


def parse_config(source: object) -> Parsed:
    """Read a source, also one with sections for others than the cache, as cache-dit's and SGLang's files have.

    Args:
        source: see :func:`load_config`.

    Raises:
        ConfigError: The source is not readable, or no mapping. What is wrong within it is in ``problems``.
    """
    return _parse(read(source))


def same_name(one: str, other: str) -> bool:
    """Whether two spellings name one backend: case and ``-`` are forgiven."""
    return _forgiven(one) == _forgiven(other)


def _parse(reading: Reading) -> Parsed:
    content, where = reading.content, reading.where
    if content is None:
        return Parsed()
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a mapping from options to values, got {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the name of an option is text, got {key!r}")
    result = Parsed(where=where)
    named = content.get(BACKEND_KEY)
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"{where}: {BACKEND_KEY} is the name of a backend, got {named!r}")
    result.sections = {name: content[name] for name in SECTIONS if content.get(name) is not None}
    for name, value in {BACKEND_KEY: named, **result.sections}.items():
        _note_origins(result.origins, reading, name, (name,), value)
    rest = {key: value for key, value in content.items() if key not in (BACKEND_KEY, *SECTIONS)}
    path: tuple[str, ...] = ()
    if OPTIONS_KEY in rest:
        rest, path = _under_key(rest, reading, result)
    translated = translate(rest, path)
    result.problems += [f"{where}: {problem}" for problem in translated.problems]
    result.warnings += [f"{where}: {warning}" for warning in translated.warnings]
    _name(result, where, named, translated.backend)
    for name, value in translated.options.items():
        result.options[name] = value
        if name in translated.paths:
            _note_origins(result.origins, reading, name, translated.paths[name], value)
    return result


def _under_key(
    rest: dict[str, Any], reading: Reading, result: Parsed
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options under ``cache_config``; beside it nothing else may stand but cache-dit's calibrator."""
    options = rest.pop(OPTIONS_KEY)
    beside = {_BESIDE: rest.pop(_BESIDE)} if _BESIDE in rest else {}
    if rest:
        known = (BACKEND_KEY, OPTIONS_KEY, _BESIDE, *SECTIONS)
        hints = "".join(near(key, known) for key in rest)
        result.problems.append(
            f"{reading.where}: beside {OPTIONS_KEY} only {', '.join(each for each in known if each != OPTIONS_KEY)} "
            f"may stand, got {', '.join(rest)}.{hints} Options belong under {OPTIONS_KEY}; what is for another "
            "program, in a file of its own."
        )
    if options is not None and not isinstance(options, (Mapping, str, Path)):
        raise ConfigError(
            f"{reading.where}: {OPTIONS_KEY} holds a mapping from options to values, got {type(options).__name__}"
        )
    if isinstance(options, Mapping) and not any(
        key in options for key in (BACKEND_KEY, OPTIONS_KEY, *SECTIONS)
    ):
        for key in options:
            if not isinstance(key, str):
                raise ConfigError(f"{reading.where}: the name of an option is text, got {key!r}")
        return {**options, **beside}, (OPTIONS_KEY,)
    inner = _parse(read(options))
    result.backend = inner.backend
    result.options, result.origins = inner.options, {**inner.origins, **result.origins}
    result.sections = {**inner.sections, **result.sections}
    result.problems += inner.problems
    result.warnings += inner.warnings
    return beside, ()


def _name(result: Parsed, where: str, *names: str | None) -> None:
    """Settle which backend is meant: those that are named have to agree."""
    said = [name for name in (result.backend, *names) if name is not None]
    if any(not same_name(name, said[0]) for name in said):
        result.problems.append(f"{where}: it is for {' and for '.join(said)} at once; name one backend")
    result.backend = said[-1] if said else None
    if names[0] is not None:
        result.backend = names[0]


def _note_origins(
    origins: dict[str, str], reading: Reading, name: str, path: tuple[str, ...], value: object
) -> None:
    origin = reading.origin(path)
    if not origin:
        return
    origins[name] = origin
    if name.partition(".")[0] in ("secondary", "overrides", *SECTIONS) and isinstance(value, Mapping):
        for inner, deeper in value.items():
            _note_origins(origins, reading, f"{name}.{inner}", (*path, str(inner)), deeper)


def _forgiven(name: str) -> str:
    return name.strip().lower().replace("-", "_")
