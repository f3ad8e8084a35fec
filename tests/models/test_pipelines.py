"""Whole pipelines: steps, totals, branches and cached steps are what the pipeline really did, seen from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build_transformer, transformer_inputs
from dit_cache_conformance.tiny.more_pipelines import ALL_PIPELINES, build

from ..engine.counting import executed
from ..engine.runs import kinds
from ..engine.strategies import never
from .watching import STEPS, a_mask, check_run, masked, plain, skips, watched

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # KDPM2

CHUNKED = "anyflow_far"
NAMES = tuple(name for name in ALL_PIPELINES if name != CHUNKED)
HALF = {"flux_picture", "sd3_picture", "wan_video"}
"""They start halfway, from a picture or a video."""


def test_there_are_at_least_34_pipelines() -> None:
    assert len(ALL_PIPELINES) >= 34


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wan22"])
def test_what_the_summary_says_is_what_the_pipeline_did(name: str) -> None:
    tiny = build(name)
    expected, seen = plain(tiny)
    total = seen.steps(tiny)
    assert total == (STEPS // 2 if name in HALF else STEPS)
    calls = len(tiny.spec.branches)
    for step in range(total):
        assert len({call.time for call in seen.calls[step * calls : (step + 1) * calls]}) == 1

    backend = never("all but the first")
    backend.enable(tiny.pipe)
    with watched(tiny) as again:
        assert torch.equal(tiny.run(STEPS), expected)
    assert [call.blocks for call in again.calls] == [call.blocks for call in seen.calls]
    backend.disable()

    backend = masked(tiny, a_mask(total))
    with watched(tiny) as cached:
        found = tiny.run(STEPS)
    check_run(tiny, cached, backend, a_mask(total))
    assert bool(found.isfinite().all())
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)
    backend.disable()
    assert torch.equal(tiny.run(STEPS), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"wan22", *HALF}])
def test_a_second_run_with_another_number_of_steps_remembers_nothing(name: str) -> None:
    tiny = build(name)
    backend = masked(tiny, a_mask(5))
    alone = tiny.run(5)
    tiny.run(7)
    assert {row.total for row in backend.summary().rows} == {7}
    with watched(tiny) as seen:
        assert torch.equal(tiny.run(5), alone)
    check_run(tiny, seen, backend, a_mask(5))


def test_two_experts_count_on_and_each_runs_its_first_step() -> None:
    tiny = build("wan22")
    steps = 12
    _, seen = plain(tiny, num_inference_steps=steps)
    high = len(seen.of("transformer")) // 2
    assert 0 < high < steps
    mask = [1] * (high - 1) + [0] * (steps - high + 1)
    backend = masked(tiny, mask)
    with watched(tiny) as cached:
        tiny.run(steps)
    for number, call in enumerate(cached.calls):
        step = number // 2
        assert call.transformer == ("transformer" if step < high else "transformer_2")
        assert call.blocks == (1 if skips(mask, step) and step != high else 6), step
    summary = backend.summary()
    for branch in ("cond", "uncond"):
        assert summary.cached_steps("transformer", branch) == [high - 1]
        assert summary.cached_steps("transformer_2", branch) == list(range(high + 1, steps))
        rows = [row for row in summary.rows if row.branch == branch]
        assert [row.step for row in rows] == list(range(steps))


SCHEDULERS = [
    ("sd3", "FlowMatchHeunDiscreteScheduler", 11),
    ("pixart", "HeunDiscreteScheduler", 11),
    ("pixart", "KDPM2DiscreteScheduler", 11),
    ("pixart", "PNDMScheduler", 15),
    ("pixart", "DDIMScheduler", 6),
    ("pixart", "EulerDiscreteScheduler", 6),
    ("pixart", "DEISMultistepScheduler", 6),
    ("pixart", "UniPCMultistepScheduler", 6),
    ("dit", "PNDMScheduler", 15),
    ("dit", "HeunDiscreteScheduler", 11),
    ("cogvideox", "CogVideoXDPMScheduler", 6),
    ("wan", "UniPCMultistepScheduler", 6),
    ("sana", "FlowMatchEulerDiscreteScheduler", 6),
]


@pytest.mark.parametrize(("name", "scheduler", "evaluations"), SCHEDULERS)
def test_a_step_is_an_evaluation_of_the_model_with_any_scheduler(
    name: str, scheduler: str, evaluations: int
) -> None:
    import diffusers

    tiny = build(name)
    tiny.pipe.scheduler = getattr(diffusers, scheduler)()
    _, seen = plain(tiny)
    assert seen.steps(tiny) == evaluations
    backend = masked(tiny, a_mask(evaluations))
    for _ in range(2):
        with watched(tiny) as cached:
            tiny.run(STEPS)
        check_run(tiny, cached, backend, a_mask(evaluations))


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", sorted(HALF))
def test_from_a_picture_only_the_steps_that_are_made_are_counted(name: str, strength: float) -> None:
    tiny = build(name)
    _, seen = plain(tiny, num_inference_steps=8, strength=strength)
    total = seen.steps(tiny)
    assert total == 8 * strength
    backend = masked(tiny, a_mask(total))
    for _ in range(2):
        with watched(tiny) as cached:
            tiny.run(8, strength=strength)
        if total > 2:
            check_run(tiny, cached, backend, a_mask(total))
        assert {row.total for row in backend.summary().rows} == {total}


def test_guidance_that_stops_early_leaves_the_other_branch_alone() -> None:
    """Lumina 2 drops the unconditional call in the last steps."""
    tiny = build("lumina2")
    half = {"cfg_trunc_ratio": 0.5}
    _, seen = plain(tiny, num_inference_steps=8, **half)
    assert len(seen.calls) == 8 + 4
    backend = masked(tiny, a_mask(8))
    tiny.run(8, **half)
    summary = backend.summary()
    assert summary.cached_steps(branch="0") == [step for step in range(8) if not a_mask(8)[step]]
    rows = {branch: [row.step for row in summary.rows if row.branch == branch] for branch in ("0", "1")}
    assert rows["0"] == list(range(8))
    assert len(rows["1"]) == 4


def test_a_batch_that_shrinks_when_guidance_stops_runs_once_and_goes_on() -> None:
    """Z-Image puts both halves into one call, and drops one of them in the last steps."""
    tiny = build("z_image")
    backend = masked(tiny, [1, 1] + [0] * 6)
    found = tiny.run(8, cfg_truncation=0.5)
    assert bool(found.isfinite().all())
    cached = backend.summary().cached_steps()
    assert kinds(backend)["shape_changed"] == 1
    assert len(cached) == 5


def test_a_video_made_in_chunks_is_a_run_for_each_and_fills_its_store_in_between() -> None:
    """AnyFlow-FAR: one chunk after the other, the clean ones in a store of keys and values."""
    tiny = build(CHUNKED)
    expected, seen = plain(tiny, num_inference_steps=4)
    chunks, filled = 2, len(seen.calls) - 2 * 4
    assert filled > 0
    backend = never("all but the first")
    backend.enable(tiny.pipe)
    assert torch.equal(tiny.run(4), expected)
    backend.disable()
    backend = masked(tiny, a_mask(4))
    with watched(tiny) as cached:
        found = tiny.run(4)
    assert bool(found.isfinite().all())
    assert sorted(call.blocks for call in cached.calls) == sorted(
        [6] * filled + chunks * [1 if skips(a_mask(4), step) else 6 for step in range(4)]
    )
    assert backend.summary().cached_steps() == [2]


def test_a_network_for_the_unconditional_call_is_cached_as_well() -> None:
    """As Ideogram 4 has it."""
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    class TwoNets(DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, scheduler: Any, transformer: Any, unconditional_transformer: Any) -> None:
            super().__init__()
            self.register_modules(
                scheduler=scheduler,
                transformer=transformer,
                unconditional_transformer=unconditional_transformer,
            )

        def __call__(self, steps: int) -> None:
            self.scheduler.set_timesteps(steps)
            for step, time in enumerate(self.scheduler.timesteps):
                arguments = transformer_inputs("ideogram4", step=step, total=steps)
                outputs = [net(**arguments)[0] for net in (self.transformer, self.unconditional_transformer)]
                self.scheduler.step(outputs[0] - outputs[1], time, outputs[0])

    nets = [build_transformer("ideogram4") for _ in range(2)]
    pipe = TwoNets(FlowMatchEulerDiscreteScheduler(), *nets)
    with (
        torch.no_grad(),
        enable_cache(
            pipe,
            "cache_dit",
            Fn_compute_blocks=1,
            steps_computation_mask=a_mask(6),
            steps_computation_policy="static",
        ) as backend,
        executed(*nets) as ran,
    ):
        pipe(6)
        assert len(ran) == 2 * sum(6 if digit else 1 for digit in a_mask(6))
        for name in ("transformer", "unconditional_transformer"):
            assert backend.summary().cached_steps(name) == [2, 4, 5]


def test_after_an_interrupted_run_the_next_one_is_as_if_it_had_never_been() -> None:
    tiny = build("chroma")
    backend = masked(tiny, a_mask(6))
    alone = tiny.run(6)
    calls = 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    hook = tiny.pipe.transformer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(6, seed=5)
    hook.remove()
    with watched(tiny) as seen:
        assert torch.equal(tiny.run(6), alone)
    check_run(tiny, seen, backend, a_mask(6))
