"""Every strategy that is installed, under one graph for the whole transformer: as eager, step for step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dit_cache_backends import get_cache_backend
from dit_cache_conformance.tiny import build_transformer, transformer_inputs

from .compiling import Graphs, breaks, by_function, fresh
from .runs import same

STEPS = 8
MASK = "11010010"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cache_dit": ("cache_dit", {"max_warmup_steps": 1, "residual_diff_threshold": 0.6}),
    "cache_dit, mask": (
        "cache_dit",
        {
            "steps_computation_mask": [1, 1, 0, 1, 0, 0, 1, 0],
            "steps_computation_policy": "static",
            "max_warmup_steps": 0,
            "calibrator": "taylorseer",
        },
    ),
    "tea_cache": ("tea_cache", {"rel_l1_thresh": 0.6, "coefficients": "identity"}),
    "step_plan": ("step_plan", {"mask": MASK, "calibrator": "newton"}),
    "step_plan, fitted": (
        "step_plan",
        {"mask": MASK, "weights": {2: [-0.4, 1.4], 4: [0.3, -1.1, 1.8], 5: [1.5], 7: [0.2, 0.8]}},
    ),
    "fb_cache": ("fb_cache", {"threshold": 0.6}),
    "mag_cache": (
        "mag_cache",
        {"ratios": [1.0] * STEPS, "threshold": 1.0, "max_skip_steps": 2, "retention_ratio": 0.0},
    ),
    "easy_cache": ("easy_cache", {"threshold": 0.5, "start_percent": 0.0, "end_percent": 1.0}),
    "sea_cache": ("sea_cache", {"threshold": 0.5, "cache_end_steps": 0}),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    fresh()
    yield
    fresh()


def drawn(
    name: str, options: dict[str, Any], graphs: Graphs | None
) -> tuple[list[torch.Tensor], Any, list[int]]:
    """Two runs; the outputs, the summary of the second, and how many graphs had been made after each."""
    backend = get_cache_backend(name, options)
    model: Any = build_transformer("flux")
    called = model if graphs is None else by_function(model, graphs, True)
    backend.enable(called)
    outputs, made = [], []
    for _ in range(2):
        for step in range(STEPS):
            with backend.step(step, STEPS, "cond"):
                outputs.append(called(**transformer_inputs("flux", step=step, total=STEPS))[0])
        made.append(0 if graphs is None else graphs.compiled)
    summary = backend.summary()
    backend.disable()
    return outputs, summary, made


@pytest.mark.parametrize("case", CONFIGS)
def test_every_strategy_gives_in_unbroken_graphs_what_it_gives_eagerly(case: str) -> None:
    name, options = CONFIGS[case]
    expected, eager, _ = drawn(name, options, None)
    found, summary, made = drawn(name, options, Graphs())
    assert same(found, expected)
    assert summary.rows == eager.rows
    assert 0 < len(eager.cached_steps()) < STEPS
    assert breaks() == 0
    assert made[0] == made[1] <= 4
