"""Entry points of installed distributions: read anew when asked, loaded through stevedore, one by one."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any


def load_entry_point(point: EntryPoint, group: str) -> Any:
    """Import what an entry point names. Whatever its import raises comes through, also a ``SystemExit``.

    Stevedore is given the one entry point: it keeps those it finds itself in memory and in a file of the user's cache
    folder, where a package installed meanwhile is missing, and forgets which distribution each is from.
    """
    from stevedore import ExtensionManager
    from stevedore.extension import Extension

    failures: list[BaseException] = []

    class OnePlugin(ExtensionManager[Any]):
        def list_entry_points(self) -> list[EntryPoint]:
            return [point]

        def _load_one_plugin(self, *arguments: Any, **keywords: Any) -> Extension[Any] | None:
            try:
                return super()._load_one_plugin(*arguments, **keywords)
            except (AssertionError, SystemExit) as error:
                # Stevedore lets these through; here all failures go one way.
                failures.append(error)
                return None

    plugins = OnePlugin(
        group, on_load_failure_callback=lambda _manager, _point, error: failures.append(error)
    )
    if failures:
        raise failures[0]
    return plugins.extensions[0].plugin


def owner(point: EntryPoint) -> tuple[str, str]:
    """The name and the version of the distribution that an entry point came with."""
    if point.dist is None:
        return "unknown", "unknown"
    return str(point.dist.name), str(point.dist.version)
