"""``pytest --pyargs dit_cache_conformance --cache-backend NAME``: the suite on an installed backend."""

from __future__ import annotations

import json

import pytest

from dit_cache_conformance.suite import CacheBackendSuite


class TestBackend(CacheBackendSuite):
    """The backend that the command line names."""

    @pytest.fixture(autouse=True)
    def _from_the_command_line(self, request: pytest.FixtureRequest) -> None:
        name = request.config.getoption("--cache-backend", default=None)
        if name is None:
            pytest.skip("name a backend: --cache-backend NAME")
        type(self).backend = name
        for which in ("eager", "never"):
            given = request.config.getoption(f"--cache-{which}", default=None)
            setattr(type(self), which, None if given is None else json.loads(given))
