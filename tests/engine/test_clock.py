"""Steps, totals and branches that the clock reads from a pipeline, with every scheduler and none patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import TINY, Tiny, build
from dit_cache_conformance.tiny.latent_vae import control_vae
from dit_cache_conformance.tiny.weights import noise

from .counting import executed
from .runs import PIPELINES, kinds, places
from .strategies import planned

FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def expected_places(tiny: Tiny) -> dict[tuple[str, str, str], list[tuple[int, int]]]:
    """Worked out from the scheduler: one forward for each of its timesteps, experts parted at their boundary."""
    timesteps: Tensor = tiny.pipe.scheduler.timesteps
    total = len(timesteps)
    shares = {name: range(total) for name in tiny.spec.transformers}
    if len(shares) == 2:
        high = int((timesteps >= 600).sum())
        shares = {"transformer": range(high), "transformer_2": range(high, total)}
    return {
        (name, branch, stack): [(step, total) for step in share]
        for name, share in shares.items()
        for branch in tiny.spec.branches
        for stack in tiny.spec.stacks
        if share
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_totals_and_branches_of_two_runs_are_right(name: str) -> None:
    tiny = build(name)
    backend = planned("10")
    backend.enable(tiny.pipe)
    for steps in (4, 5, 2):
        tiny.run(steps)
        assert places(backend) == expected_places(tiny), steps
        assert set(kinds(backend)) <= {"nothing_skipped"}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_second_run_begins_with_full_steps_and_repeats_the_first_bit_for_bit(name: str) -> None:
    tiny = build(name)
    backend: Any = enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.9, max_warmup_steps=2)
    with executed(*tiny.transformers.values()) as ran:
        first = tiny.run(5)
        blocks = ran.take()
        assert torch.equal(tiny.run(5), first)
        assert ran.take() == blocks
    per_call = sum(tiny.spec.stacks.values())
    assert per_call < len(blocks) < 5 * per_call * len(tiny.spec.branches)
    assert blocks[:per_call] == [
        (path, number)
        for path in dict.fromkeys(p for p, _ in blocks)
        for number in range(depth_of(tiny, path))
    ]
    assert backend.summary().blocks_skipped


def depth_of(tiny: Tiny, path: str) -> int:
    return len(tiny.pipe.transformer.get_submodule(path))


SCHEDULERS: list[tuple[str, str, dict[str, Any]]] = [
    ("sd3", "FlowMatchHeunDiscreteScheduler", {}),
    ("dit", "PNDMScheduler", {}),
    ("dit", "HeunDiscreteScheduler", {}),
    ("pixart", "PNDMScheduler", {}),
    ("pixart", "DDIMScheduler", {}),
    ("pixart", "HeunDiscreteScheduler", {}),
    ("pixart", "LCMScheduler", {}),
    ("pixart", "DEISMultistepScheduler", {}),
    ("pixart", "EulerAncestralDiscreteScheduler", {}),
    ("cogvideox", "CogVideoXDPMScheduler", {}),
    ("wan", "UniPCMultistepScheduler", FLOW),
    ("wan22", "UniPCMultistepScheduler", FLOW),
]


@pytest.mark.parametrize(("name", "scheduler", "options"), SCHEDULERS, ids=lambda value: str(value))
def test_every_model_evaluation_of_every_scheduler_is_a_step(
    name: str, scheduler: str, options: dict[str, Any]
) -> None:
    import diffusers

    tiny = build(name)
    tiny.pipe.scheduler = getattr(diffusers, scheduler)(**options)
    backend = planned("10")
    backend.enable(tiny.pipe)
    for steps in (4, 6):
        with executed(*tiny.transformers.values()) as ran:
            first = tiny.run(steps)
        assert places(backend) == expected_places(tiny)
        depth = sum(tiny.spec.stacks.values())
        calls = len(backend.summary().rows)
        full = len(tiny.spec.branches) * len(tiny.spec.transformers)
        assert len(ran) == full * depth + (calls - full)
        assert torch.equal(tiny.run(steps), first)


def test_a_scheduler_exchanged_while_enabled_is_the_one_that_is_read() -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler

    tiny = build("sd3")
    backend = planned("10")
    backend.enable(tiny.pipe)
    tiny.run(4)
    tiny.pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    tiny.run(4)
    assert places(backend) == expected_places(tiny)
    assert len(backend.summary().rows) == 7


def flux_from_image(tiny: Tiny) -> Any:
    from diffusers import FluxImg2ImgPipeline

    return FluxImg2ImgPipeline(**{**tiny.pipe.components, "vae": control_vae()})


def sd3_from_image(tiny: Tiny) -> Any:
    from diffusers import StableDiffusion3Img2ImgPipeline

    return StableDiffusion3Img2ImgPipeline(**{**tiny.pipe.components, "vae": control_vae()})


def sd3_heun_from_image(tiny: Tiny) -> Any:
    from diffusers import FlowMatchHeunDiscreteScheduler

    tiny.pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    return sd3_from_image(tiny)


def wan_from_video(tiny: Tiny) -> Any:
    """Cuts the timesteps without telling its scheduler a begin index."""
    from diffusers import WanVideoToVideoPipeline

    parts = {name: part for name, part in tiny.pipe.components.items() if "_2" not in name}
    return WanVideoToVideoPipeline(**parts)


IMAGE = {"image": noise(1, 3, 64, 64, seed=1).clamp(0, 1)}
VIDEO = {"video": None, "latents": noise(1, 4, 2, 8, 8, seed=1)}


@pytest.mark.parametrize(
    ("name", "make", "source", "evaluations"),
    [
        ("flux", flux_from_image, IMAGE, 4),
        ("sd3", sd3_from_image, IMAGE, 4),
        ("sd3", sd3_heun_from_image, IMAGE, 7),
        ("wan", wan_from_video, VIDEO, 4),
    ],
)
def test_a_run_from_an_image_counts_only_the_steps_it_makes(
    name: str, make: Callable[[Tiny], Any], source: dict[str, Any], evaluations: int
) -> None:
    tiny = build(name)
    pipe = make(tiny)
    pipe.set_progress_bar_config(disable=True)
    arguments = {key: value for key, value in TINY[name].arguments(1).items() if key != "num_frames"}
    backend = planned("10")
    backend.enable(pipe)
    found = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        out = pipe(
            **(arguments | source),
            strength=0.5,
            num_inference_steps=8,
            generator=generator,
            return_dict=False,
        )
        found.append(out[0])
        rows = [(row.step, row.total, bool(row.blocks_skipped)) for row in backend.summary().rows]
        calls = len(rows) // evaluations
        assert rows == [(step, evaluations, step > 0) for step in range(evaluations) for _ in range(calls)]
    assert torch.equal(*found)


def test_the_mask_of_each_expert_is_cut_for_its_own_share_of_the_run() -> None:
    tiny = build("wan22")
    backend: Any = enable_cache(
        tiny.pipe, "cache_dit", scm_steps_mask_policy="ultra", scm_steps_policy="static", max_warmup_steps=8
    )
    tiny.run(28)
    high = int((tiny.pipe.scheduler.timesteps >= 600).sum())
    from dit_cache_backends.strategies.scm import policy_mask

    for name, start, length in (("transformer", 0, high), ("transformer_2", high, 28 - high)):
        mask = policy_mask("ultra", length)
        expected = [start + step for step, digit in enumerate(mask) if not digit]
        for branch in ("cond", "uncond"):
            assert backend.summary().cached_steps(name, branch) == expected
