"""The variables ``DIT_CACHE_*``: the backend, its configuration, and each option by its own name.

``DIT_CACHE_RESIDUAL_DIFF_THRESHOLD=0.12`` sets ``residual_diff_threshold``. A variable that is set to nothing counts as
not set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, get_args, get_origin

from dit_cache_backends.configuration import sglang
from dit_cache_backends.configuration.parsing import SECTIONS
from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.options import members, rules_of

__all__ = [
    "PREFIX",
    "Environment",
    "option_variable",
    "read_environment",
    "read_options",
    "unknown_variables",
    "value_of",
]

PREFIX = "DIT_CACHE_"
BACKEND, CONFIG = f"{PREFIX}BACKEND", f"{PREFIX}CONFIG"
VLLM_OMNI = ("DIFFUSION_CACHE_BACKEND", "DIFFUSION_CACHE_ADAPTER")
"""vLLM-Omni's variable, and its older name; the first that is set counts."""

OTHERS = ("DIT_CACHE_BACKENDS_OVERRIDE", "DIT_CACHE_API_KEY")
"""Variables of this package that are no settings of a run. Those of a backend are its ``environment``."""

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Environment:
    """What the variables say, before it is known which backend will serve."""

    backend: str | None = None
    backend_variable: str = ""
    config: str | None = None
    """``DIT_CACHE_CONFIG``: JSON text or the path of a file."""
    sections: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """The text of every other ``DIT_CACHE_*`` variable, by the variable."""
    sglang: sglang.FromEnvironment = field(default_factory=sglang.FromEnvironment)
    problems: tuple[str, ...] = ()


def option_variable(name: str) -> str:
    """The variable that sets an option, or a section of the configuration."""
    return PREFIX + name.upper()


_APART = (BACKEND, CONFIG, *OTHERS, *map(option_variable, SECTIONS))


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Gather the variables of this package, of SGLang's cache and of vLLM-Omni; what is wrong is in ``problems``."""
    said = {name: text.strip() for name, text in environ.items() if text.strip()}
    problems: list[str] = []
    try:
        from_sglang = sglang.from_environment(environ)
    except ConfigError as error:
        problems += [f"environment: {problem}" for problem in error.problems]
        from_sglang = sglang.FromEnvironment()
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        text = said.get(option_variable(section))
        if text is not None:
            try:
                sections[section] = _section(section, text)
            except ValueError as error:
                problems.append(f"environment {option_variable(section)}: not valid JSON: {error}")
    backend, variable = _backend(said, from_sglang, problems)
    options = {name: text for name, text in said.items() if name.startswith(PREFIX) and name not in _APART}
    return Environment(backend, variable, said.get(CONFIG), sections, options, from_sglang, tuple(problems))


def read_options(
    options: Mapping[str, str], config_class: type, backend_name: str
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Variables as options of one backend: the options, the variable behind each, and the problems."""
    rules = rules_of(config_class)
    by_variable = {
        option_variable(name): (name, annotation)
        for option, (annotation, rule) in rules.items()
        for name in (option, *rule.aliases)
    }
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    for variable, text in options.items():
        if variable in by_variable:
            name, annotation = by_variable[variable]
            try:
                values[name], sources[name] = value_of(text, annotation), variable
            except ValueError as error:
                problems.append(f"environment {variable}: not valid JSON: {error}")
    strange = [variable for variable in options if variable not in by_variable]
    problems += unknown_variables(strange, backend_name, by_variable)
    return values, sources, problems


def unknown_variables(
    variables: Iterable[str], backend_name: str = "", known: Iterable[str] = ()
) -> list[str]:
    """Refuse variables that set nothing: no option of the backend (of any, without one), and read by none itself."""
    variables = list(variables)
    if not variables:
        return []
    from dit_cache_backends.registry import list_cache_backends

    classes = {name: info.cls for name, info in list_cache_backends().items() if info.cls is not None}
    by_themselves = {name for cls in classes.values() for name in getattr(cls, "environment", ())}
    owners: dict[str, list[str]] = {}
    for name, cls in classes.items():
        for each in rules_of(cls.Config):
            owners.setdefault(option_variable(each), []).append(name)
    candidates = [*(known or owners), *_APART, *by_themselves]
    problems = []
    for variable in variables:
        if variable in by_themselves or (not backend_name and variable in owners):
            continue
        if variable in owners:
            problems.append(
                f"environment {variable}: {backend_name} has no such option; it is one of {', '.join(owners[variable])}"
            )
        else:
            problems.append(f"environment: there is no variable {variable}.{near(variable, candidates)}")
    return problems


def value_of(text: str, annotation: Any) -> Any:
    """The text of a variable as the option's type has it; text that fits no other type stays text.

    Raises:
        ValueError: it begins as JSON does but is none.
    """
    kinds = [each for each in members(annotation) if each is not NoneType]
    if text[:1] in "[{" and any(get_origin(kind) or kind in (list, dict) for kind in kinds):
        return json.loads(text)
    lowered = text.lower()
    if lowered == "null" and NoneType in members(annotation):
        return None
    if bool in kinds and lowered in _TRUE + _FALSE:
        return lowered in _TRUE
    for kind in kinds:
        if get_origin(kind) is list:
            listed = _list(text, get_args(kind)[0], alone=str not in kinds)
            if listed is not None:
                return listed
        elif (number := _number(text, kind)) is not None:
            return number
    return text


def _list(text: str, item: Any, *, alone: bool) -> list[Any] | None:
    """Items with commas between them; a text without a comma is a list only where it can be nothing else."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and not alone:
        return None
    items = parts if item is str else [_number(part, item) for part in parts]
    return None if None in items else list(items)


def _number(text: str, kind: Any) -> int | float | None:
    if kind not in (int, float):
        return None
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return None


def _section(section: str, text: str) -> Any:
    if section == "attention_backend":
        return text
    if section == "compile" and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    return json.loads(text)


def _backend(
    said: Mapping[str, str], from_sglang: sglang.FromEnvironment, problems: list[str]
) -> tuple[str | None, str]:
    """The backend that the environment names, and by which variable; ours comes before those of the two hosts."""
    if BACKEND in said:
        return said[BACKEND], BACKEND
    found = [(said[name], name) for name in VLLM_OMNI if name in said][:1]
    if from_sglang.enabled:
        found.append(("cache_dit", sglang.ENABLED))
    names = {name.lower().replace("-", "_") for name, _ in found}
    if len(names) > 1:
        one, other = found
        problems.append(
            f"environment: {one[1]} says {one[0]}, and {other[1]} says {other[0]}; unset one of them, or set {BACKEND}"
        )
    return found[0] if found else (None, "")
