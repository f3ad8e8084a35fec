"""Simulated on a record, a strategy takes the decisions that it takes on the model."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from dit_cache_backends import ConfigError, get_cache_backend
from dit_cache_backends.calibrate import Record, Series, simulate, threshold_for
from dit_cache_backends.calibrate.simulate import replaying
from dit_cache_conformance.counting import counted
from dit_cache_conformance.tiny import build_transformer

from ..engine.runs import inputs, run_told
from .runs import record_of, series_of

STEPS = 20
MODELS = ("wan", "flux", "qwen_image")
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tea_cache", "rel_l1_thresh", {"coefficients": [0.7, 1.3, 0.002]}),
    ("tea_cache", "rel_l1_thresh", {"coefficients": "identity", "rule": "sglang"}),
    ("tea_cache", "rel_l1_thresh", {"coefficients": "identity", "rule": "comfyui", "end_step": -2}),
    ("cache_dit", "residual_diff_threshold", {"max_warmup_steps": 2}),
    ("cache_dit", "residual_diff_threshold", {"max_continuous_cached_steps": 2, "max_cached_steps": 7}),
    ("easy_cache", "threshold", {"batch_decision": "mean"}),
    ("easy_cache", "threshold", {"start_percent": 0.0, "end_percent": 0.7, "batch_decision": "mean"}),
    ("fb_cache", "threshold", {"max_continuous_cached_steps": 3}),
    ("mag_cache", "threshold", {"ratios": [1.0, 1.2, 1.1, 0.98, 1.03, 0.96, 0.9]}),
]


@pytest.fixture(autouse=True)
def _no_gradients(as_in_a_run: None) -> None:
    """As in a run."""


@pytest.fixture(scope="module")
def measured() -> dict[str, Series]:
    """Of models whose inputs do not depend on what comes out of them: so what skipping changes is seen by nobody."""
    return {name: series_of(build_transformer(name), name, STEPS) for name in MODELS}


def record_with(series: Series) -> Record:
    return Record(None, {0: {series.name: series}})  # type: ignore[arg-type]


def on_the_model(model: nn.Module, name: str, backend: str, options: dict[str, Any]) -> list[bool]:
    made: Any = get_cache_backend(backend, options)
    made.enable(model)
    with counted({"model": model}) as counter:
        run_told(made, model, inputs(name, STEPS), "cond")
    made.disable()
    most = max(len(call.blocks) for call in counter.calls)
    return [len(call.blocks) == most for call in counter.calls]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("backend", "threshold", "options"), CASES)
def test_the_steps_are_those_that_the_strategy_computes(
    name: str, backend: str, threshold: str, options: dict[str, Any], measured: dict[str, Series]
) -> None:
    record = record_with(measured[name])
    tried = 0
    for computed in (14, 9):
        try:
            value = threshold_for(record, backend, threshold, computed, options)
        except ConfigError:
            continue
        given = {**options, threshold: value * 1.002}  # a little off where it tips over
        made: Any = get_cache_backend(backend, given)
        simulated = made.replay(measured[name])
        assert on_the_model(build_transformer(name), name, backend, given) == simulated
        assert sum(simulated) == simulate(record, backend, given).mean <= computed
        tried += sum(simulated) < STEPS
    assert tried


def test_a_mask_is_simulated_without_a_look_at_the_numbers(measured: dict[str, Series]) -> None:
    mask = [1, 1, 1, 0, 1] * 4
    options = {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 0}
    found = simulate(record_with(measured["wan"]), "cache_dit", options)
    assert (found.mean, found.steps, found.speedup) == (16, 20, 1.25)


def test_presets_and_overrides_count() -> None:
    record = record_of("wan22", count=1, steps=STEPS)
    dense = {"rel_l1_thresh": 0.0, "coefficients": "identity"}
    assert simulate(record, "tea_cache", dense).computed == (STEPS,)
    second = {**dense, "overrides": {"transformer_2": {"rel_l1_thresh": 1e9}}}
    steps = len(record.series("transformer_2:cond")[0])
    assert simulate(record, "tea_cache", second).mean == STEPS - steps + 1
    assert simulate(record, "cache_dit", {"preset": "fast"}).mean < STEPS / 2 + 1


@pytest.mark.parametrize(
    ("backend", "options", "text"),
    [
        ("cache_dit", {"Fn_compute_blocks": 2}, "Fn_compute_blocks is 2, and what the first 1 blocks add"),
        ("tea_cache", {}, "name the coefficients"),
        ("mag_cache", {}, "name the ratios"),
        ("dbprune", {}, "cannot be simulated on a record; those that can: .*tea_cache"),
        ("tea_cache", {"coefficients": "wan21_t2v_1_3b_ret"}, "for the signal time_projection"),
    ],
)
def test_what_a_record_cannot_tell_is_said(
    backend: str, options: dict[str, Any], text: str, measured: dict[str, Series]
) -> None:
    with pytest.raises(ConfigError, match=text):
        simulate(record_with(measured["wan"]), backend, options)


def test_no_threshold_computes_fewer_steps_than_limits_allow(measured: dict[str, Series]) -> None:
    with pytest.raises(ConfigError, match=r"at least \d+ steps are computed whatever threshold is"):
        threshold_for(
            record_with(measured["wan"]), "fb_cache", "threshold", 4, {"max_continuous_cached_steps": 1}
        )


def test_the_installed_backends_that_can_be_simulated_are_known() -> None:
    assert {"cache_dit", "tea_cache", "mag_cache", "easy_cache", "fb_cache"} <= set(replaying())
