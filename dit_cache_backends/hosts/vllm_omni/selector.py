"""vLLM-Omni's choice of a cache backend by its name, with ours among them."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.errors import ConfigError, UnknownBackendError
from dit_cache_backends.hosts.vllm_omni.hosted import HostedBackend
from dit_cache_backends.hosts.vllm_omni.runner import open_runner
from dit_cache_backends.hosts.vllm_omni.settings import options_of
from dit_cache_backends.registry import get_cache_backend, installed_names

__all__ = ["OVERRIDE", "OWN", "PREFIX", "open_selector"]

OWN = ("cache_dit", "tea_cache", "mag_cache", "sea_cache", "step_cache", "stepcache", "step_cache_dit")
"""The names that vLLM-Omni 0.30 has itself."""
PREFIX = "dcb:"
"""Before a name: ours, also where vLLM-Omni has one of that name."""
OVERRIDE = "DIT_CACHE_BACKENDS_OVERRIDE"
"""The environment variable that lists names, parted by commas, for which ours are taken."""

_BASE = "vllm_omni.diffusion.cache.base"
_SELECTOR = "vllm_omni.diffusion.cache.selector"
_RUNNER = "vllm_omni.diffusion.worker.diffusion_model_runner"
_MARK = "_dit_cache_backends_original"

Selector = Callable[[Any, Any], Any]


def open_selector() -> None:
    """Put our selector where vLLM-Omni looks for its own: in its module, and where its runner has it by name.

    Harmless when done before. The runner's module may be imported already (in a worker process) or later.
    """
    module = importlib.import_module(_SELECTOR)
    original: Selector = getattr(module.get_cache_backend, _MARK, module.get_cache_backend)
    opened = _opened(original)
    module.get_cache_backend = opened  # type: ignore[attr-defined]
    runner = sys.modules.get(_RUNNER)
    if runner is not None and hasattr(runner, "get_cache_backend"):
        runner.get_cache_backend = opened  # type: ignore[attr-defined]
    importlib.import_module(_BASE).CacheBackend.register(HostedBackend)


def _opened(original: Selector) -> Selector:
    @functools.wraps(original)
    def get_cache_backend(cache_backend: Any, cache_config: Any) -> Any:
        name = ours(cache_backend)
        if name is None:
            try:
                return original(cache_backend, cache_config)
            except ValueError as error:
                if "Unsupported cache backend" not in str(error):
                    raise
            name = _new(cache_backend)
        backend = HostedBackend(_made(name, cache_backend, cache_config), cache_config)
        open_runner(sys.modules.get(_RUNNER))
        return backend

    setattr(get_cache_backend, _MARK, original)
    return get_cache_backend


def ours(name: object) -> str | None:
    """The name of our backend, where ours was asked for by the prefix or by the environment; else None."""
    if not isinstance(name, str):
        return None
    plain = _forgiven(name)
    if plain.startswith(PREFIX):
        return plain.removeprefix(PREFIX)
    chosen = [_forgiven(each).removeprefix(PREFIX) for each in os.environ.get(OVERRIDE, "").split(",")]
    return plain if plain in chosen and plain not in ("", "none") else None


def _new(name: object) -> str:
    """One of ours, of a name that vLLM-Omni does not have."""
    if not isinstance(name, str) or _forgiven(name) in OWN or _forgiven(name) not in installed_names():
        raise _unknown(name)
    return _forgiven(name)


def _made(name: str, asked: object, config: object) -> CacheBackend:
    try:
        backend = get_cache_backend(name, options_of(config))
    except UnknownBackendError:
        raise _unknown(asked) from None
    if backend is None:
        raise ConfigError(f"cache backend {asked!r} stands for no cache; leave it out, or name a backend.")
    return backend


def _unknown(name: object) -> UnknownBackendError:
    ours = [PREFIX + each if each in OWN else each for each in installed_names()]
    return UnknownBackendError(name, [*OWN, *ours])


def _forgiven(name: str) -> str:
    return name.strip().lower().replace("-", "_")
