"""Options of pytest for ``pytest --pyargs dit_cache_conformance --cache-backend mine``.

This module is imported by every pytest of an environment in which the package is installed: nothing heavy in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Name the backend and its configurations on the command line."""
    group = parser.getgroup("dit-cache-conformance", "promises of cache backends")
    group.addoption(
        "--cache-backend",
        metavar="NAME",
        help="the installed cache backend that `--pyargs dit_cache_conformance` tries",
    )
    group.addoption("--cache-eager", metavar="JSON", help="options under which it skips blocks")
    group.addoption("--cache-never", metavar="JSON", help="options under which it never does")
