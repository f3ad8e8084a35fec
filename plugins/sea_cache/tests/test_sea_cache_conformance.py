"""The promises that every backend makes, on models of which the grid and the noise level are known."""

from __future__ import annotations

from dit_cache_conformance import check_backend

REFUSED = "sea_cache knows neither the grid nor the noise level of Chroma, and refuses it"


def test_the_promises_of_a_backend_are_kept() -> None:
    report = check_backend(
        "sea_cache",
        models=("wan", "wan22"),
        expected_failures={"what_a_model_adds_between_its_blocks_survives[chroma]": REFUSED},
    )
    assert report.ok, str(report)
