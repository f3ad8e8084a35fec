"""Every test of what is kept is as in a run."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_in_a_run(as_in_a_run: None) -> None:
    """For every test of this folder."""
