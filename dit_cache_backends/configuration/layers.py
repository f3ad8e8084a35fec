"""One source over another: options and sections of several, merged, with where each value came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_cache_backends.config import check_options, refuse
from dit_cache_backends.configuration.environment import read_options
from dit_cache_backends.configuration.parsing import same_name
from dit_cache_backends.configuration.sections import SECTION_OPTIONS, check_section
from dit_cache_backends.configuration.sglang import merged as merged_options
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.options import rules_of
from dit_cache_backends.parts import SECOND

if TYPE_CHECKING:
    from dit_cache_backends.backend import CacheBackend

__all__ = ["Layer", "Merged", "Value", "merge", "merge_sections", "nested"]


@dataclass(frozen=True)
class Value:
    """One value and where it came from."""

    section: str
    """``cache`` for an option of the backend, else the section of the file; empty for the backend itself."""
    name: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Layer:
    """The options that one source gives."""

    options: Mapping[str, Any]
    who: str
    """The origin of what has none in ``origins``."""
    origins: Mapping[str, str] = field(default_factory=dict)
    backend: str | None = None
    """The backend that they are for; None: for the one that is chosen."""
    texts: bool = False
    """They are the texts of variables ``DIT_CACHE_OPTION``, by the variable."""
    needs_backend: bool = True
    """Giving them without any backend is a mistake."""

    def counts_for(self, backend: str) -> bool:
        """Whether its options are for that backend."""
        return self.backend is None or same_name(self.backend, backend)

    def values(self) -> list[Value]:
        """The options as they were given, for a list of what does not count."""
        if self.texts:
            return [Value("cache", name, text, "environment") for name, text in self.options.items()]
        return [
            Value("cache", name, value, self.origins.get(name, self.who))
            for name, value in nested(self.options)
        ]


@dataclass
class Merged:
    """Options of several layers, and where each came from."""

    options: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def merge(
    cls: type[CacheBackend], backend: str, layers: Sequence[Layer], problems: Iterable[str] = ()
) -> Merged:
    """Check the options of each layer, and put the later over the earlier.

    Options of one group replace each other, and what a later layer says of the first transformer is also said of the
    second, as in SGLang.

    Raises:
        ConfigError: with ``problems``, and everything that is wrong in any layer or in what they make together.
    """
    problems = list(problems)
    checked: list[tuple[dict[str, Any], dict[str, str]]] = []
    for layer in layers:
        options, origins = dict(layer.options), dict(layer.origins)
        if layer.texts:
            options, variables, found = read_options(layer.options, cls.Config, backend)
            origins = {name: f"environment {variable}" for name, variable in variables.items()}
            problems += found
        values, wrong = check_options(cls.Config, options, whole=False)
        problems += [_at(origins.get(key, layer.who), text) for key, text in wrong]
        checked.append((values, _by_name(cls.Config, options, origins, layer.who)))
    result = Merged()
    try:
        result.options = merged_options(cls.Config, *(values for values, _ in checked))
        if not problems:
            cls(result.options)  # what spans several options, and what is said of parts of the model
    except ConfigError as error:
        problems += error.problems
    refuse(backend, problems, known=list(rules_of(cls.Config)))
    for name, _ in nested(result.options):
        result.origins[name] = _last_origin(name, [origins for _, origins in checked])
    return result


def merge_sections(
    layers: Sequence[tuple[Mapping[str, Any], Mapping[str, str], str]], problems: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections of several sources, the later over the earlier, mappings key by key; and where each value came from.

    A layer is its sections, the origins of what has one, and the origin of the rest. What is wrong is added to
    ``problems``.
    """
    held: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for given, given_places, who in layers:
        sections, places = _with_one_attention(given, given_places, who, problems)
        for name, value in sections.items():
            if value is None:
                continue
            checked, wrong = check_section(name, value)
            problems += [_at(places.get(f"{name}.{key}", places.get(name, who)), text) for key, text in wrong]
            if isinstance(checked, Mapping) and isinstance(value, Mapping):
                named = _by_name(
                    SECTION_OPTIONS[name],
                    value,
                    {key: places[f"{name}.{key}"] for key in value if f"{name}.{key}" in places},
                    places.get(name, who),
                )
                origins.update({f"{name}.{key}": named[key] for key in checked})
                checked = {**(held.get(name) or {}), **checked}
            held[name] = checked
            origins[name] = places.get(name, who)
    for name, value in held.items():
        if isinstance(value, Mapping) and not problems:
            problems += [text for _, text in check_section(name, value)[1]]
    return held, origins


def nested(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Options with those of parts of the model one by one: ``secondary.NAME``, ``overrides.PART.NAME``."""
    rows: list[tuple[str, Any]] = []
    for name, value in options.items():
        if name == "secondary" and isinstance(value, Mapping):
            rows += [(f"{name}.{key}", item) for key, item in value.items()]
        elif name == "overrides" and isinstance(value, Mapping):
            for part, changes in value.items():
                items = changes.items() if isinstance(changes, Mapping) else ()
                rows += [(f"{name}.{part}.{key}", item) for key, item in items]
        else:
            rows.append((name, value))
    return rows


def _at(origin: str, text: str) -> str:
    return text if origin in ("", "argument") else f"{origin}: {text}"


def _by_name(config: type, given: Mapping[str, Any], origins: Mapping[str, str], who: str) -> dict[str, str]:
    """The origin of each given option under its own name."""
    names = {alias: name for name, (_, rule) in rules_of(config).items() for alias in rule.aliases}
    result: dict[str, str] = {}
    for key, _ in nested(given):
        top = key.partition(".")[0]
        result[names.get(key, key)] = origins.get(key, origins.get(top, who))
    return result


def _last_origin(name: str, layers: Sequence[Mapping[str, str]]) -> str:
    """Who said it last. What is said of the second transformer may have been said as an override of it."""
    names = [name]
    if name.startswith("secondary."):
        names.append(f"overrides.{SECOND}.{name.removeprefix('secondary.')}")
    said = [origins[each] for origins in layers for each in names if each in origins]
    return said[-1] if said else ""


def _with_one_attention(
    sections: Mapping[str, Any], places: Mapping[str, str], who: str, problems: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """cache-dit has ``attention_backend`` at the top of a file and within ``parallelism_config``; here it is one."""
    inner = sections.get("parallelism_config")
    if not isinstance(inner, Mapping) or inner.get("attention_backend") is None:
        return dict(sections), dict(places)
    outer, found = sections.get("attention_backend"), inner["attention_backend"]
    if outer is not None and outer != found:
        problems.append(
            f"attention_backend is {outer!r}, and within parallelism_config {found!r}; give it once"
        )
    rest = {key: value for key, value in inner.items() if key != "attention_backend"}
    place = places.get("parallelism_config.attention_backend", who)
    return (
        {**sections, "parallelism_config": rest, "attention_backend": found},
        {**places, "attention_backend": place},
    )
