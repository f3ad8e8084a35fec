"""Everything that was said about a run, by whom, and what follows from it.

Five sources, each over the next: a request, the arguments of a call or a command, a file, the environment, the
defaults. :func:`find_settings` reads them all, refuses what is wrong in any of them, all at once, and remembers for
each value where it came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from dit_cache_backends.config import describe
from dit_cache_backends.configuration.layers import Layer, Merged, Value, merge, nested
from dit_cache_backends.configuration.parsing import BACKEND_KEY, SECTIONS, parse_config, same_name
from dit_cache_backends.configuration.sources import (
    NOT_SAID,
    Sources,
    class_of,
    contradiction,
    is_off,
    refuse_all,
    tell,
    without_backend,
)
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.parts import given_options

if TYPE_CHECKING:
    from dit_cache_backends.backend import CacheBackend

__all__ = ["NOT_SAID", "Settings", "Value", "find_settings"]


@dataclass(frozen=True)
class Settings:
    """What is to be done in a run, and where each value came from."""

    backend: str | CacheBackend | type[CacheBackend] | None = None
    """The backend's name, or itself where it was handed over; None: no cache."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its options as far as they were given, checked, under their own names."""
    parallelism: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    attention_backend: str | None = None
    compile: dict[str, Any] | None = None
    """Arguments of ``torch.compile``; None: the model is not compiled."""
    unused: tuple[Value, ...] = ()
    """What was said but does not count here: for another backend, or overruled as a whole."""
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where values came from: ``cache_backend``, options (``secondary.NAME``), sections (``SECTION.KEY``)."""

    def make_backend(self) -> CacheBackend | None:
        """The backend with its options, not yet enabled; None if there is to be no cache."""
        from dit_cache_backends.registry import get_cache_backend

        return get_cache_backend(self.backend, self.options or None)

    def for_request(self, cache_backend: object = NOT_SAID, cache_config: object = None) -> Settings:
        """The same with what one request says over it. None, or ``"none"``, turns the cache off for it.

        With another backend than these settings have, only the request's own options count.

        Raises:
            ConfigError: with everything in the request that is wrong.
            UnknownBackendError: no backend of that name is installed.
        """
        parsed = parse_config(cache_config)
        problems = list(parsed.problems)
        if parsed.sections:
            problems.append(
                f"a request has no {' and no '.join(parsed.sections)}; that is decided where the model is loaded"
            )
        own = Layer(parsed.options, "request", parsed.origins)
        said = parsed.backend if cache_backend is NOT_SAID else cache_backend
        if cache_backend is NOT_SAID and parsed.backend is None:
            said = self.backend
            if said is None:
                refuse_all(problems + without_backend([own]))
        if not isinstance(said, (str, type)) and said is not self.backend and not is_off(said):
            problems.append("a request names its backend; a finished one belongs to whoever made it")
        refuse_all(problems)
        tell(parsed.warnings)
        result = replace(self, warnings=(*self.warnings, *parsed.warnings))
        if is_off(said):
            left = (*self.unused, *self._given(), *own.values())
            return replace(
                result, backend=None, options={}, unused=left, origins=self._with({BACKEND_KEY: "request"})
            )
        refuse_all(contradiction(cache_backend, parsed.backend, "the request"))
        cls, name = class_of(said)
        same = self.backend is not None and same_name(class_of(self.backend)[1], name)
        if same and not parsed.options:
            return result
        if not isinstance(said, (str, type)):
            raise ConfigError(f"{name}: a finished backend has its options; a request cannot change them.")
        merged = merge(cls, name, [*([Layer(self.options, "", self.origins)] if same else []), own])
        origin = self.origins.get(BACKEND_KEY, "") if same else "request"
        return replace(
            result,
            backend=self.backend if same else name if isinstance(said, str) else said,
            options=merged.options,
            unused=self.unused if same else (*self.unused, *self._given()),
            origins=self._with({BACKEND_KEY: origin, **merged.origins}),
        )

    def values(self) -> list[Value]:
        """Every value there is, given or not: the backend, each of its options, and what the sections say."""
        name = None if self.backend is None else class_of(self.backend)[1]
        rows = [Value("", BACKEND_KEY, name, self.origins.get(BACKEND_KEY, "default"))]
        if self.backend is not None:
            rows += self._option_values()
        for section, held in self._sections().items():
            if isinstance(held, Mapping) and held:
                rows += [
                    Value(section, key, value, self._origin(f"{section}.{key}"))
                    for key, value in held.items()
                ]
            else:
                rows.append(Value("", section, True if held == {} else held, self._origin(section)))
        return rows

    def _option_values(self) -> list[Value]:
        made = self.make_backend()
        if made is None:
            return []
        preset = self.options.get("preset")
        stands_for: Mapping[str, Any] = {}
        if preset is not None:
            stands_for = cast(Any, made).preset(preset, self.options.get("num_inference_steps"))
        # A finished backend was given its options before.
        finished = given_options(type(made).Config, made.config) if made is self.backend else {}
        rows = []
        for info in describe(type(made).Config):
            if info.name in finished:
                rows.append(Value("cache", info.name, finished[info.name], self._origin(BACKEND_KEY)))
            elif info.name in self.options:
                inner = nested({info.name: self.options[info.name]})
                rows += [Value("cache", name, value, self._origin(name)) for name, value in inner]
            elif info.name in stands_for:
                rows.append(Value("cache", info.name, stands_for[info.name], f"preset {preset}"))
            else:
                rows.append(Value("cache", info.name, getattr(made.config, info.name), "default"))
        return rows

    def _given(self) -> list[Value]:
        """The options that were given, as values."""
        return [Value("cache", name, value, self._origin(name)) for name, value in nested(self.options)]

    def _origin(self, name: str) -> str:
        return self.origins.get(name, "default")

    def _sections(self) -> dict[str, Any]:
        """The sections that say something."""
        held = {
            "parallelism_config": self.parallelism or None,
            "quantize_config": self.quantization or None,
            "attention_backend": self.attention_backend,
            "compile": self.compile,
        }
        return {name: value for name, value in held.items() if value is not None}

    def _with(self, origins: Mapping[str, str]) -> dict[str, str]:
        """The origins of the sections, and these."""
        kept = {key: origin for key, origin in self.origins.items() if key.partition(".")[0] in SECTIONS}
        return {**kept, **origins}


def find_settings(
    cache_backend: object = NOT_SAID,
    cache_config: object = None,
    *,
    parallelism_config: object = None,
    quantize_config: object = None,
    attention_backend: object = None,
    compile: object = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read arguments, a file and the environment into one :class:`Settings`.

    Args:
        cache_backend: The name of a backend, a class, or a finished backend. None or ``"none"``: no cache, whatever
            the other sources say. Left out: the file decides, then the environment.
        cache_config: Options, or a whole file with its sections, in any form
            :func:`~dit_cache_backends.config.load_config` reads. Left out: what ``DIT_CACHE_CONFIG`` gives.
        parallelism_config: Over what the file says, key by key, as are the other sections.
        quantize_config: Which weights are kept in fewer bits.
        attention_backend: The name of an attention backend.
        compile: True, False, or the arguments of ``torch.compile``.
        environment: The variables; those of this process unless given.

    Raises:
        ConfigError: with everything that is wrong in any of them, one by one in ``problems``.
        UnknownBackendError: no backend of that name is installed.
    """
    sources = Sources(
        cache_backend,
        cache_config,
        {
            "parallelism_config": parallelism_config,
            "quantize_config": quantize_config,
            "attention_backend": attention_backend,
            "compile": compile,
        },
        os.environ if environment is None else environment,
    )
    settings = _settings(sources)
    tell(settings.warnings)
    return settings


def _settings(sources: Sources) -> Settings:
    said, origin = sources.backend()
    settings = Settings(
        parallelism=sources.sections.get("parallelism_config") or {},
        quantization=sources.sections.get("quantize_config") or {},
        attention_backend=sources.sections.get("attention_backend"),
        compile=sources.sections.get("compile"),
        warnings=tuple(sources.warnings),
        origins={**sources.origins, BACKEND_KEY: origin or "default"},
    )
    if is_off(said):
        sources.check_without_backend(by_wish=bool(origin))
        return replace(settings, unused=tuple(sources.unused()))
    cls, name = sources.class_of(said)
    counted: list[Layer] = []
    merged = Merged()
    if isinstance(said, (str, type)):
        counted = [layer for layer in sources.layers if layer.counts_for(name)]
        merged = merge(cls, name, counted, sources.problems)
    else:
        refuse_all(sources.problems)  # a finished backend has its options
    return replace(
        settings,
        backend=name if isinstance(said, str) else cast(Any, said),
        options=merged.options,
        unused=tuple(sources.unused(counted)),
        origins={**settings.origins, **merged.origins},
    )
