"""A second pipeline on the transformer of the enabled one: by its own scheduler, at any time, right and noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import Tiny, build

from .counting import executed
from .runs import kinds, places
from .strategies import planned

STEPS = 6


def second_pipeline(tiny: Tiny, own_scheduler: bool = True) -> Tiny:
    """Another pipeline of the same parts, with a scheduler of its own."""
    parts = dict(tiny.pipe.components)
    if own_scheduler:
        parts["scheduler"] = type(tiny.pipe.scheduler).from_config(tiny.pipe.scheduler.config)
    second = Tiny.__new__(Tiny)
    second.spec = tiny.spec
    second.pipe = type(tiny.pipe)(**parts)
    second.pipe.set_progress_bar_config(disable=True)
    return second


def cached_alone(name: str, seed: int = 0) -> Tensor:
    tiny = build(name)
    backend = planned("10")
    backend.enable(tiny.pipe)
    return tiny.run(STEPS, seed=seed)


def interrupt(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if step == 2:
        raise KeyboardInterrupt
    return kwargs


@pytest.mark.parametrize("before", ["nothing", "a whole run", "an interrupted run"])
@pytest.mark.parametrize("name", ["flux", "qwen_image", "sd3"])
def test_another_pipeline_with_its_own_scheduler_is_right_and_noticed(name: str, before: str) -> None:
    tiny = build(name)
    alone = cached_alone(name, seed=3)
    own = cached_alone(name)
    backend = planned("10")
    backend.enable(tiny.pipe)
    second = second_pipeline(tiny)
    if before == "a whole run":
        tiny.run(STEPS)
    if before == "an interrupted run":
        with pytest.raises(KeyboardInterrupt):
            tiny.run(STEPS, callback_on_step_end=interrupt)
    with executed(*tiny.transformers.values()) as ran:
        found = second.run(STEPS, seed=3)
    assert "scheduler_stands_still" in kinds(backend)
    depth = sum(tiny.spec.stacks.values())
    branches = len(tiny.spec.branches)
    # No step may use what another run has left. The first step may be seen twice until it is noticed.
    assert len(ran) in (branches * (depth + STEPS - 1), branches * (2 * depth + STEPS - 2))
    if len(ran) == branches * (depth + STEPS - 1):
        assert torch.equal(found, alone)
    assert torch.equal(tiny.run(STEPS), own)
    assert [row.total for row in backend.summary().rows] == [STEPS] * STEPS * branches
    assert kinds(backend) == {}


def test_a_mask_works_again_after_another_pipeline_has_used_the_transformer() -> None:
    tiny = build("flux")
    backend: Any = enable_cache(
        tiny.pipe, "cache_dit", scm_steps_mask_policy="ultra", scm_steps_policy="static", max_warmup_steps=1
    )
    tiny.run(8)
    expected = backend.summary().cached_steps()
    assert expected
    second = second_pipeline(tiny)
    for _ in range(2):
        second.run(8)
        tiny.run(8)
        assert backend.summary().cached_steps() == expected


def test_a_pipeline_that_shares_the_scheduler_too_is_read_like_the_first() -> None:
    tiny = build("flux")
    own = cached_alone("flux")
    backend = planned("10")
    backend.enable(tiny.pipe)
    second = second_pipeline(tiny, own_scheduler=False)
    assert torch.equal(second.run(STEPS), own)
    assert places(backend) == {
        ("transformer", "cond", "transformer_blocks"): [(step, STEPS) for step in range(STEPS)]
    }
    assert kinds(backend) == {}


def test_alternating_steps_of_two_pipelines_on_one_transformer_never_use_each_others_residuals() -> None:
    """The second pipeline makes a whole run of its own inside the first one's callback."""
    tiny = build("flux")
    plain = tiny.run(4)
    second = second_pipeline(tiny)
    plain_second = second.run(3, seed=5)
    inner: list[Tensor] = []

    def nested(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        inner.append(second.run(3, seed=5))
        return kwargs

    backend = planned("10")
    backend.enable(tiny.pipe)
    with backend.session("outer"):

        def in_a_session(*arguments: Any) -> dict[str, Any]:
            with backend.session("inner"):
                return nested(*arguments)

        found = tiny.run(4, callback_on_step_end=in_a_session)
    assert torch.equal(found, cached_run(4, "10"))
    assert not torch.equal(found, plain)
    # At its first run the second pipeline is noticed at its second step, which then runs in full as well.
    assert torch.equal(inner[0], cached_run(3, "110", seed=5))
    assert all(torch.equal(one, cached_run(3, "10", seed=5)) for one in inner[1:])
    assert not torch.equal(inner[0], plain_second)


def cached_run(steps: int, plan: str, seed: int = 0) -> Tensor:
    tiny = build("flux")
    backend = planned(plan)
    backend.enable(tiny.pipe)
    return tiny.run(steps, seed=seed)
