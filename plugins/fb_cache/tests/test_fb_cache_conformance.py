"""The promises that every backend makes; `dit-cache check fb_cache` tries them on all of the suite's models."""

from __future__ import annotations

from dit_cache_conformance import check_backend


def test_the_promises_of_a_backend_are_kept() -> None:
    report = check_backend("fb_cache", models=("wan", "wan22"))
    assert report.ok, str(report)
