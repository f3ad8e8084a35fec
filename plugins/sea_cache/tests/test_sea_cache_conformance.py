"""The promises that every backend makes, and that the models of which nothing is known are refused as is declared."""

from __future__ import annotations

from dit_cache_conformance import check_backend


def test_the_promises_of_a_backend_are_kept() -> None:
    report = check_backend("sea_cache", models=("wan", "wan22", "chroma"))
    assert report.ok, str(report)
    assert report.count("expected") == 0
