"""Does a cache backend keep its promises? One list of checks on tiny models, and two doors to it.

For a report in the terminal: ``dit-cache check NAME``, or ``print(check_backend("mine"))``. For pytest::

    class TestMine(CacheBackendSuite):
        backend = "mine"
        eager = {"threshold": 0.9}
        never = {"threshold": 0.0}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_cache_conformance.check import CHECKS, GROUPS, Check, CheckFailed, Result
    from dit_cache_conformance.report import Report
    from dit_cache_conformance.runner import check_backend, select
    from dit_cache_conformance.suite import CacheBackendSuite

__all__ = [
    "CHECKS",
    "CacheBackendSuite",
    "Check",
    "CheckFailed",
    "GROUPS",
    "Report",
    "Result",
    "check_backend",
    "select",
]

_HOMES = {
    "check": ("CHECKS", "Check", "CheckFailed", "GROUPS", "Result"),
    "report": ("Report",),
    "runner": ("check_backend", "select"),
    "suite": ("CacheBackendSuite",),
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the package is a pytest plugin, which every pytest of the environment loads, and torch
    # is behind all of these.
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            import_module(f"{__name__}.checks")
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
