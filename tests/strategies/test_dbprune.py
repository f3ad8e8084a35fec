"""`dbprune` on the tiny models: what it must keep to on every block shape, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_backends import ConfigError, SpanBackend, enable_cache, get_cache_backend
from dit_cache_conformance.tiny import TINY, TINY_TRANSFORMERS, build, build_transformer, transformer_inputs

from ..engine.counting import executed
from ..engine.runs import (
    PIPELINES,
    STILL,
    TRANSFORMERS,
    inputs,
    kinds,
    output,
    relative,
    run_plain,
    run_told,
    same,
)

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 6
EAGER: dict[str, Any] = {"residual_diff_threshold": 1.0, "max_warmup_steps": 1}


def depths(name: str) -> list[int]:
    return [*TINY_TRANSFORMERS[name].stacks.values()]


def pruned_blocks(backend: SpanBackend) -> dict[tuple[str, str, str], list[int]]:
    summary = backend.summary()
    return {place: [*summary.pruned_blocks(*place).values()] for place in summary.series()}


# Every block shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_still_input_is_reproduced_by_the_first_blocks_alone_and_a_moved_one_followed(
    name: str, mode: Any
) -> None:
    model = build_transformer(name)
    still, moved = transformer_inputs(name), transformer_inputs(name, step=3)
    backend: Any = get_cache_backend("dbprune", {"residual_diff_threshold": 0.9, "max_warmup_steps": 1})
    with mode():
        plain, plain_moved = output(model, still), output(model, moved)
        backend.enable(model)
        found = []
        for step, arguments in enumerate([still, still, moved, moved]):
            with backend.step(step, 9), executed(model) as ran:
                found.append(output(model, arguments))
            assert len(ran) == (sum(depths(name)) if step == 0 else len(depths(name))), step
    assert torch.equal(found[0], plain)
    assert relative(found[1], plain) <= STILL
    assert relative(found[2], plain_moved) < relative(plain, plain_moved)
    assert relative(found[2], plain) > 1e-3
    assert torch.equal(found[3], found[2])


@pytest.mark.parametrize("calibrator", ["none", "taylorseer", "foca"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_some_blocks_are_pruned_and_others_not_on_every_transformer(name: str, calibrator: str) -> None:
    model = build_transformer(name)
    run = inputs(name, 8)
    plain = run_plain(model, run)
    backend: Any = enable_cache(
        model,
        "dbprune",
        residual_diff_threshold=0.2,
        non_prune_block_ids=[2],
        max_warmup_steps=2,
        calibrator=calibrator,
    )
    with executed(model) as ran:
        found = run_told(backend, model, run)
    summary = backend.summary()
    assert summary.blocks_run == len(ran) == 8 * sum(depths(name)) - summary.blocks_skipped
    assert summary.blocks_skipped > 0
    assert kinds(backend) == {}
    for one, other in zip(found, plain, strict=True):
        assert one.dtype == other.dtype
        assert relative(one, other) < 1
    assert same(found[:2], plain[:2])
    assert not backend.held_tensors()


@pytest.mark.parametrize("name", PIPELINES)
def test_threshold_0_gives_the_plain_pictures_bit_for_bit(name: str) -> None:
    tiny = build(name)
    plain = tiny.run(4)
    backend: Any = enable_cache(tiny.pipe, "dbprune", residual_diff_threshold=0.0, max_warmup_steps=1)
    with executed(*tiny.transformers.values()) as ran:
        found = tiny.run(4)
    assert torch.equal(found, plain)
    assert backend.summary().blocks_skipped == 0
    assert backend.summary().blocks_run == len(ran)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_whose_blocks_are_compared_but_never_pruned_gives_the_plain_outputs(name: str) -> None:
    model = build_transformer(name)
    run = inputs(name, 4)
    plain = run_plain(model, run)
    backend: Any = enable_cache(model, "dbprune", residual_diff_threshold=1e-9, max_warmup_steps=1)
    assert same(run_told(backend, model, run), plain)
    differences = [row.differences for row in backend.summary().rows]
    stacks = len(depths(name))
    assert [len(each) for each in differences] == [0] * stacks + 3 * [depth - 1 for depth in depths(name)]


@pytest.mark.parametrize("name", PIPELINES)
def test_an_eager_pipeline_prunes_every_block_that_is_not_spared(name: str) -> None:
    tiny, spec = build(name), TINY[name]
    backend: Any = enable_cache(tiny.pipe, "dbprune", non_prune_block_ids=[1], **EAGER)
    with executed(*tiny.transformers.values()) as ran:
        tiny.run(STEPS)
    left = {stack: depth - 2 for stack, depth in spec.stacks.items()}
    summary = backend.summary()
    calls, full = 0, 0
    for transformer, branch, stack in summary.series():
        numbers = [*summary.pruned_blocks(transformer, branch, stack).values()]
        assert numbers == [0] + [left[stack]] * (len(numbers) - 1)
        ratio = left[stack] * (len(numbers) - 1) / (len(numbers) * spec.stacks[stack])
        assert summary.pruned_ratio(transformer, branch, stack) == ratio
        calls += len(numbers)
        full += 1
    assert calls == STEPS * len(spec.branches) * len(spec.stacks)
    assert full == len(spec.transformers) * len(spec.branches) * len(spec.stacks)
    assert len(ran) == summary.blocks_run


# Generations


@pytest.mark.parametrize("name", ["flux", "sd3", "hunyuan_video", "chroma"])
def test_another_batch_in_the_middle_of_a_run_makes_every_block_run_and_be_compared_anew(name: str) -> None:
    model = build_transformer(name)
    one, two = transformer_inputs(name), transformer_inputs(name, batch=2)
    plain = output(model, two)
    backend: Any = enable_cache(model, "dbprune", residual_diff_threshold=0.9, max_warmup_steps=1)
    ran = []
    for step, arguments in enumerate([one, one, two, two]):
        with backend.step(step, 9), executed(model) as seen:
            found = output(model, arguments)
        ran.append(len(seen))
    full, least = sum(depths(name)), len(depths(name))
    assert ran == [full, least, full, least]
    assert relative(found, plain) <= STILL
    assert backend.summary().rows[2 * least].reason == "shape changed"


@pytest.mark.parametrize("name", ["flux", "qwen_image", "wan22"])
def test_a_new_run_remembers_nothing_whatever_its_size_batch_and_steps(name: str) -> None:
    settings: list[dict[str, Any]] = [
        {"num_inference_steps": 7},
        {"num_inference_steps": 9, "batch": 2},
        {"num_inference_steps": 7, "height": 96, "width": 32},
        {"num_inference_steps": 7},
    ]
    tiny = build(name)
    backend: Any = enable_cache(tiny.pipe, "dbprune", residual_diff_threshold=0.25, max_warmup_steps=2)
    for each in settings:
        found = tiny.run(**each)
        counted = pruned_blocks(backend)
        fresh = build(name)
        alone: Any = enable_cache(fresh.pipe, "dbprune", residual_diff_threshold=0.25, max_warmup_steps=2)
        assert torch.equal(found, fresh.run(**each))
        assert counted == pruned_blocks(alone)
        assert any(sum(numbers) for numbers in counted.values())


# The summary


def test_the_summary_tells_the_pruned_blocks_of_each_step_and_their_share() -> None:
    tiny = build("hunyuan_video")
    backend: Any = enable_cache(
        tiny.pipe,
        "dbprune",
        residual_diff_threshold=0.037,
        enable_dynamic_prune_threshold=True,
        max_dynamic_prune_threshold=0.4,
    )
    with executed(*tiny.transformers.values()) as ran:
        tiny.run(20)
    summary = backend.summary()
    for place, depth in zip(summary.series(), TINY["hunyuan_video"].stacks.values(), strict=True):
        numbers = summary.pruned_blocks(*place)
        assert [*numbers] == [*range(20)]
        missing = 20 * depth - sum(path == place[2] for path, _ in ran.blocks)
        assert sum(numbers.values()) == missing > 0
        assert summary.pruned_ratio(*place) == missing / (20 * depth)
        text = ", ".join(f"{step} ({n})" for step, n in numbers.items() if n)
        assert len({*numbers.values()} - {0}) > 1
        assert f"cached steps of transformer, branch cond, {place[2]}: {text}; (blocks skipped)" in str(
            summary
        )


# What is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"Fn_compute_blocks": 12}, "leave no block"),
        ({"Fn_compute_blocks": 8, "Bn_compute_blocks": 4}, "leave no block"),
        ({"Bn_compute_blocks": 40}, "leave no block"),
        ({"Fn_compute_blocks": 9, "Bn_compute_blocks": 1, "non_prune_block_ids": [9, 10]}, "blocks 0 to 11"),
    ],
)
def test_settings_that_spare_every_block_are_refused_when_enabling(
    options: dict[str, Any], match: str
) -> None:
    model = build_transformer("flux")
    before = [type(module) for module in model.modules()]
    with pytest.raises(ConfigError, match=match):
        enable_cache(model, "dbprune", **options)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"non_prune_block_ids": [-1]}, "non_prune_block_ids.*at least 0"),
        ({"non_prune_block_ids": 3}, "non_prune_block_ids"),
        ({"non_prune_blocks": [3]}, "Did you mean 'non_prune_block_ids'"),
        ({"downsample_factor": 0}, "downsample_factor.*at least 1"),
        ({"compare_dtype": "int8"}, "compare_dtype.*bfloat16"),
        ({"max_dynamic_prune_threshold": 0.3}, "enable_dynamic_prune_threshold: true"),
        ({"steps_computation_mask": "1102"}, "0 and 1"),
        ({"enable_taylorseer": True, "calibrator": "foca"}, "different calibrators"),
    ],
)
def test_wrong_options_are_refused_at_construction(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        get_cache_backend("dbprune", options)


def test_a_block_to_spare_that_a_stack_does_not_have_is_an_event() -> None:
    tiny = build("hunyuan_video")
    backend: Any = enable_cache(tiny.pipe, "dbprune", non_prune_block_ids=[1, 4], **EAGER)
    tiny.run(3)
    (event,) = backend.summary().events
    assert event.kind == "no_such_block"
    assert "names 4, but the blocks of transformer_blocks are 0 to 2" in event.detail
    assert pruned_blocks(backend) == {
        ("transformer", "cond", "transformer_blocks"): [0, 1, 1],
        ("transformer", "cond", "single_transformer_blocks"): [0, 2, 2],
    }
