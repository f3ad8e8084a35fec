"""Each decision of `tea_cache` on toys whose signal is known, for any options, against the rule written down again."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_cache_backends import enable_cache
from dit_cache_backends.models.signals import Signal

from ..engine.counting import executed
from ..engine.runs import STILL, kinds, relative
from ..engine.toys import ONE, Toy, adds, card, image
from .tea_cache_reference import RULES

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS, DEPTH = 16, 3


def entry(block: Any, given: Any) -> Tensor:
    signal: Tensor = given("hidden_states")
    return signal


READ = dataclasses.replace(ONE, signals=(Signal("entry", entry),))


def drifting(moves: list[float]) -> list[Tensor]:
    """Inputs whose differences from step to step are `moves`, from the second on."""
    now = torch.ones(1, 4, 8)
    inputs = [now]
    for move in moves[1:]:
        now = now * (1 + move)
        inputs.append(now)
    return inputs


def run(model: Toy, inputs: list[Tensor], told: bool = True, **options: Any) -> tuple[list[int], Any]:
    """The steps at which no block ran, counted from outside, and the backend."""
    backend: Any = enable_cache(model, "tea_cache", card=READ, **options)
    cached = []
    for step, tensor in enumerate(inputs):
        with backend.step(step, len(inputs) if told else None), executed(model) as ran:
            model(tensor)
        assert len(ran) in (0, DEPTH)
        if not len(ran):
            cached.append(step)
    assert cached == backend.summary().cached_steps()
    return cached, backend


def toy() -> Toy:
    return Toy(*[adds] * DEPTH)


def expected_run(
    moves: list[float], options: dict[str, Any]
) -> tuple[list[int], dict[int, float], dict[str, int]]:
    """The rule with every option: cached steps, the sums that were compared, and how often something odd was seen."""
    rule = options["rule"]
    presets = {
        "vllm_omni": (1, 1.0, -1),
        "official": (1, -1, -1),
        "sglang": (5, -1, -1),
        "comfyui": (1, 1.0, 3),
    }
    start, end, most = presets[rule]
    start = start if options["start_step"] is None else options["start_step"]
    end = end if options["end_step"] is None else options["end_step"]
    most = most if options["max_continuous_cached_steps"] is None else options["max_continuous_cached_steps"]
    n = len(moves)
    first = start * n if isinstance(start, float) else start
    stop = end * n if isinstance(end, float) else n + end if end < 0 else end
    low, high = options["coefficients_range"] or (-np.inf, np.inf)
    cached: list[int] = []
    sums: dict[int, float] = {}
    odd = {"outside_coefficients_range": 0, "negative_rescaled_difference": 0}
    total, row = 0.0, 0
    for step, move in enumerate(moves):
        skip = False
        if step >= max(first, 1) and step < stop and not 0 <= most <= row:
            value = float(np.poly1d(options["coefficients"])(move))
            if not low <= move <= high:
                odd["outside_coefficients_range"] += 1
            else:
                odd["negative_rescaled_difference"] += value < 0
                if value >= 0 or rule == "vllm_omni":
                    sums[step] = total = total + abs(value)
                    skip = total < options["rel_l1_thresh"]
        if skip:
            cached.append(step)
            row += 1
        else:
            total, row = 0.0, 0
    return cached, sums, {kind: count for kind, count in odd.items() if count}


def random_options(draw: random.Random) -> dict[str, Any]:
    return {
        "rule": draw.choice(list(RULES)),
        "rel_l1_thresh": draw.choice([0.0213, 0.1071, 0.3117, 0.6133, 5.0]),
        "coefficients": draw.choice(
            [[1.0, 0.0], [2.0, 0.5, 0.01], [-3.0, 0.9, 0.02], [9.0, -4.0, 1.0, -0.05, 0.01]]
        ),
        "coefficients_range": draw.choice([None, None, [0.03, 0.3]]),
        "start_step": draw.choice([None, None, 0, 3, 0.2]),
        "end_step": draw.choice([None, None, -3, 12, 0.7, 1.0]),
        "max_continuous_cached_steps": draw.choice([None, None, -1, 0, 1, 2]),
    }


@pytest.mark.parametrize("seed", range(60))
def test_any_options_give_the_decisions_that_the_rule_gives(seed: int) -> None:
    draw = random.Random(seed)
    options = random_options(draw)
    moves = [0.0] + [draw.choice([0.01, 0.05, 0.1, 0.2, 0.35]) for _ in range(STEPS - 1)]
    cached, backend = run(toy(), drifting(moves), **options)
    steps, sums, odd = expected_run(moves, options)
    assert cached == steps
    assert backend.summary().diffs() == pytest.approx(sums, rel=1e-4, abs=1e-7)
    found = kinds(backend)
    assert {kind: found.get(kind, 0) for kind in odd} == odd


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_differ_as_the_projects_do(rule: str) -> None:
    """A long slow drift: the first and last steps, the window, the cap, each where its project has it."""
    moves = [0.0] + [0.01] * (STEPS - 1)
    cached, _ = run(toy(), drifting(moves), rule=rule, coefficients="identity", rel_l1_thresh=1.0)
    between = {"vllm_omni": (1, STEPS), "official": (1, STEPS - 1), "sglang": (5, STEPS - 1)}
    expected = (
        [step for step in range(STEPS) if step % 4] if rule == "comfyui" else list(range(*between[rule]))
    )
    assert cached == expected == RULES[rule](moves, [1.0, 0.0], 1.0)


def test_a_difference_is_taken_to_the_step_before_and_not_to_the_last_computed_one() -> None:
    """0.1 at each step: to the last computed one it would grow to 0.33 by the third, and the sum to 0.64."""
    moves = [0.0] + [0.1] * 6
    _, backend = run(toy(), drifting(moves), coefficients="identity", rel_l1_thresh=0.35)
    assert backend.summary().cached_steps() == [1, 2, 3, 5, 6]
    assert backend.summary().diffs()[3] == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_threshold_0_never_skips_and_changes_no_bit(threshold: float) -> None:
    inputs = drifting([0.0] * 6)
    model = toy()
    plain = [model(each)[0] for each in inputs]
    backend: Any = enable_cache(
        model, "tea_cache", card=READ, coefficients="identity", rel_l1_thresh=threshold
    )
    for step, each in enumerate(inputs):
        with backend.step(step, 6):
            assert torch.equal(model(each)[0], plain[step])
    assert backend.summary().blocks_skipped == 0
    assert not backend.summary().diffs()
    assert not backend.held_tensors()


def test_a_still_input_is_skipped_after_its_first_step_and_reproduced() -> None:
    model = toy()
    still = image()
    plain = model(still)[0]
    backend: Any = enable_cache(model, "tea_cache", card=READ, coefficients="identity")
    for step in range(5):
        with backend.step(step, 5):
            assert relative(model(still)[0], plain) <= STILL
    assert backend.summary().cached_steps() == [1, 2, 3, 4]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_signal_that_is_not_finite_runs_its_step_and_the_next_and_is_counted(broken: float) -> None:
    inputs = [image()] * 7
    inputs[3] = torch.full_like(inputs[3], broken)
    cached, backend = run(toy(), inputs, coefficients="identity")
    assert cached == [1, 2, 5, 6]
    assert kinds(backend)["non_finite_difference"] == 2


def test_a_signal_of_another_shape_runs_its_step() -> None:
    inputs = [image(batch=2)] * 3 + [image(batch=1)] * 3
    cached, _ = run(toy(), inputs, coefficients="identity")
    assert cached == [1, 2, 4, 5]


def test_a_negative_value_runs_the_step_where_the_projects_let_it_lower_the_sum() -> None:
    moves = [0.0, 0.02, 0.4, 0.02, 0.02]
    options: dict[str, Any] = {"coefficients": [-1.0, 0.3, 0.0], "rel_l1_thresh": 0.03}
    raw, backend = run(toy(), drifting(moves), rule="official", end_step=1.0, **options)
    assert raw == [1, 3, 4]
    assert kinds(backend)["negative_rescaled_difference"] == 1
    assert "the blocks ran" in str(backend.summary())
    absolute, backend = run(toy(), drifting(moves), rule="vllm_omni", **options)
    assert absolute == [1, 3, 4]  # |p(0.4)| = 0.04
    assert kinds(backend)["negative_rescaled_difference"] == 1
    assert "its size was taken" in str(backend.summary())


def test_a_threshold_that_no_difference_can_stay_below_is_told() -> None:
    cached, backend = run(toy(), drifting([0.0] * 4), coefficients="flux_dev", rel_l1_thresh=0.17)
    assert not cached
    assert kinds(backend)["threshold_never_met"] == 1
    _, backend = run(toy(), drifting([0.0] * 4), coefficients="flux_dev", rel_l1_thresh=0.19)
    assert "threshold_never_met" not in kinds(backend)


def test_a_window_from_the_end_of_a_run_of_unknown_length_is_told() -> None:
    cached, backend = run(toy(), drifting([0.0] * 5), told=False, rule="official", coefficients="identity")
    assert cached == [1, 2, 3, 4]
    assert kinds(backend)["steps_unknown"] == 1
    _, backend = run(toy(), drifting([0.0] * 5), told=False, coefficients="identity")
    assert "steps_unknown" not in kinds(backend)


def test_stacks_other_than_the_first_do_as_it_does_and_are_told_where_it_is_not_served() -> None:
    model = Toy(*[adds] * 4)
    model.first, model.second = model.blocks[:2], model.blocks[2:]
    two = dataclasses.replace(
        card(path="first"),
        stacks=(*card(path="first").stacks, *card(path="second").stacks),
        signals=READ.signals,
    )
    moves = [0.0, 0.1, 0.1, 0.1, 0.1, 0.1]
    backend: Any = enable_cache(model, "tea_cache", card=two, coefficients="identity", rel_l1_thresh=0.25)
    for step, tensor in enumerate(drifting(moves)):
        with backend.step(step, len(moves)), executed(model) as ran:
            model(tensor)
        assert len(set(ran.take())) in (0, 8)  # each block is in two lists here
    for stack in ("first", "second"):
        assert backend.summary().cached_steps(stack=stack) == [1, 2, 4, 5]
    backend.disable()
    backend = enable_cache(
        model,
        "cache_dit",
        card=two,
        residual_diff_threshold=0.0,
        overrides={"second": {"cache_backend": "tea_cache", "coefficients": "identity"}},
    )
    for step, tensor in enumerate(drifting(moves)):
        with backend.step(step, len(moves)):
            model(tensor)
    assert not backend.summary().blocks_skipped
    assert kinds(backend)["first_stack_silent"] == len(moves)
