"""The rule of my_cache, and the promises that every backend makes."""

from typing import Any

import pytest
import torch
from dit_cache_my_cache import MyCache

from dit_cache_conformance import CacheBackendSuite
from dit_cache_conformance.tiny import build_transformer, transformer_inputs

STEPS = 8


def cached_steps(drift: float, **options: Any) -> list[int]:
    """The steps that are skipped when the latents move by so much from step to step."""
    model = build_transformer("flux")
    with MyCache(options) as backend, torch.no_grad():
        backend.enable(model)
        backend.refresh(model, STEPS)
        for step in range(STEPS):
            arguments = transformer_inputs("flux", step=step, total=STEPS)
            arguments["hidden_states"] = transformer_inputs("flux")["hidden_states"] * (1 + drift * step)
            model(**arguments)
        return backend.summary().cached_steps()


def test_a_still_input_is_skipped_after_the_warm_up() -> None:
    assert cached_steps(0.0, warmup_steps=3) == list(range(3, STEPS))


def test_a_moving_input_is_computed_as_soon_as_it_has_moved_by_the_threshold() -> None:
    steps = cached_steps(0.1, threshold=0.15)
    assert steps
    assert len(steps) < STEPS - 2


def test_threshold_0_skips_nothing() -> None:
    assert cached_steps(0.0, threshold=0) == []


@pytest.mark.parametrize("threshold", ["0.1", None])
def test_a_threshold_that_is_no_number_is_refused(threshold: object) -> None:
    with pytest.raises(ValueError, match="threshold: expected a number"):
        MyCache({"threshold": threshold})


class TestConformance(CacheBackendSuite):
    """Its two configurations stand in the class, under ``conformance``."""

    backend = "my_cache"
