"""From vLLM-Omni's ``DiffusionCacheConfig`` to the options of one of our backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["options_of"]

_EXTRA = "_extra_params"


def options_of(config: object) -> Any:
    """What a user said in a cache configuration, as it arrives at the selector.

    A ``DiffusionCacheConfig`` has a field for every option of every backend of vLLM-Omni, each with a default, and
    keeps the keys that it does not know in ``_extra_params``. What equals its default was said by nobody, as far as can
    be told, and is left out, so that the backend's own default or its preset holds; everything else is handed on, and
    the backend refuses by name what it does not know. A mapping, or text, is handed on as it is.
    """
    if config is None or not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    if not hasattr(config, _EXTRA):
        return config
    plain = _defaults(type(config))
    extra: Mapping[str, Any] = getattr(config, _EXTRA)
    said = {name: getattr(config, name) for name in plain if getattr(config, name) != plain[name]}
    return {**said, **extra}


def _defaults(cls: type) -> dict[str, Any]:
    fields = [each for each in dataclasses.fields(cls) if each.init and not each.name.startswith("_")]
    return {
        each.name: each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        for each in fields
    }
