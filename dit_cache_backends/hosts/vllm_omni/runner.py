"""vLLM-Omni's model runner where it leaves no opening: the end of a request, the summary, and its step mode."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dit_cache_backends.hosts.vllm_omni.hosted import HostedBackend
from dit_cache_backends.hosts.vllm_omni.step_mode import own_state_for_each

__all__ = ["open_runner"]

_MARK = "_dit_cache_backends_original"

log = logging.getLogger("vllm_omni.dit_cache_backends")


def open_runner(module: ModuleType | None) -> None:
    """Wrap two methods of the runner's class. They do as before where the cache is none of ours; harmless when done."""
    cls = getattr(module, "DiffusionModelRunner", None)
    if cls is None:
        return
    _wrap(cls, "_execute_request_list", _requests)
    _wrap(cls, "_execute_stepwise", _steps)


def _wrap(cls: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = cls.__dict__.get(name)
    if original is None:
        log.warning("vLLM-Omni's runner has no %s: this release is none that dit-cache-backends knows.", name)
    elif not hasattr(original, _MARK):
        wrapped = functools.wraps(original)(around(original))
        setattr(wrapped, _MARK, original)
        setattr(cls, name, wrapped)


def _requests(original: Callable[..., Any]) -> Callable[..., Any]:
    """A batch of requests: whatever it ends by, what was kept for it goes."""

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        hosted = self.cache_backend
        if not isinstance(hosted, HostedBackend):
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        finally:
            hosted.end()
        _log_summary(self, hosted)
        return result

    return execute


def _steps(original: Callable[..., Any]) -> Callable[..., Any]:
    """A step of several requests: each has a state of its own."""

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        hosted = self.cache_backend
        if not isinstance(hosted, HostedBackend) or not hosted.is_enabled():
            return original(self, *args, **kwargs)
        with own_state_for_each(self, hosted) as ended:
            result = original(self, *args, **kwargs)
        for key in ended:
            _log_summary(self, hosted, key)
        return result

    return execute


def _log_summary(runner: Any, hosted: HostedBackend, key: Any = None) -> None:
    if getattr(runner.od_config, "enable_cache_dit_summary", False):
        which = "" if key is None else f" for {key[0]}"
        log.info("%s%s:\n%s", hosted.backend.name, which, hosted.summary(key))
