"""The sources of a run's settings, read and laid over each other, before a backend is made of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dit_cache_backends.configuration.environment import (
    BACKEND,
    CONFIG,
    option_variable,
    read_environment,
    unknown_variables,
)
from dit_cache_backends.configuration.layers import Layer, Value, merge_sections
from dit_cache_backends.configuration.parsing import BACKEND_KEY, Parsed, parse_config, same_name
from dit_cache_backends.errors import ConfigError, ConfigWarning, UnknownBackendError
from dit_cache_backends.options import rules_of

if TYPE_CHECKING:
    from dit_cache_backends.backend import CacheBackend

__all__ = [
    "NOT_SAID",
    "Sources",
    "class_of",
    "contradiction",
    "is_off",
    "refuse_all",
    "tell",
    "without_backend",
]


class _NotSaid:
    """There is one, also behind a copy or a pickle of what holds it: it is told by ``is``."""

    def __repr__(self) -> str:
        return "NOT_SAID"

    def __reduce__(self) -> str:
        return "NOT_SAID"


NOT_SAID: Any = _NotSaid()
"""No backend was named, as opposed to ``None``: no cache."""


class Sources:
    """Arguments, a file and the environment, each read once. What is wrong in them is gathered in ``problems``."""

    def __init__(
        self,
        cache_backend: object,
        cache_config: object,
        sections: Mapping[str, Any],
        environ: Mapping[str, str],
    ) -> None:
        self._argument = cache_backend
        self._variables = variables = read_environment(environ)
        self._by_variable = cache_config is None and variables.config is not None
        self._replaced = cache_config is not None and variables.config is not None
        self._who = f"environment {CONFIG}" if self._by_variable else "argument"
        self.problems = list(variables.problems)
        self._parsed = self._parse(variables.config if self._by_variable else cache_config)
        self.warnings = list(self._parsed.warnings)
        named = {name: f"environment {option_variable(name)}" for name in variables.sections}
        self.sections, self.origins = merge_sections(
            [
                (variables.sections, named, "environment"),
                (self._parsed.sections, self._parsed.origins, self._who),
                (sections, {}, "argument"),
            ],
            self.problems,
        )
        self.layers = self._layers()

    def backend(self) -> tuple[object, str]:
        """The backend that is asked for, and who asked; both empty if nobody said anything of one."""
        variables, parsed = self._variables, self._parsed
        if self._argument is not NOT_SAID:
            return self._argument, "argument"
        if parsed.backend is not None:
            return parsed.backend, parsed.origins.get(BACKEND_KEY, self._who)
        if variables.backend is not None:
            return variables.backend, f"environment {variables.backend_variable}"
        return None, ""

    def class_of(self, said: object) -> tuple[type[CacheBackend], str]:
        """The class of the backend and its name.

        Raises:
            ConfigError: the arguments contradict each other.
            UnknownBackendError: no such backend is installed.
        """
        parsed = self._parsed
        if not self._by_variable:
            self.problems += contradiction(self._argument, parsed.backend, parsed.where)
        try:
            cls, name = class_of(said)
        except UnknownBackendError:
            refuse_all(self.problems)
            raise
        if not isinstance(said, (str, type)) and parsed.options and not self._by_variable:
            self.problems.append(
                f"got a finished {name!r} backend and a configuration as well; give the configuration to its class,"
                " or the backend's name instead of the backend"
            )
        return cls, name

    def check_without_backend(self, by_wish: bool) -> None:
        """Refuse what is wrong, and unless no cache is wished, options that no backend would see."""
        unknown = unknown_variables(self._variables.options)
        if not by_wish and not unknown:
            self.problems += without_backend(self.layers)
        refuse_all([*self.problems, *unknown])

    def unused(self, counted: Sequence[Layer] = ()) -> list[Value]:
        """What was said, but not in the layers that count."""
        rows = []
        if self._replaced:
            rows.append(Value("", "cache_config", self._variables.config, f"environment {CONFIG}"))
        left = [layer for layer in self.layers if not any(layer is each for each in counted)]
        return rows + [value for layer in left for value in layer.values()]

    def _parse(self, source: object) -> Parsed:
        parsed = Parsed()
        problems: Sequence[str]
        try:
            parsed = parse_config(source)
            problems = parsed.problems
        except ConfigError as error:
            problems = error.problems
        self.problems += [f"{self._who}: {problem}" if self._by_variable else problem for problem in problems]
        return parsed

    def _layers(self) -> list[Layer]:
        """The options of each source; the later come over the earlier."""
        variables, parsed = self._variables, self._parsed
        for_backend = variables.backend
        if self._by_variable and parsed.backend is not None:
            if variables.backend_variable == BACKEND and not same_name(parsed.backend, str(for_backend)):
                self.problems.append(
                    f"environment: {BACKEND} says {for_backend}, and {CONFIG} says {parsed.backend}; name one backend"
                )
            for_backend = parsed.backend
        sglang = {name: f"environment {variable}" for name, variable in variables.sglang.sources.items()}
        return [
            Layer(variables.sglang.options, "environment", sglang, "cache_dit", needs_backend=False),
            Layer(variables.options, "environment", {}, for_backend, texts=True),
            Layer(parsed.options, self._who, parsed.origins, for_backend if self._by_variable else None),
        ]


def class_of(said: object) -> tuple[type[CacheBackend], str]:
    """The class of a backend that is named, or given as a class or finished, and its name.

    Raises:
        UnknownBackendError: no such backend is installed, or it is none.
    """
    from dit_cache_backends.backend import CacheBackend
    from dit_cache_backends.registry import backend_class, get_cache_backend

    if isinstance(said, CacheBackend):
        return type(said), said.name
    if isinstance(said, str):
        cls = backend_class(said)
        return cls, said.strip().lower().replace("-", "_")
    if not (isinstance(said, type) and issubclass(said, CacheBackend)):
        get_cache_backend(said)  # says what is wrong with it
        raise UnknownBackendError(said, [])
    return said, said.name


def is_off(said: object) -> bool:
    """Whether no cache is asked for."""
    return said is None or (isinstance(said, str) and same_name(said, "none")) or said == ""


def contradiction(argument: object, named: str | None, where: str) -> list[str]:
    """An argument and a configuration may not name different backends, since the options are for one of them."""
    if argument is NOT_SAID or named is None or is_off(argument):
        return []
    name = argument if isinstance(argument, str) else getattr(argument, "name", "")
    if same_name(named, str(name)):
        return []
    return [
        f"{where} says {BACKEND_KEY}: {named}, but {name} is asked for. Name one backend, and give its options"
    ]


def without_backend(layers: Iterable[Layer]) -> list[str]:
    """Options that no backend would see are a mistake; those that would fit are named."""
    given = [layer for layer in layers if layer.needs_backend and layer.options]
    if not given:
        return []
    from dit_cache_backends.registry import list_cache_backends

    fitting = []
    for name, info in list_cache_backends().items():
        rules = rules_of(info.cls.Config) if info.cls is not None else {}
        known = {each for option, (_, rule) in rules.items() for each in (option, *rule.aliases)}
        variables = {option_variable(each) for each in known}
        if all(set(layer.options) <= (variables if layer.texts else known) for layer in given):
            fitting.append(name)
    options = ", ".join(str(key) for layer in given for key in layer.options)
    hint = f" These are options of {', '.join(fitting)}." if fitting else ""
    return [
        f"got a cache configuration ({options}) but no cache backend.{hint} Name it: cache_backend in the file, "
        f"--cache-backend, or {BACKEND}; none for no cache"
    ]


def refuse_all(problems: Iterable[str]) -> None:
    """Raise one error for all problems; nothing happens if there are none.

    Raises:
        ConfigError: if there are any.
    """
    problems = list(problems)
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems:\n  - " + "\n  - ".join(problems), problems)


def tell(messages: Iterable[str]) -> None:
    """Warn of what was understood although it is not written as it should be."""
    for message in messages:
        warnings.warn(message, ConfigWarning, stacklevel=3)
