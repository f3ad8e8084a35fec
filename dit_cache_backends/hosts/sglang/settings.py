"""Which backend SGLang-Diffusion gets, and with which options: the environment, and over it what a request says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit_cache_backends.backend import CacheBackend, SpanBackend
from dit_cache_backends.config import load_config, named_backend
from dit_cache_backends.configuration.sglang import (
    FromEnvironment,
    from_environment,
    from_request,
    merged,
    refuse_foreign,
)
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.options import rules_of
from dit_cache_backends.registry import backend_class

__all__ = ["BACKEND", "CONFIG", "Settings", "find_settings"]

BACKEND, CONFIG = "DIT_CACHE_BACKEND", "DIT_CACHE_CONFIG"
_REQUEST, _STAGE = "cache_dit_params", "SGLang's stage"


@dataclass(frozen=True)
class Settings:
    """The backend of a server and the options of all its requests."""

    backend: type[SpanBackend]
    environment: FromEnvironment
    file: Mapping[str, Any] = field(default_factory=dict)
    """The options in ``DIT_CACHE_CONFIG``."""

    def options(self, params: object = None, host: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options of one mount: the environment's, over them ``DIT_CACHE_CONFIG``'s, the request's, ``host``.

        Args:
            params: the request's ``cache_dit_params``.
            host: what a stage of SGLang has set by itself, whoever asked for something else.

        Raises:
            ConfigError: if the backend has no such option, or its value is wrong.
        """
        asked = from_request(params)
        layers = {"": self.environment.options, CONFIG: self.file, _REQUEST: asked, _STAGE: host or {}}
        config = self.backend.Config
        known = [name for option, (_, rule) in rules_of(config).items() for name in (option, *rule.aliases)]
        for origin, layer in layers.items():
            names = list(_names(layer))
            sources = dict.fromkeys(names, origin) if origin else self.environment.sources
            try:
                refuse_foreign(names, known, self.backend.name, sources)
            except ConfigError as error:
                if origin != _REQUEST:
                    raise
                # SGLang's own words before ours
                raise ConfigError(f"Unknown cache_dit_params keys: {error}", error.problems) from None
        return merged(config, *layers.values())

    def make(self, params: object = None, host: Mapping[str, Any] | None = None) -> SpanBackend:
        """A fresh backend for one mount, with ``options(params, host)``."""
        return self.backend(self.options(params, host))


def find_settings(environ: Mapping[str, str]) -> Settings | None:
    """What the environment says, checked in full; None where ``DIT_CACHE_BACKEND`` is not set, or is ``none``.

    Raises:
        DitCacheError: if there is no such backend, if it cannot serve a host that tells its steps, or if its options
            are wrong.
    """
    name = environ.get(BACKEND, "").strip()
    if name.lower() in ("", "none"):
        return None
    cls: type[CacheBackend] = backend_class(name)
    if not issubclass(cls, SpanBackend):
        raise ConfigError(
            f"{BACKEND}={name}: {cls.name} does not work by spans, so it cannot be told the steps that SGLang makes."
        )
    text = environ.get(CONFIG, "").strip() or None
    named = named_backend(text)
    if named is not None and backend_class(named) is not cls:
        raise ConfigError(
            f"{CONFIG} says cache_backend: {named}, but {BACKEND} is {name}. Give the same in both."
        )
    settings = Settings(cls, from_environment(environ), load_config(text))
    settings.make()
    return settings


def _names(layer: Mapping[str, Any]) -> Iterator[str]:
    """The options of a layer, those within ``secondary`` as ``secondary.NAME``."""
    for key, value in layer.items():
        if key == "secondary" and isinstance(value, Mapping) and "cache_backend" not in value:
            yield from (f"secondary.{name}" for name in value)
        else:
            yield key
