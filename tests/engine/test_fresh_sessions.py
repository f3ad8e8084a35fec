"""A new generation remembers nothing: after an exception, an interrupt, another length, resolution or batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dit_cache_backends import SpanBackend, enable_cache
from dit_cache_conformance.tiny import Tiny, build

from .counting import block_lists
from .runs import kinds
from .strategies import planned

STEPS = 5
WITH_CALLBACK = ("flux", "qwen_image", "sd3", "wan22", "cogvideox", "hunyuan_video")


def dynamic(tiny: Tiny) -> SpanBackend:
    backend: Any = enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.9, max_warmup_steps=1)
    assert isinstance(backend, SpanBackend)
    return backend


def seer(tiny: Tiny) -> SpanBackend:
    backend: Any = enable_cache(
        tiny.pipe,
        "cache_dit",
        scm_compute_bins=[2, 1],
        scm_cache_bins=[1, 1],
        scm_steps_policy="static",
        enable_taylorseer=True,
    )
    assert isinstance(backend, SpanBackend)
    return backend


def by_plan(tiny: Tiny) -> SpanBackend:
    backend = planned("10")
    backend.enable(tiny.pipe)
    return backend


ENABLE: list[Callable[[Tiny], SpanBackend]] = [by_plan, dynamic, seer]


@functools.cache
def expected(name: str, enable: Callable[[Tiny], SpanBackend]) -> torch.Tensor:
    """What a fresh backend on a fresh pipeline gives."""
    tiny = build(name)
    backend = enable(tiny)
    latents = tiny.run(STEPS, seed=1)
    assert backend.summary().blocks_skipped
    return latents


def raise_in_a_block(tiny: Tiny, calls: int, error: type[BaseException]) -> None:
    """Run until the middle block of a transformer is called for the ``calls``-th time."""
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen >= calls:
            raise error

    hooks = [
        next(iter(block.children())).register_forward_pre_hook(count)
        for model in tiny.transformers.values()
        for block in next(iter(block_lists(model).values()))[:1]
    ]
    with pytest.raises(error):
        tiny.run(STEPS)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("enable", ENABLE)
@pytest.mark.parametrize("name", ["flux", "wan22", "dit"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_inside_the_transformer(
    name: str, enable: Callable[[Tiny], SpanBackend], error: type[BaseException]
) -> None:
    tiny = build(name)
    backend = enable(tiny)
    for calls in (1, 2, 4):
        raise_in_a_block(tiny, calls, error)
        assert not backend.held_tensors()
        assert torch.equal(tiny.run(STEPS, seed=1), expected(name, enable)), calls
        assert backend.summary().rows[0].step == 0
        assert kinds(backend) == {}


@pytest.mark.parametrize("enable", ENABLE)
@pytest.mark.parametrize("name", WITH_CALLBACK)
def test_after_an_interrupt_between_two_steps(name: str, enable: Callable[[Tiny], SpanBackend]) -> None:
    tiny = build(name)
    backend = enable(tiny)
    for step in (0, 2):

        def interrupt(pipe: Any, at: int, *_: Any, step: int = step) -> dict[str, Any]:
            if at == step:
                raise KeyboardInterrupt
            return {}

        with pytest.raises(KeyboardInterrupt):
            tiny.run(STEPS, callback_on_step_end=interrupt)
        assert torch.equal(tiny.run(STEPS, seed=1), expected(name, enable)), step
        assert kinds(backend) == {}


def test_an_interrupt_that_ends_the_run_quietly_is_no_trouble_either() -> None:
    """Diffusers' own way: ``pipe._interrupt = True`` skips the rest of the steps."""
    tiny = build("flux")
    backend = by_plan(tiny)

    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step >= 1
        return {}

    tiny.run(STEPS, callback_on_step_end=stop)
    assert not backend.held_tensors()
    assert torch.equal(tiny.run(STEPS, seed=1), expected("flux", by_plan))


@pytest.mark.parametrize("enable", ENABLE)
@pytest.mark.parametrize(
    "first",
    [
        {"num_inference_steps": 3},
        {"num_inference_steps": 9},
        {"height": 32, "width": 96},
        {"batch": 2},
        {"seed": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["flux", "wan22", "sd3"])
def test_after_a_run_of_another_length_resolution_batch_or_seed(
    name: str, enable: Callable[[Tiny], SpanBackend], first: dict[str, Any]
) -> None:
    tiny = build(name)
    backend = enable(tiny)
    steps = first.get("num_inference_steps", STEPS)
    tiny.run(steps, **{key: value for key, value in first.items() if key != "num_inference_steps"})
    assert torch.equal(tiny.run(STEPS, seed=1), expected(name, enable))
    assert {row.total for row in backend.summary().rows} == {STEPS}


def test_weights_that_change_between_two_runs_are_used() -> None:
    tiny = build("flux")
    by_plan(tiny)
    tiny.run(STEPS)
    other = build("flux")
    for model in (tiny.pipe.transformer, other.pipe.transformer):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    by_plan(other)
    assert torch.equal(tiny.run(STEPS), other.run(STEPS))


def test_enabling_again_with_other_options_begins_anew() -> None:
    tiny = build("flux")
    first = by_plan(tiny)
    expected_first = tiny.run(STEPS, seed=1)
    first.disable()
    second = planned("1")
    second.enable(tiny.pipe)
    plain = tiny.run(STEPS, seed=1)
    assert torch.equal(plain, build("flux").run(STEPS, seed=1))
    second.disable()
    first.enable(tiny.pipe)
    assert torch.equal(tiny.run(STEPS, seed=1), expected_first)


def test_a_transformer_exchanged_in_the_pipeline_runs_plain_and_the_old_one_can_be_let_go() -> None:
    tiny, other = build("sd3"), build("sd3")
    plain = tiny.run(STEPS)
    backend = by_plan(tiny)
    old: nn.Module = tiny.pipe.transformer
    base = type(old).__mro__[1]
    tiny.pipe.transformer = other.pipe.transformer
    assert torch.equal(tiny.run(STEPS), plain)
    backend.disable()
    assert type(old) is base
