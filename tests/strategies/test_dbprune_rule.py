"""Each decision of `dbprune` against the rule of DBPrune, written down a second time from its description."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import enable_cache

from ..engine.counting import executed
from ..engine.runs import relative
from ..engine.toys import BOTH, ONE, Toy, adds, adds_to_both, card, image, text, writes_into

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS, DEPTH, JUMP = 14, 8, 9
Picture = Callable[[int], Tensor]


def picture(step: int, seed: int = 1, speed: float = 0.06) -> Tensor:
    """A drifting input that jumps once."""
    return image(seed=seed) + (speed * step + 3.0 * (step >= JUMP)) * image(seed=seed + 4)


@dataclass
class Expected:
    """A run by the rule, by step: blocks pruned, differences in order, what comes out."""

    pruned: list[list[int]] = field(default_factory=list)
    differences: list[list[float]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def difference(before: Tensor, now: Tensor, options: dict[str, Any]) -> float:
    every = options.get("downsample_factor", 1)
    p, c = before[:, ::every], now[:, ::every]
    if options.get("batch_decision") == "all":
        return max(float((a - b).abs().mean() / a.abs().mean()) for a, b in zip(p, c, strict=True))
    return float((p - c).abs().mean() / p.abs().mean())


def threshold_in(step: list[float], options: dict[str, Any]) -> float:
    """The threshold, with what was compared in the step before."""
    own: float = options["residual_diff_threshold"]
    positive = [each for each in step[:5] if each > 0]
    if not options["enable_dynamic_prune_threshold"] or not positive:
        return own
    raised: float = options["dynamic_prune_threshold_relax_ratio"] * sum(positive) / len(positive)
    cap = options.get("max_dynamic_prune_threshold")
    return max(own, raised) if raised < (2 * own if cap is None else cap) else own


def spared(options: dict[str, Any]) -> set[int]:
    """Blocks that always run."""
    back = {DEPTH - 1 - number for number in range(options["Bn_compute_blocks"])}
    return {*range(options["Fn_compute_blocks"]), *options["non_prune_block_ids"], *back}


def expected_run(
    options: dict[str, Any], model: Toy, inputs: Picture, shared: list[dict[int, float]] | None = None
) -> Expected:
    """The rule of DBPrune on the main stream of a toy, from its description.

    `shared`: the differences of another branch, by step and block, which stand for this one's own.
    """
    kept = spared(options)
    mask, static = options["steps_computation_mask"], options["steps_computation_policy"] == "static"
    hint, once = options["force_refresh_step_hint"], options["force_refresh_step_policy"] == "once"
    found = Expected()
    start, restarts = 0, 0
    held: dict[int, tuple[Tensor, Tensor]] = {}
    touched: list[int] = []
    for step in range(STEPS):
        if hint is not None and step - start == hint and not (once and restarts):
            start, restarts, held, touched = step, restarts + 1, {}, []
        at = step - start
        warmup = options["max_warmup_steps"]
        if mask is not None:
            warmup = min(warmup, [*mask, 0].index(0))
        in_row = 0
        while step - 1 - in_row in touched:
            in_row += 1
        must = (
            at in range(0, warmup, options["warmup_interval"])
            or (mask is not None and (at >= len(mask) or mask[at] == 1))
        )  # fmt: skip
        free = not must and mask is not None and static
        must |= not free and (
            0 <= options["max_cached_steps"] <= len(touched)
            or 0 <= options["max_continuous_cached_steps"] <= in_row
            or options["residual_diff_threshold"] <= 0
        )
        h = inputs(step)
        pruned: list[int] = []
        taken: list[float] = []
        for number, block in enumerate(model.blocks):
            skip = number not in kept and not must and number in held
            if skip and not free:
                threshold = threshold_in(taken, options)
                if options["residual_diff_threshold"] >= 1:
                    taken.append(-1.0)
                else:
                    own = difference(held[number][0], h, options)
                    taken.append(own if shared is None else shared[step].get(number, own))
                    skip = taken[-1] < threshold
            if skip:
                pruned.append(number)
                h = h + held[number][1]
            else:
                after = block(h)
                if number not in kept:
                    held[number] = (h, after - h)
                h = after
        if pruned:
            touched.append(step)
        found.pruned.append(pruned)
        found.differences.append(taken)
        found.outputs.append(h)
    return found


def random_options(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    return {
        "Fn_compute_blocks": draw.choice([0, 1, 2]),
        "Bn_compute_blocks": draw.choice([0, 0, 1]),
        "non_prune_block_ids": draw.choice([[], [], [3], [2, 4]]),
        "max_warmup_steps": draw.choice([0, 1, 3, 6]),
        "warmup_interval": draw.choice([1, 1, 2, 3]),
        "max_cached_steps": draw.choice([-1, -1, 0, 4]),
        "max_continuous_cached_steps": draw.choice([-1, -1, 0, 1, 3]),
        "residual_diff_threshold": draw.choice([0.0, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.5, 1.0]),
        "steps_computation_mask": draw.choice(
            [None, None, [draw.choice([0, 1]) for _ in range(draw.choice([9, 14, 20]))]]
        ),
        "steps_computation_policy": draw.choice(["static", "dynamic"]),
        "force_refresh_step_hint": draw.choice([None, None, 5, 8]),
        "force_refresh_step_policy": draw.choice(["once", "repeat"]),
        "batch_decision": draw.choice(["mean", "mean", "all"]),
        "downsample_factor": draw.choice([1, 1, 2, 3]),
        "dynamic_prune_threshold_relax_ratio": draw.choice([1.25, 1.6]),
    } | draw.choice(
        [
            {"enable_dynamic_prune_threshold": False},
            {"enable_dynamic_prune_threshold": True},
            {"enable_dynamic_prune_threshold": True},
            {"enable_dynamic_prune_threshold": True, "max_dynamic_prune_threshold": draw.choice([0.15, 0.8])},
        ]
    )


def check(backend: Any, model: Toy, options: dict[str, Any], inputs: Picture) -> list[list[int]]:
    """Run the toy, compare each step with the rule, and give the blocks that were pruned."""
    plain = Toy(*[adds] * DEPTH)
    expected = expected_run(options, plain, inputs)
    for step in range(STEPS):
        with backend.step(step, STEPS), executed(model) as ran:
            output = model(inputs(step))[0]
        missing = sorted({*range(DEPTH)} - {number for _, number in ran.blocks})
        assert missing == expected.pruned[step], step
        assert relative(output, expected.outputs[step]) <= 1e-6, step
    rows = backend.summary().rows
    assert [row.differences for row in rows] == [pytest.approx(d, rel=1e-4) for d in expected.differences]
    assert list(backend.summary().pruned_blocks().values()) == [len(each) for each in expected.pruned]
    return expected.pruned


@pytest.mark.parametrize("seed", range(100))
def test_any_options_give_the_blocks_the_differences_and_the_outputs_that_the_rule_gives(seed: int) -> None:
    options = random_options(seed)
    model = Toy(*[adds] * DEPTH)
    check(enable_cache(model, "dbprune", card=ONE, **options), model, options, picture)


def test_the_random_options_prune_steps_in_part() -> None:
    """Else the rule test would say little about one block and the next."""
    partial = 0
    for seed in range(100):
        options = random_options(seed)
        could = DEPTH - len(spared(options))
        pruned = expected_run(options, Toy(*[adds] * DEPTH), picture).pruned
        partial += sum(0 < len(each) < could for each in pruned)
    assert partial > 60


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("seed", range(0, 80, 8))
def test_a_model_that_writes_into_its_stream_is_decided_as_one_that_does_not(seed: int, mode: Any) -> None:
    options = random_options(seed)
    with mode():
        model = Toy(*[writes_into] * DEPTH)
        backend = enable_cache(model, "dbprune", card=card(writes_in_place=True), **options)
        check(backend, model, options, picture)


FREE: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "non_prune_block_ids": [],
    "max_warmup_steps": 1,
    "warmup_interval": 1,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 0.1,
    "steps_computation_mask": None,
    "steps_computation_policy": "dynamic",
    "force_refresh_step_hint": None,
    "force_refresh_step_policy": "once",
    "enable_dynamic_prune_threshold": True,
    "dynamic_prune_threshold_relax_ratio": 1.25,
}


@pytest.mark.parametrize("ratio", [1.1, 1.5])
@pytest.mark.parametrize("percent", range(3, 20))
def test_a_threshold_rises_by_the_first_five_differences_of_the_step_itself(
    percent: int, ratio: float
) -> None:
    """None from the step before, and no sixth."""
    options = FREE | {
        "residual_diff_threshold": percent / 100,
        "dynamic_prune_threshold_relax_ratio": ratio,
        "max_dynamic_prune_threshold": 1.0,
        "Fn_compute_blocks": 0,
    }
    model = Toy(*[adds] * DEPTH)
    check(enable_cache(model, "dbprune", card=ONE, **options), model, options, picture)


def branches(step: int) -> dict[str, Tensor]:
    return {"cond": picture(step), "uncond": picture(step, seed=7, speed=0.1)}


def run_branches(**options: Any) -> tuple[dict[str, list[Tensor]], Any]:
    model = Toy(*[adds] * DEPTH)
    backend: Any = enable_cache(model, "dbprune", card=ONE, **options)
    outputs: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    for step in range(STEPS):
        for branch, here in branches(step).items():
            with backend.step(step, STEPS, branch):
                outputs[branch].append(model(here)[0])
    return outputs, backend.summary()


def test_each_branch_goes_as_if_it_were_alone() -> None:
    """Also where the threshold rises: by the differences of the branch at hand."""
    outputs, summary = run_branches(**FREE)
    assert summary.pruned_blocks(branch="cond") != summary.pruned_blocks(branch="uncond")
    for branch in ("cond", "uncond"):
        alone = expected_run(FREE, Toy(*[adds] * DEPTH), lambda step, name=branch: branches(step)[name])  # type: ignore[misc]
        assert [*summary.pruned_blocks(branch=branch).values()] == [len(each) for each in alone.pruned]
        for found, expected in zip(outputs[branch], alone.outputs, strict=True):
            assert relative(found, expected) <= 1e-6


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_second_branch_takes_the_differences_of_the_first_where_it_is_told_to(dynamic: bool) -> None:
    options = FREE | {"enable_dynamic_prune_threshold": dynamic}
    outputs, summary = run_branches(cfg_diff_compute_separate=False, **options)
    first = expected_run(options, Toy(*[adds] * DEPTH), lambda step: branches(step)["cond"])
    shared = [dict(zip(range(1, DEPTH), each, strict=False)) for each in first.differences]
    second = expected_run(options, Toy(*[adds] * DEPTH), lambda step: branches(step)["uncond"], shared)
    assert second.pruned == first.pruned
    assert sum(map(len, second.pruned)) > STEPS
    assert [*summary.pruned_blocks(branch="uncond").values()] == [len(each) for each in second.pruned]
    for found, expected in zip(outputs["uncond"], second.outputs, strict=True):
        assert relative(found, expected) <= 1e-6
    rows = {branch: [r.differences for r in summary.rows if r.branch == branch] for branch in outputs}
    assert rows["uncond"] == rows["cond"]


def test_the_text_stream_is_carried_on_with_the_main_one() -> None:
    """Pruned to the last block, both streams are what came in and what each block added when it last ran."""
    model = Toy(*[adds_to_both] * DEPTH)
    h, e = image(), text()
    added_h, added_e = 0.0 * h, 0.0 * e
    for block in model.blocks:
        after_h, after_e = block(h, e)
        added_h, added_e = added_h + (after_h - h), added_e + (after_e - e)
        h, e = after_h, after_e
    backend: Any = enable_cache(
        model, "dbprune", card=BOTH, residual_diff_threshold=1.0, max_warmup_steps=1, Fn_compute_blocks=0
    )
    with backend.step(0, 9):
        model(image(), text())
    with backend.step(1, 9), executed(model) as ran:
        found = model(image(seed=8), text(seed=9))[0]
    assert not ran
    expected = image(seed=8) + added_h + (text(seed=9) + added_e).mean(1, keepdim=True)
    assert relative(found, expected) <= 1e-6
