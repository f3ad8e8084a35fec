"""What this project's `cache_dit` does differently from the cache-dit library, and on purpose.

One section for each row of docs/parity.md. Where what the library does is cheap to show, it is shown too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dit_cache_backends import ConfigError, enable_cache
from dit_cache_conformance.tiny import Tiny, build, build_transformer, transformer_inputs

from .cases import LEVELS
from .options import DEFAULTS
from .reference import cache_dit_run, dense_latents

pytest.importorskip("cache_dit")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cached(pipeline: str, steps: int = 28, call: dict[str, Any] | None = None, **options: Any) -> Any:
    """Latents and summary of a run of a new tiny pipeline."""
    tiny = build(pipeline)
    with enable_cache(tiny.pipe, "cache_dit", **options) as backend:
        latents = tiny.run(steps, **(call or {}))
        return latents, backend.summary()


def kinds(summary: Any) -> list[str]:
    return [event.kind for event in summary.events]


def block_types(tiny: Tiny) -> list[type]:
    return [type(block) for module in tiny.transformers.values() for block in module.modules()]


# 1. Fn + Bn against the depth


@pytest.mark.parametrize(("front", "back"), [(11, 1), (12, 0), (6, 7), (20, 0)])
def test_front_and_back_blocks_that_leave_nothing_to_skip_are_refused_when_enabling(
    front: int, back: int
) -> None:
    tiny = build("flux")
    before = block_types(tiny)

    with pytest.raises(ConfigError, match="at most 11"):
        enable_cache(tiny.pipe, "cache_dit", Fn_compute_blocks=front, Bn_compute_blocks=back)

    assert block_types(tiny) == before


def test_the_depth_that_counts_is_that_of_the_shortest_stack() -> None:
    tiny = build("hunyuan_video")
    before = block_types(tiny)

    with pytest.raises(ConfigError, match="at most 2"):
        enable_cache(tiny.pipe, "cache_dit", Fn_compute_blocks=3)

    assert block_types(tiny) == before


# 2. A mask that begins with 0


def test_the_first_step_computes_although_the_mask_begins_with_zero() -> None:
    mask = "0010" * 7
    options: dict[str, Any] = {"steps_computation_policy": "static", "max_warmup_steps": 0}
    with pytest.raises(AssertionError):
        cache_dit_run("flux", options | {"steps_computation_mask": mask})

    latents, summary = cached("flux", steps_computation_mask=mask, **options)
    same, _ = cached("flux", steps_computation_mask="1" + mask[1:], **options)

    assert summary.cached_steps() == [step for step in range(1, 28) if mask[step] == "0"]
    assert torch.equal(latents, same)


# 3. SD3 and the text calibrator


def test_sd3_whose_last_block_returns_no_text_runs_with_the_text_calibrator() -> None:
    options: dict[str, Any] = {"residual_diff_threshold": LEVELS["sd3"]["mid"], "enable_taylorseer": True}
    with pytest.raises(AssertionError):
        cache_dit_run("sd3", options | {"enable_encoder_taylorseer": True})

    latents, summary = cached("sd3", enable_encoder_taylorseer=True, **options)
    without, _ = cached("sd3", enable_encoder_taylorseer=False, **options)

    assert summary.cached_steps()
    assert torch.equal(latents, without), "the last block's text is used by nothing"


# 4. A refresh is counted in steps


@pytest.mark.parametrize("pipeline", ["flux", "qwen_image"])
def test_a_refresh_comes_after_that_many_steps_however_many_calls_a_step_has(pipeline: str) -> None:
    _, summary = cached(
        pipeline,
        residual_diff_threshold=1.0,
        max_continuous_cached_steps=-1,
        max_warmup_steps=3,
        force_refresh_step_hint=10,
    )

    expected = [*range(3, 10), *range(13, 28)]
    for transformer, branch, stack in summary.series():
        assert summary.cached_steps(transformer, branch, stack) == expected


# 5. An explicit mask of another length


def test_steps_beyond_an_explicit_mask_compute_and_the_summary_says_so() -> None:
    _, summary = cached("flux", steps_computation_mask="11110101", steps_computation_policy="static")

    assert summary.cached_steps() == [4, 6]
    assert kinds(summary) == ["mask_length"]
    assert "28" in summary.events[0].detail


def test_a_mask_longer_than_the_run_is_cut_and_the_summary_says_so() -> None:
    _, summary = cached("flux", 2, steps_computation_mask="1110101", steps_computation_policy="static")

    assert summary.cached_steps() == []
    assert kinds(summary)[0] == "mask_length"


# 6. A policy without a mask for the number of steps


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_a_policy_is_off_and_the_summary_says_so_for_a_number_of_steps_without_a_preset(steps: int) -> None:
    options: dict[str, Any] = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    with pytest.raises(AssertionError):
        cache_dit_run("flux", options | {"scm_steps_mask_policy": "fast"}, steps)

    latents, summary = cached(
        "flux", steps, scm_steps_mask_policy="fast", scm_steps_policy="static", **options
    )
    without, plain = cached("flux", steps, **options)

    assert kinds(summary)[0] == "mask_off"
    assert "mask_off" not in kinds(plain)
    assert summary.cached_steps() == plain.cached_steps()
    assert torch.equal(latents, without)


# 7. Defaults


def test_the_defaults_are_those_of_vllm_omni_and_fit_a_model_of_few_blocks() -> None:
    latents, summary = cached("qwen_image")
    spelled_out, _ = cached("qwen_image", **DEFAULTS)

    assert summary.blocks_run + summary.blocks_skipped == 28 * 2 * 6
    assert torch.equal(latents, spelled_out)


# 8. cfg_compute_first with a difference of its own for each branch


def test_the_order_of_the_branches_can_be_told_together_with_separate_differences() -> None:
    options: dict[str, Any] = {"residual_diff_threshold": LEVELS["qwen_image"]["mid"]}
    first: dict[str, Any] = {"cfg_compute_first": True, "cfg_diff_compute_separate": True}
    with pytest.raises(AssertionError):
        cache_dit_run("qwen_image", options | first)

    latents, summary = cached("qwen_image", **options, **first)
    plain, _ = cached("qwen_image", **options)

    assert summary.cached_steps()
    assert torch.equal(latents, plain)


# 9. What a model adds between its blocks


def test_flux_with_a_controlnet_and_threshold_zero_is_the_plain_pipeline_bit_for_bit() -> None:
    plain = dense_latents("flux_controlnet")
    theirs = cache_dit_run("flux_controlnet", {"residual_diff_threshold": 0.0})
    assert not torch.allclose(theirs.latents, plain, rtol=1e-2), "the library has learned it"

    latents, summary = cached("flux_controlnet", residual_diff_threshold=0.0)

    assert summary.blocks_skipped == 0
    assert torch.equal(latents, plain)


@torch.no_grad()
def test_what_a_controlnet_adds_survives_a_skip() -> None:
    model: Any = build_transformer("flux_controlled")
    inputs = transformer_inputs("flux_controlled")
    plain = model(**inputs)[0]
    uncontrolled = model(**transformer_inputs("flux"))[0]

    backend: Any = enable_cache(model, "cache_dit", residual_diff_threshold=1.0, max_warmup_steps=1)
    with backend:
        outputs = []
        for index in range(3):
            with backend.step(index, 4):
                outputs.append(model(**inputs)[0])
        cached_steps = backend.summary().cached_steps()

    assert cached_steps == [1, 2]
    assert torch.equal(outputs[0], plain)
    scale = plain.abs().max()
    assert (outputs[1] - plain).abs().max() <= 1e-6 * scale
    assert (outputs[2] - plain).abs().max() <= 1e-6 * scale
    assert (uncontrolled - plain).abs().max() > 0.1 * scale, (
        "the control must matter for this to say anything"
    )


# 10. Two experts


def test_each_expert_of_wan_22_gets_a_mask_for_its_own_number_of_steps() -> None:
    from cache_dit import steps_mask

    _, summary = cached("wan22", scm_steps_mask_policy="ultra", scm_steps_policy="static")

    first = [step for step, digit in enumerate(steps_mask(total_steps=11, mask_policy="ultra")) if not digit]
    second = [step for step, digit in enumerate(steps_mask(total_steps=17, mask_policy="ultra")) if not digit]
    for branch in ("cond", "uncond"):
        assert summary.cached_steps("transformer", branch) == first
        assert summary.cached_steps("transformer_2", branch) == [11 + step for step in second]


# 11. Streams that a model never changes


def _held_between_steps(tiny: Tiny, shape: tuple[int, ...]) -> int:
    """Tensors of that shape that exist between two steps of a run and did not exist before it."""
    counts: list[int] = []

    def count() -> int:
        return sum(
            issubclass(type(thing), torch.Tensor) and thing.shape == shape for thing in gc.get_objects()
        )

    def look(_pipe: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        counts.append(count())
        return values

    gc.collect()
    before = count()
    tiny.run(6, callback_on_step_end=look)
    return max(counts) - before


def test_no_tensor_is_held_for_a_text_stream_that_no_block_changes() -> None:
    import cache_dit

    text, video = (1, 8, 24), (1, 32, 24)
    theirs, ours = build("wan"), build("wan")
    pipeline_class = type(ours.pipe)
    original = pipeline_class.__call__
    cache_dit.enable_cache(theirs.pipe, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1))
    try:
        assert _held_between_steps(theirs, text) > 0
    finally:
        cache_dit.disable_cache(theirs.pipe)
    assert pipeline_class.__call__ is original

    with enable_cache(ours.pipe, "cache_dit", max_warmup_steps=1):
        assert _held_between_steps(ours, text) == 0
        assert _held_between_steps(ours, video) > 0


# 12. Branches


def test_branches_are_told_apart_without_a_flag() -> None:
    options: dict[str, Any] = {"residual_diff_threshold": LEVELS["qwen_image"]["mid"]}
    plain, summary = cached("qwen_image", **options)

    for flag in (True, False):
        latents, flagged = cached("qwen_image", enable_separate_cfg=flag, **options)
        assert torch.equal(latents, plain)
        assert flagged.series() == summary.series()


def test_a_model_that_usually_makes_two_calls_is_counted_right_when_it_makes_one() -> None:
    _, summary = cached(
        "qwen_image", call={"true_cfg_scale": 1.0}, residual_diff_threshold=1.0, max_warmup_steps=4
    )

    assert [branch for _, branch, _ in summary.series()] == ["cond"]
    assert summary.cached_steps() == [step for step in range(4, 28) if (step - 4) % 4 != 3]


# 13. Taylor order 0


def test_a_taylor_series_of_order_zero_is_plain_reuse() -> None:
    options: dict[str, Any] = {"residual_diff_threshold": LEVELS["flux"]["mid"]}

    latents, _ = cached("flux", enable_taylorseer=True, taylorseer_order=0, **options)
    reused, _ = cached("flux", **options)

    assert torch.equal(latents, reused)


# 14. One pipeline and the next


def test_two_pipelines_of_one_class_run_as_if_they_were_alone_in_any_order_of_disabling() -> None:
    settings: list[dict[str, Any]] = [
        {"residual_diff_threshold": level, "max_continuous_cached_steps": -1} for level in (0.6, 0.35)
    ]
    alone = [cached("flux", **options)[0] for options in settings]
    plain = dense_latents("flux")
    one, two, three = build("flux"), build("flux"), build("flux")

    first = enable_cache(one.pipe, "cache_dit", **settings[0])
    second = enable_cache(two.pipe, "cache_dit", **settings[1])
    both = [one.run(), two.run()]
    untouched = three.run()
    first.disable(one.pipe)
    left = [one.run(), two.run()]
    second.disable(two.pipe)

    assert [torch.equal(a, b) for a, b in zip(both, alone, strict=True)] == [True, True]
    assert torch.equal(untouched, plain)
    assert torch.equal(left[0], plain)
    assert torch.equal(left[1], alone[1])
    assert torch.equal(two.run(), plain)


def test_a_bare_transformer_forgets_the_last_run_when_the_next_begins() -> None:
    tiny = build("flux")
    with enable_cache(tiny.transformers["transformer"], "cache_dit", residual_diff_threshold=0.45) as backend:
        runs = []
        for _ in range(3):
            backend.refresh(tiny.transformers["transformer"], 28)
            runs.append((tiny.run(), backend.summary().cached_steps()))

    assert runs[0][1]
    for latents, cached_steps in runs[1:]:
        assert cached_steps == runs[0][1]
        assert torch.equal(latents, runs[0][0])
