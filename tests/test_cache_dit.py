"""The options of `cache_dit`: masks, what is refused, and each decision against the rule written down apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dit_cache_backends import ConfigError, enable_cache, get_cache_backend
from dit_cache_backends.strategies.scm import POLICIES, policy_mask
from dit_cache_conformance.tiny import build, build_transformer

from .engine.counting import executed
from .engine.runs import kinds
from .engine.toys import ONE, Toy, adds, image

MASKS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "data/scm_masks.json").read_text())[
    "masks"
]
DEPTH = 4


pytestmark = pytest.mark.usefixtures("as_in_a_run")


def picture(step: int, speed: float = 0.05, jump: int | None = None) -> Tensor:
    """A drifting input that jumps once."""
    far = 0.0 if jump is None or step < jump else 3.0
    return image() + (speed * step + far) * image(seed=5)


def run(steps: int, speed: float = 0.05, jump: int | None = None, **options: Any) -> Any:
    """A run on a toy of four blocks; the backend, and its `ran`: the numbers of the blocks of each step."""
    model = Toy(*[adds] * DEPTH)
    backend: Any = enable_cache(model, "cache_dit", card=ONE, **options)
    backend.refresh(model, steps)
    backend.ran = []
    with executed(model) as ran:
        for step in range(steps):
            with backend.step(step, steps):
                model(picture(step, speed, jump))
            backend.ran.append([number for _, number in ran.take()])
    return backend


def cached(backend: Any) -> list[int]:
    """Steps in which blocks were missing, as counted from outside; the summary has to say the same."""
    steps = [step for step, blocks in enumerate(backend.ran) if len(blocks) < DEPTH]
    assert backend.summary().cached_steps() == steps
    return steps


@pytest.mark.parametrize("policy", POLICIES)
def test_the_masks_are_those_of_cache_dit_for_every_number_of_steps(policy: str) -> None:
    assert len(MASKS) > 190
    for steps, masks in MASKS.items():
        assert "".join(map(str, policy_mask(policy, int(steps)))) == masks[policy], steps


@pytest.mark.parametrize("steps", [4, 6, 8, 9, 10, 15, 16, 20, 28, 31, 50])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("by", ["scm_steps_mask_policy", "steps_computation_mask"])
def test_a_static_mask_is_followed_step_by_step(policy: str, steps: int, by: str) -> None:
    backend = run(steps, **{by: policy, "scm_steps_policy": "static"})
    assert cached(backend) == [step for step, digit in enumerate(MASKS[str(steps)][policy]) if digit == "0"]
    assert kinds(backend) == {}


@pytest.mark.parametrize("steps", [8, 28])
def test_the_mask_of_a_pipeline_is_cut_for_the_steps_its_scheduler_makes(steps: int) -> None:
    tiny = build("sd3")
    backend: Any = enable_cache(
        tiny.pipe, "cache_dit", scm_steps_mask_policy="ultra", steps_computation_policy="static"
    )
    tiny.run(steps)
    expected = [step for step, digit in enumerate(MASKS[str(steps)]["ultra"]) if digit == "0"]
    assert backend.summary().cached_steps() == expected


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_a_number_of_steps_without_a_preset_switches_the_mask_off_and_says_so(steps: int) -> None:
    backend = run(steps, scm_steps_mask_policy="ultra", scm_steps_policy="static", max_warmup_steps=2)
    without = run(steps, max_warmup_steps=2)
    assert cached(backend) == cached(without)
    assert kinds(backend)["mask_off"] == 1
    assert str(steps) in next(event.detail for event in backend.summary().events if event.kind == "mask_off")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_mask_of_another_length_never_breaks_a_run(policy: str, steps: int) -> None:
    backend = run(
        steps, steps_computation_mask="1010", steps_computation_policy=policy, residual_diff_threshold=2.0
    )
    assert cached(backend) == [step for step in (1, 3) if step < steps]
    assert kinds(backend).get("mask_length", 0) == (steps != 4)
    reasons = {row.step: row.reason for row in backend.summary().rows}
    assert all(reasons[step] == "beyond the mask" for step in range(4, steps))


@pytest.mark.parametrize("mask", ["0000", "0101", [0, 0, 1, 0]])
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_mask_that_starts_with_0_computes_the_first_step_all_the_same(mask: Any, policy: str) -> None:
    backend = run(
        4, steps_computation_mask=mask, steps_computation_policy=policy, residual_diff_threshold=2.0
    )
    expected = [step for step, digit in enumerate(mask) if int(digit) == 0 and step > 0]
    assert cached(backend) == expected


def test_bins_are_a_mask_too() -> None:
    backend = run(8, scm_compute_bins=[2, 1, 1], scm_cache_bins=[2, 2], scm_steps_policy="static")
    assert cached(backend) == [2, 3, 5, 6]


def test_a_dynamic_mask_lets_the_difference_decide_at_its_zeros() -> None:
    options: dict[str, Any] = {"steps_computation_mask": "1000000", "residual_diff_threshold": 0.5}
    assert cached(run(7, jump=4, max_continuous_cached_steps=-1, **options)) == [1, 2, 3, 5, 6]
    static = run(7, jump=4, steps_computation_policy="static", max_continuous_cached_steps=1, **options)
    assert cached(static) == [1, 2, 3, 4, 5, 6]
    assert static.summary().diffs() == {}


LAID_OUT: list[tuple[dict[str, int], list[int]]] = [
    ({}, [0]),
    ({"Fn_compute_blocks": 2}, [0, 1]),
    ({"Bn_compute_blocks": 2}, [0, 2, 3]),
    ({"Fn_compute_blocks": 2, "Bn_compute_blocks": 1}, [0, 1, 3]),
    ({"Fn_compute_blocks": 3}, [0, 1, 2]),
]


@pytest.mark.parametrize(("options", "blocks"), LAID_OUT)
def test_the_first_and_the_last_blocks_always_run(options: dict[str, Any], blocks: list[int]) -> None:
    backend = run(5, residual_diff_threshold=2.0, max_warmup_steps=1, **options)
    assert backend.ran[:4] == [[0, 1, 2, 3], blocks, blocks, blocks]


@pytest.mark.parametrize(
    ("fn", "bn", "name"),
    [(4, 0, "toy"), (1, 3, "toy"), (9, 9, "toy"), (1, 2, "hunyuan_video"), (3, 0, "flux2")],
)
def test_blocks_that_leave_nothing_to_skip_are_refused_with_the_range(fn: int, bn: int, name: str) -> None:
    model = Toy(*[adds] * DEPTH) if name == "toy" else build_transformer(name)
    cls = type(model)
    backend: Any = get_cache_backend("cache_dit", {"Fn_compute_blocks": fn, "Bn_compute_blocks": bn})
    with pytest.raises(ConfigError) as caught:
        backend.enable(model, card=ONE if name == "toy" else None)
    depth = 4 if name == "toy" else 3
    assert f"at most {depth - 1}" in str(caught.value)
    assert f"stack '{'blocks' if name == 'toy' else 'transformer_blocks'}' of {depth} blocks" in str(
        caught.value
    )
    assert type(model) is cls
    assert not backend.is_enabled()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"residual_dif_threshold": 0.1}, "'residual_dif_threshold'.*Did you mean 'residual_diff_threshold'"),
    ({"fn_compute_block": 2}, "Did you mean 'Fn_compute_blocks'"),
    ({"residual_diff_threshold": "0.1"}, "residual_diff_threshold: expected a number"),
    ({"residual_diff_threshold": float("nan")}, "expected a number"),
    ({"residual_diff_threshold": "high"}, "expected a number"),
    ({"Fn_compute_blocks": 0}, "at least 1"),
    ({"Fn_compute_blocks": 1.5}, "whole number"),
    ({"Bn_compute_blocks": -1}, "at least 0"),
    ({"max_warmup_steps": -1}, "at least 0"),
    ({"warmup_interval": 0}, "at least 1"),
    ({"max_cached_steps": -2}, "at least -1"),
    ({"max_continuous_cached_steps": True}, "whole number"),
    ({"taylorseer_order": 11}, "at most 10"),
    ({"taylorseer_cache_type": "hidden"}, "'residual', 'hidden_states'"),
    ({"enable_taylorseer": "yes"}, "true or false"),
    ({"steps_computation_mask": "1102"}, "0 and 1, or one of slow, medium, fast, ultra"),
    ({"steps_computation_mask": [1, 2]}, "0 and 1"),
    ({"steps_computation_mask": []}, "0 and 1"),
    ({"steps_computation_mask": ""}, "0 and 1"),
    ({"steps_computation_mask": "1100", "num_inference_steps": 5}, "4 steps, but num_inference_steps is 5"),
    ({"steps_computation_mask": "10", "scm_steps_mask_policy": "fast"}, "give one of them"),
    ({"scm_steps_mask_policy": "quick"}, "'slow', 'medium', 'fast', 'ultra'"),
    ({"scm_steps_policy": "fixed"}, "'dynamic', 'static'"),
    ({"scm_compute_bins": [1, 2]}, "go together"),
    ({"scm_compute_bins": [1], "scm_cache_bins": [0]}, "at least 1"),
    ({"scm_compute_bins": [1], "scm_cache_bins": [2], "num_inference_steps": 9}, "make 3 steps"),
    ({"force_refresh_step_hint": 0}, "at least 1"),
    ({"force_refresh_step_policy": "twice"}, "'once', 'repeat'"),
    ({"batch_decision": "any"}, "'mean', 'all'"),
    ({"num_inference_steps": 0}, "at least 1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_wrong_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_cache_backend("cache_dit", options)


def test_empty_bins_are_refused() -> None:
    with pytest.raises(ConfigError):
        get_cache_backend("cache_dit", {"scm_compute_bins": [], "scm_cache_bins": []})


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        get_cache_backend("cache_dit", {"Fn_compute_blocks": 0, "thresh": 1, "warmup_interval": "x"})
    assert len(caught.value.problems) == 3


def test_the_defaults_are_those_of_vllm_omni() -> None:
    backend: Any = get_cache_backend("cache_dit")
    config = backend.config
    assert (config.Fn_compute_blocks, config.Bn_compute_blocks, config.max_warmup_steps) == (1, 0, 4)
    assert (config.residual_diff_threshold, config.max_continuous_cached_steps) == (0.24, 3)
    assert (config.max_cached_steps, config.enable_taylorseer, config.static) == (-1, False, False)
    assert cached(run(12)) == [4, 5, 6, 8, 9, 10]
