"""What this package raises. Every message says what was given, what was expected and what to do.

``except DitCacheError`` catches all of them; each is also the builtin exception that fits it, so that code
which knows nothing of this package still catches what it means.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AlreadyEnabledError",
    "BackendLoadError",
    "CancelledGeneration",
    "CardError",
    "CompileError",
    "ConfigError",
    "ConfigWarning",
    "DitCacheError",
    "DuplicateBackendError",
    "EngineClosedError",
    "NotEnabledError",
    "PlacementError",
    "QueueFullError",
    "UnknownBackendError",
    "UnknownTransformerError",
    "near",
]


class DitCacheError(Exception):
    """The base of every error of this package."""


class UnknownBackendError(DitCacheError, ValueError):
    """No backend of that name is installed."""

    def __init__(self, name: object, supported: Iterable[str]) -> None:
        known = sorted(supported)
        # The first two sentences are vLLM-Omni's own wording, which its users and its tests look for.
        super().__init__(
            f"Unsupported cache backend: {name}. Supported: {', '.join(known) or 'none is installed'}."
            f"{near(str(name), known)} Others come with packages that have entry points in the group"
            " 'dit_cache_backends'; `dit-cache backends` lists what is installed."
        )
        self.name = name
        self.supported = known


class BackendLoadError(DitCacheError, ImportError):
    """A backend is installed but cannot be used. What was raised at its import, if anything, is chained."""


class DuplicateBackendError(DitCacheError, ValueError):
    """Several installed distributions offer a backend of one name, and neither can be preferred."""


class ConfigError(DitCacheError, ValueError):
    """A configuration was refused. ``problems`` holds every reason on its own."""

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class ConfigWarning(UserWarning):
    """Something in a configuration was understood although it is not written as it should be."""


class UnknownTransformerError(DitCacheError, LookupError):
    """No card describes the class of the transformer, so where its blocks are is not known."""


class CardError(DitCacheError, ValueError):
    """A card contradicts itself or the model that it describes."""


class CompileError(DitCacheError, RuntimeError):
    """A model was to be compiled as one graph, and cannot be while a cache backend is enabled on it."""


class AlreadyEnabledError(DitCacheError, RuntimeError):
    """A cache was to be enabled where one is already."""


class NotEnabledError(DitCacheError, RuntimeError):
    """Something was asked of a cache that is not enabled there."""


class QueueFullError(DitCacheError, RuntimeError):
    """As many requests wait as may wait. It can be tried again when one of them is done."""


class CancelledGeneration(DitCacheError, RuntimeError):
    """The result of a request was asked for that had been cancelled."""


class EngineClosedError(DitCacheError, RuntimeError):
    """A request was handed to an engine that has been closed."""


class PlacementError(DitCacheError, RuntimeError):
    """A way to run the model was asked for (ranks, attention, precision, compilation) that is not to be had here."""


def near(name: str, candidates: Iterable[str], *, count: int = 3) -> str:
    """Name the candidates that look like ``name``: `` Did you mean 'x'?``, or nothing if none does.

    Case, ``-`` and ``_`` make no difference. The text starts with a space, to be put behind a sentence.
    """
    spellings: dict[str, str] = {}
    for candidate in candidates:
        spellings.setdefault(_plain(candidate), candidate)
    plain = _plain(name)
    found = difflib.get_close_matches(plain, spellings, n=count, cutoff=0.6)
    if not found and len(plain) >= 3:
        # A part of a long name is a good hint too, although as a whole it is not alike.
        found = [spelling for spelling in spellings if plain in spelling][:count]
    if not found:
        return ""
    names = [f"'{spellings[match]}'" for match in found]
    return f" Did you mean {' or '.join(names)}?"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").strip()
