"""Names to backends. Every backend, the built-in ones too, is an entry point of one group.

The installed entry points are read anew at every call, so a plugin that was just installed is there, and no
backend is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from dit_cache_backends.errors import (
    BackendLoadError,
    ConfigError,
    DuplicateBackendError,
    UnknownBackendError,
)
from dit_cache_backends.plugins import load_entry_point, owner

if TYPE_CHECKING:
    from dit_cache_backends.backend import CacheBackend

__all__ = [
    "GROUP",
    "BackendInfo",
    "backend_class",
    "find_backend",
    "get_cache_backend",
    "installed_names",
    "list_cache_backends",
]

GROUP = "dit_cache_backends"


@dataclass(frozen=True)
class BackendInfo:
    """An installed backend. ``cls`` is ``None`` where ``error`` tells why it cannot be used."""

    name: str
    distribution: str
    version: str
    origin: str
    cls: type[CacheBackend] | None
    error: str | None
    summary: str


def get_cache_backend(name: object, config: object = None) -> CacheBackend | None:
    """Make a cache backend.

    Args:
        name: The name of an installed backend (case and ``-`` are forgiven), a subclass of ``CacheBackend``,
            or a finished backend, which is returned as it is. ``None`` and ``"none"`` stand for no cache.
        config: The backend's options in any form :func:`dit_cache_backends.config.load_config` reads.

    Returns:
        The backend, not yet enabled; ``None`` if no cache was asked for.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        DuplicateBackendError: Several distributions offer one of that name.
        BackendLoadError: It is installed but broken.
        ConfigError: The options do not fit it, or options came with a finished backend or with no backend.
    """
    from dit_cache_backends.backend import CacheBackend

    if isinstance(name, CacheBackend):
        if config is not None:
            raise ConfigError(
                f"got a finished {name.name!r} backend and a configuration as well; give the configuration to"
                " its class, or the backend's name instead of the backend"
            )
        return name
    if name is None or (isinstance(name, str) and _canonical(name) in ("", "none")):
        if config:
            raise ConfigError(f"got a cache configuration but no cache backend (its name was {name!r})")
        return None
    if isinstance(name, type) and issubclass(name, CacheBackend):
        return _make(name, config)
    if not isinstance(name, str):
        raise UnknownBackendError(f"{name!r} (a {type(name).__name__})", _by_name())
    return _make(backend_class(name), config)


def list_cache_backends() -> dict[str, BackendInfo]:
    """Every installed backend by its name. All of them are imported; one that fails says why in ``error``."""
    return {name: _info(name, found) for name, found in sorted(_by_name().items())}


def installed_names() -> list[str]:
    """The names of the installed backends, without importing any."""
    return sorted(_by_name())


def find_backend(name: str) -> BackendInfo:
    """One installed backend. No other one is imported.

    Raises:
        UnknownBackendError: No backend of that name is installed.
    """
    installed = _by_name()
    found = installed.get(_canonical(name))
    if not found:
        raise UnknownBackendError(name, installed)
    return _info(_canonical(name), found)


def backend_class(name: str) -> type[CacheBackend]:
    """The class of an installed backend.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        DuplicateBackendError: Several distributions offer one of that name.
        BackendLoadError: It is installed but broken.
    """
    installed = _by_name()
    found = installed.get(_canonical(name))
    if not found:
        raise UnknownBackendError(_canonical(name), installed)
    if len(found) > 1:
        raise DuplicateBackendError(_conflict(_canonical(name), found))
    return _load(found[0])


def _make(cls: type[CacheBackend], config: object) -> CacheBackend:
    from dit_cache_backends.config import make_config

    return cls(make_config(cls.Config, config, cls.name))


def _info(name: str, found: Sequence[EntryPoint]) -> BackendInfo:
    if len(found) > 1:
        origins = ", ".join(point.value for point in found)
        owners = ", ".join(owner(point)[0] for point in found)
        versions = ", ".join(owner(point)[1] for point in found)
        return BackendInfo(name, owners, versions, origins, None, _conflict(name, found), "")
    distribution, version = owner(found[0])
    try:
        cls = _load(found[0])
    except BackendLoadError as error:
        return BackendInfo(name, distribution, version, found[0].value, None, str(error), "")
    summary = ((cls.__doc__ or "").strip().splitlines() or [""])[0]
    return BackendInfo(name, distribution, version, found[0].value, cls, None, summary)


def _by_name() -> dict[str, list[EntryPoint]]:
    """The installed entry points under their canonical names."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(_canonical(point.name), []).append(point)
    return found


def _load(point: EntryPoint) -> type[CacheBackend]:
    """Import what an entry point names, through stevedore, and make sure that it is a backend."""
    from dit_cache_backends.backend import CacheBackend

    owned_by = " ".join(owner(point))
    label = f"the cache backend {_canonical(point.name)!r} ({point.value}, from {owned_by})"
    try:
        plugin = load_entry_point(point, GROUP)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BackendLoadError(
            f"{label} cannot be loaded: {reason}. Repair or uninstall {owned_by}."
        ) from error
    if not (isinstance(plugin, type) and issubclass(plugin, CacheBackend)):
        raise BackendLoadError(f"{label} is not a subclass of dit_cache_backends.CacheBackend: {plugin!r}")
    config = getattr(plugin, "Config", None)
    if not (isinstance(config, type) and is_dataclass(config)):
        raise BackendLoadError(f"{label} has no dataclass named Config that declares its options: {config!r}")
    if abstract := sorted(getattr(plugin, "__abstractmethods__", ())):
        raise BackendLoadError(f"{label} lacks the methods {', '.join(abstract)}")
    return plugin


def _conflict(name: str, found: Sequence[EntryPoint]) -> str:
    offers = " and ".join(f"{' '.join(owner(point))} ({point.value})" for point in found)
    return (
        f"several installed distributions offer a cache backend named {name!r}: {offers}. Uninstall all but"
        " one, or pass the class itself instead of its name."
    )


def _canonical(name: str) -> str:
    return name.strip().lower().replace("-", "_")
