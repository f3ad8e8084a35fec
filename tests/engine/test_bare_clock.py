"""A bare transformer: steps counted from its timestep, or told by the host, with any number of branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build_transformer

from .counting import executed
from .runs import TRANSFORMERS, inputs, output, places, run_plain, run_told, same
from .strategies import planned
from .toys import ONE, Toy, adds, image

STEPS = 6


def on_a_fresh_backend(name: str, run: list[dict[str, Any]], plan: str = "10") -> list[Tensor]:
    model = build_transformer(name)
    with planned(plan) as backend:
        backend.enable(model)
        return run_told(backend, model, run, "0")


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_steps_are_counted_from_the_timestep_argument(name: str, refresh: bool) -> None:
    model = build_transformer(name)
    runs = [inputs(name, STEPS), inputs(name, STEPS, seed=5), inputs(name, STEPS - 2)]
    alone = [on_a_fresh_backend(name, run) for run in runs]
    backend = planned("10")
    backend.enable(model)
    for run, expected in zip([*runs, runs[0]], [*alone, alone[0]], strict=True):
        if refresh:
            backend.refresh(model, len(run))
        assert same(run_plain(model, run), expected)
        total = len(run) if refresh else None
        assert set(map(tuple, places(backend).values())) == {tuple((step, total) for step in range(len(run)))}
        assert not refresh or not backend.held_tensors()


def test_a_refresh_without_a_known_number_of_steps_begins_anew_all_the_same() -> None:
    model = build_transformer("sd3")
    run = inputs("sd3", STEPS)
    expected = on_a_fresh_backend("sd3", run)
    backend = planned("10")
    backend.enable(model)
    run_plain(model, run[:3])
    backend.refresh(model, 0)
    assert same(run_plain(model, run), expected)


def test_a_run_of_known_length_that_is_followed_by_another_needs_no_second_refresh() -> None:
    model = build_transformer("sd3")
    run, other = inputs("sd3", STEPS), inputs("sd3", STEPS, seed=4)
    expected = on_a_fresh_backend("sd3", other)
    backend = planned("10")
    backend.enable(model)
    backend.refresh(model, STEPS)
    run_plain(model, run)
    assert same(run_plain(model, other), expected)
    assert [row.total for row in backend.summary().rows] == [STEPS] * STEPS


def test_a_timestep_given_by_position_is_read() -> None:
    model = build_transformer("sd3")
    run = inputs("sd3", STEPS)
    expected = on_a_fresh_backend("sd3", run)
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    backend = planned("10")
    backend.enable(model)
    found = [model(*[arguments[name] for name in names], return_dict=False)[0] for arguments in run]
    assert same(found, expected)


@pytest.mark.parametrize("calls", [2, 3])
def test_several_calls_at_one_timestep_are_branches_by_their_order(calls: int) -> None:
    model = build_transformer("sd3")
    runs = [inputs("sd3", STEPS, seed=seed) for seed in range(calls)]
    alone = [on_a_fresh_backend("sd3", run) for run in runs]
    backend = planned("10")
    backend.enable(model)
    found: list[list[Tensor]] = [[] for _ in runs]
    for step in range(STEPS):
        for branch, run in enumerate(runs):
            found[branch].append(output(model, run[step]))
    assert all(same(one, expected) for one, expected in zip(found, alone, strict=True))
    assert sorted(places(backend)) == [("transformer", str(n), "transformer_blocks") for n in range(calls)]


@pytest.mark.parametrize("branches", [("cond", "uncond"), ("cond", "image", "uncond")])
def test_told_branches_are_kept_apart_and_may_be_left_out_in_some_steps(branches: tuple[str, ...]) -> None:
    model = build_transformer("sd3")
    runs = {branch: inputs("sd3", STEPS, seed=seed) for seed, branch in enumerate(branches)}
    left_out = {("uncond", 2), ("uncond", 5), ("image", 0), ("image", 3)}
    backend = planned("10")
    backend.enable(model)
    plain = build_transformer("sd3")
    found: dict[str, list[Tensor]] = {branch: [] for branch in branches}
    expected: dict[str, list[Tensor]] = {}
    for branch in branches:
        steps = [step for step in range(STEPS) if (branch, step) not in left_out]
        with planned("10") as alone:
            alone.enable(plain)
            expected[branch] = []
            for step in steps:
                with alone.step(step, STEPS, branch):
                    expected[branch].append(output(plain, runs[branch][step]))
    for step in range(STEPS):
        for branch in branches:
            if (branch, step) not in left_out:
                with backend.step(step, STEPS, branch), executed(model) as ran:
                    found[branch].append(output(model, runs[branch][step]))
                assert len(ran) == (7 if len(found[branch]) == 1 else 1)
    assert all(same(found[branch], expected[branch]) for branch in branches)


def test_guidance_that_ends_early_leaves_the_conditional_branch_as_it_was() -> None:
    model = build_transformer("sd3")
    cond, uncond = inputs("sd3", STEPS), inputs("sd3", STEPS, seed=9)
    expected = on_a_fresh_backend("sd3", cond)
    backend = planned("10")
    backend.enable(model)
    found = []
    for step in range(STEPS):
        found.append(output(model, cond[step]))
        if step < 3:
            output(model, uncond[step])
    assert same(found, expected)


@pytest.mark.parametrize("total", [STEPS, None])
def test_a_told_step_that_goes_back_begins_a_new_generation(total: int | None) -> None:
    model = build_transformer("sd3")
    run, other = inputs("sd3", STEPS), inputs("sd3", STEPS, seed=2)
    expected = on_a_fresh_backend("sd3", other)
    backend = planned("10")
    backend.enable(model)
    for made in (1, 3, STEPS):
        for step in range(made):
            with backend.step(step, total, "cond"):
                output(model, run[step])
        found = []
        for step in range(STEPS):
            with backend.step(step, total, "cond"):
                found.append(output(model, other[step]))
        assert same(found, expected), made
        assert len(backend.summary().rows) == STEPS


@pytest.mark.parametrize("plan", ["10", "1010"])
def test_a_model_without_a_timestep_counts_its_calls(plan: str) -> None:
    model = Toy(adds, adds, adds)
    pictures = [image(seed=seed) for seed in range(5)]
    with planned(plan) as told:
        told.enable(model, card=ONE)
        expected = []
        for step, picture in enumerate(pictures):
            with told.step(step, 5):
                expected.append(model(picture)[0])
    backend = planned(plan)
    backend.enable(model, card=ONE)
    for _ in range(2):
        backend.refresh(model, 5)
        assert same([model(picture)[0] for picture in pictures], expected)
        assert [row.step for row in backend.summary().rows] == [0, 1, 2, 3, 4]
        assert not backend.held_tensors()


def test_a_model_without_a_timestep_and_with_two_calls_a_step_is_told_so_by_enable_separate_cfg() -> None:
    model = Toy(adds, adds, adds)
    backend: Any = enable_cache(
        model,
        "cache_dit",
        card=ONE,
        enable_separate_cfg=True,
        max_warmup_steps=1,
        residual_diff_threshold=2.0,
    )
    backend.refresh(model, 4)
    for step in range(4):
        model(image(seed=step))
        model(image(seed=step + 10))
    assert {key[1]: value for key, value in places(backend).items()} == {
        "0": [(step, 4) for step in range(4)],
        "1": [(step, 4) for step in range(4)],
    }
    assert [backend.summary().cached_steps(branch=branch) for branch in ("0", "1")] == [[1, 2, 3], [1, 2, 3]]


def test_an_exception_in_the_first_step_of_a_bare_run_leaves_nothing() -> None:
    model = build_transformer("sd3")
    run, other = inputs("sd3", STEPS), inputs("sd3", STEPS, seed=2)
    expected = on_a_fresh_backend("sd3", other)
    for made in (0, 1, 3):
        backend = planned("10")
        backend.enable(model)
        run_plain(model, run[:made])
        fail_in(model, run[made])
        assert not backend.held_tensors()
        assert same(run_plain(model, other), expected), made
        assert [row.branch for row in backend.summary().rows] == ["0"] * STEPS
        backend.disable()


def fail_in(model: nn.Module, arguments: dict[str, Any]) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    norm: nn.Module = model.norm_out  # type: ignore[assignment]
    hook = norm.register_forward_pre_hook(fail)
    try:
        output(model, arguments)
    except ZeroDivisionError:
        return
    finally:
        hook.remove()
    pytest.fail("nothing was raised")


def test_inputs_of_the_tiny_runs_really_differ() -> None:
    run = inputs("sd3", STEPS)
    assert not torch.equal(run[0]["hidden_states"], run[1]["hidden_states"])
