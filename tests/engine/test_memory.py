"""No tensor outlives its generation: neither in the slots nor anywhere else."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from dit_cache_backends import SpanBackend, enable_cache
from dit_cache_conformance.tiny import Tiny, build, build_transformer

from .runs import PIPELINES, inputs, output, run_told
from .strategies import LAYOUTS, always, planned
from .toys import ONE, Toy, adds, image

STEPS = 5
SEER: dict[str, Any] = {
    "enable_taylorseer": True,
    "taylorseer_order": 2,
    "residual_diff_threshold": 0.9,
    "max_warmup_steps": 1,
}


@contextmanager
def newborn() -> Iterator[Callable[[], int]]:
    """How many of the tensors that were made within are still alive."""

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.freeze()
    try:
        yield count
    finally:
        gc.unfreeze()


def seer(tiny: Tiny) -> SpanBackend:
    backend: Any = enable_cache(tiny.pipe, "cache_dit", **SEER)
    assert isinstance(backend, SpanBackend)
    return backend


def single_blocks(tiny: Tiny) -> SpanBackend:
    backend = planned("1100", "one block each")
    backend.enable(tiny.pipe)
    return backend


@pytest.mark.parametrize("enable", [seer, single_blocks])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_finished_run_leaves_no_tensor(name: str, enable: Callable[[Tiny], SpanBackend]) -> None:
    tiny = build(name)
    tiny.run(STEPS)
    with newborn() as alive:
        tiny.run(STEPS)
        of_the_scheduler = alive()
        backend = enable(tiny)
        for _ in range(2):
            tiny.run(STEPS)
            assert not backend.held_tensors()
            assert alive() == of_the_scheduler
        backend.disable()
        assert alive() == of_the_scheduler


@pytest.mark.parametrize("name", ["flux", "wan22", "qwen_image", "sd3"])
def test_tensors_are_held_within_a_run_and_not_after_its_last_step(name: str) -> None:
    tiny = build(name)
    backend = single_blocks(tiny)
    seen: list[int] = []

    def look(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        seen.append(len(backend.held_tensors()))
        return {}

    tiny.run(STEPS, callback_on_step_end=look)
    assert all(seen[:-1])
    assert seen[-1] == 0


@pytest.mark.parametrize("enable", [seer, single_blocks])
@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_an_interrupted_run_is_let_go_of_by_disable_and_by_the_next_run(
    name: str, enable: Callable[[Tiny], SpanBackend]
) -> None:
    tiny = build(name)
    tiny.run(STEPS)
    with newborn() as alive:
        interrupt_a_run(tiny)
        of_the_pipeline = alive()  # it keeps the timestep at which it was interrupted
        backend = enable(tiny)
        interrupt_a_run(tiny)
        assert backend.held_tensors()
        tiny.run(STEPS)
        assert alive() < of_the_pipeline
        interrupt_a_run(tiny)
        assert backend.held_tensors()
        backend.disable()
        assert alive() == of_the_pipeline


def interrupt_a_run(tiny: Tiny) -> None:
    def interrupt(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 3:
            raise KeyboardInterrupt
        return {}

    try:
        tiny.run(STEPS, callback_on_step_end=interrupt)
    except KeyboardInterrupt:
        return
    pytest.fail("the run was not interrupted")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["flux", "sd3", "hunyuan_video"])
def test_an_exception_inside_a_forward_leaves_no_tensor(name: str, layout: str) -> None:
    model = build_transformer(name)
    run = inputs(name, STEPS)
    output(model, run[0])
    backend = always(layout)
    backend.enable(model)
    with newborn() as alive:
        for made in (0, 2):
            run_told(backend, model, run[:made])
            fail_after_the_blocks(backend, model, run[made], made)
            assert not backend.held_tensors()
            assert alive() == 0


def fail_after_the_blocks(backend: SpanBackend, model: Any, arguments: dict[str, Any], step: int) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    hook = model.norm_out.register_forward_pre_hook(fail)
    try:
        with backend.step(step, STEPS):
            output(model, arguments)
    except ZeroDivisionError:
        return
    finally:
        hook.remove()
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("total", [STEPS, None])
def test_a_bare_run_of_known_length_is_let_go_of_at_its_end_and_any_at_refresh(total: int | None) -> None:
    model = build_transformer("sd3")
    run = inputs("sd3", STEPS)
    output(model, run[0])
    backend = always()
    backend.enable(model)
    with newborn() as alive:
        backend.refresh(model, total or 0)
        for arguments in run:
            output(model, arguments)
        assert bool(backend.held_tensors()) == bool(alive()) == (total is None)
        backend.refresh(model, 3)
        assert not backend.held_tensors()
        assert alive() == 0


def test_a_step_back_lets_go_of_the_generation_before() -> None:
    model = Toy(adds, adds, adds)
    backend = planned("1", "whole")
    backend.enable(model, card=ONE)
    for _ in range(3):
        with backend.step(0, 5, "cond"):
            model(image())
        assert len(backend.held_tensors()) == 1
    with backend.step(4, 5, "cond"):
        model(image())
    assert not backend.held_tensors()


def test_experts_of_which_only_one_made_the_last_step_leave_nothing() -> None:
    """Expert 1 makes all steps but the last, so that its own last step is no last step of the run."""
    tiny = build("wan22")
    tiny.pipe.register_to_config(boundary_ratio=0.3)
    tiny.run(2)
    for steps in (2, 3, 4):
        with newborn() as alive:
            tiny.run(steps)
            of_the_scheduler = alive()
            backend = single_blocks(tiny)
            tiny.run(steps)
            assert not backend.held_tensors()
            assert alive() == of_the_scheduler
            backend.disable()


def test_a_stream_that_never_changes_costs_no_memory() -> None:
    """Wan's text passes its blocks by: cache-dit keeps zeros for it."""
    model = build_transformer("wan")
    backend = planned("1")
    backend.enable(model)
    with backend.step(0, 5):
        output(model, inputs("wan", 5)[0])
    assert len(backend.held_tensors()) == 1


def test_a_pipeline_that_is_thrown_away_while_enabled_takes_everything_with_it() -> None:
    build("flux").run(2)
    with newborn() as alive:
        tiny = build("flux")
        backend = planned("10")
        backend.enable(tiny.pipe)
        interrupt_a_run(tiny)
        assert backend.is_enabled()
        del tiny
        gc.collect()
        assert not backend.is_enabled()
        backend.disable()
        assert alive() == 0


@pytest.mark.parametrize("enable", [seer, single_blocks])
def test_what_a_forward_made_goes_without_the_help_of_the_garbage_collector(
    enable: Callable[[Tiny], SpanBackend],
) -> None:
    tiny = build("wan")
    enable(tiny)
    waiting: list[int] = []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        alive = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
        gc.collect()
        waiting.append(alive - sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
        return tensors

    gc.collect()
    gc.disable()
    try:
        tiny.run(STEPS, callback_on_step_end=look)
    finally:
        gc.enable()
    assert waiting == [0] * STEPS
