"""What this project's `dbprune` does differently from the DBPrune of the cache-dit library, and on purpose.

One section for each row under "dbprune" in docs/parity.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from dit_cache_backends import ConfigError, enable_cache, get_cache_backend
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .dbprune_cases import LEVELS
from .dbprune_reference import DEFAULTS, dbprune_arguments, dbprune_run
from .reference import as_before, dense_latents

pytest.importorskip("cache_dit")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pruned(pipeline: str, steps: int = 12, **options: Any) -> Any:
    """Latents and summary of a run of a new tiny pipeline."""
    tiny = build(pipeline)
    with enable_cache(tiny.pipe, "dbprune", **options) as backend:
        return tiny.run(steps), backend.summary()


def run_cache_dit(pipeline: str, steps: int = 12, **options: Any) -> None:
    """The library alone, with nothing recorded."""
    import cache_dit

    tiny = build(pipeline)
    with as_before(type(tiny.pipe)):
        cache_dit.enable_cache(tiny.pipe, **dbprune_arguments(tiny, options, steps))
        tiny.run(steps)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# P1. The last step that the limit allows


def test_the_last_step_that_max_cached_steps_allows_is_pruned_as_far_as_any() -> None:
    options = {"residual_diff_threshold": 0.25, "max_cached_steps": 3}
    (theirs,) = dbprune_run("flux", options, 12).places.values()
    _, summary = pruned("flux", **options)

    assert [*theirs.pruned.values()] == [0, 0, 0, 0, 11, 11, 0, 1, 0, 0, 0, 0]
    assert [*summary.pruned_blocks().values()] == [0, 0, 0, 0, 11, 11, 0, 11, 0, 0, 0, 0]


# P2. Blocks that return a tensor


@pytest.mark.parametrize("pipeline", ["dit", "pixart"])
def test_blocks_that_return_a_bare_tensor_are_pruned_too(pipeline: str) -> None:
    with pytest.raises(TypeError):
        run_cache_dit(pipeline)

    latents, summary = pruned(pipeline, residual_diff_threshold=0.3)

    assert 0.1 < summary.pruned_ratio() < 0.9
    assert 0 < relative(latents, dense_latents(pipeline, 12)) < 0.1


# P3. Shared differences


@pytest.mark.parametrize("pipeline", ["qwen_image", "wan"])
def test_the_unconditional_branch_may_take_the_differences_of_the_conditional_one(pipeline: str) -> None:
    options: dict[str, Any] = {
        "cfg_diff_compute_separate": False,
        "residual_diff_threshold": LEVELS[pipeline]["mid"],
    }
    with pytest.raises(TypeError):
        run_cache_dit(pipeline, **options)

    _, summary = pruned(pipeline, **options)
    _, separate = pruned(pipeline, residual_diff_threshold=options["residual_diff_threshold"])

    def by_branch(found: Any) -> list[list[list[float]]]:
        return [
            [row.differences for row in found.rows if row.branch == branch] for branch in ("cond", "uncond")
        ]

    cond, uncond = by_branch(summary)
    assert any(cond)
    assert cond == uncond
    assert summary.pruned_blocks(branch="cond") == summary.pruned_blocks(branch="uncond")
    first, second = by_branch(separate)
    assert first != second


# P4. A threshold that rises, on the second branch


def expected_blocks(differences: Sequence[float], threshold: float) -> int:
    """Blocks of a step that the rising threshold lets through, by the differences of the step itself."""
    count = 0
    for number, difference in enumerate(differences):
        before = differences[: min(number, 5)]
        raised = 1.25 * sum(before) / len(before) if before else 0.0
        count += difference < (max(threshold, raised) if raised < 2 * threshold else threshold)
    return count


def test_the_threshold_of_a_branch_rises_by_its_own_differences() -> None:
    threshold = LEVELS["qwen_image"]["low"]
    options = {"residual_diff_threshold": threshold, "enable_dynamic_prune_threshold": True}
    theirs = dbprune_run("qwen_image", options, 20).places
    _, summary = pruned("qwen_image", 20, **options)

    def wrong(pruning: dict[int, int], diffs: dict[int, list[float]]) -> list[int]:
        return [step for step, each in diffs.items() if pruning[step] != expected_blocks(each, threshold)]

    for (_, branch, _), place in theirs.items():
        assert bool(wrong(place.pruned, place.diffs)) == (branch == "uncond")
    for branch in ("cond", "uncond"):
        diffs = {row.step: row.differences for row in summary.rows if row.branch == branch}
        assert not wrong(summary.pruned_blocks(branch=branch), diffs)


# P5. A threshold that rises above 1


def test_a_threshold_that_rises_above_1_is_still_compared_with() -> None:
    options = {
        "residual_diff_threshold": 0.7,
        "enable_dynamic_prune_threshold": True,
        "max_dynamic_prune_threshold": 100.0,
        "dynamic_prune_threshold_relax_ratio": 30.0,
    }
    (theirs,) = dbprune_run("flux", options, 8).places.values()
    _, summary = pruned("flux", 8, **options)

    assert all(each[1:] == [-1.0] * 10 for each in theirs.diffs.values())
    assert [*summary.pruned_blocks().values()] == [*theirs.pruned.values()] == [0] * 4 + [11] * 4
    assert all(0 < value < 1 for row in summary.rows for value in row.differences)


# P6. What comes out, foretold for the text


def test_a_forecast_of_what_comes_out_is_right_for_the_text_as_well() -> None:
    options: dict[str, Any] = {
        "residual_diff_threshold": 0.1,
        "enable_taylorseer": True,
        "enable_encoder_taylorseer": True,
        "taylorseer_cache_type": "hidden_states",
    }
    theirs = dbprune_run("qwen_image", options, 20)
    latents, summary = pruned("qwen_image", 20, **options)
    dense = dense_latents("qwen_image", 20)

    assert summary.pruned_ratio() == pytest.approx(next(iter(theirs.places.values())).ratio)
    assert relative(latents, dense) < 0.03 < relative(theirs.latents, dense)


# P7. The spared blocks after a refresh


@torch.no_grad()
def test_other_settings_spare_other_blocks_at_once() -> None:
    import cache_dit
    from cache_dit import DBPruneConfig

    steps = 3

    def run(model: torch.nn.Module) -> None:
        for step in range(steps):
            model(**transformer_inputs("flux", step=step, total=steps))

    def config(front: int) -> Any:
        return DBPruneConfig(
            Fn_compute_blocks=front,
            residual_diff_threshold=1.0,
            max_warmup_steps=1,
            num_inference_steps=steps,
        )

    model: Any = build_transformer("flux")
    cache_dit.enable_cache(model, cache_config=config(1))
    theirs = []
    for front in (1, 5):
        cache_dit.refresh_context(model, cache_config=config(front))
        run(model)
        (context,) = model._context_manager._cached_context_manager.values()
        theirs.append(context.get_pruned_blocks())
    cache_dit.disable_cache(model)
    assert theirs == [[0, 11, 11], [0, 11, 11]]

    model = build_transformer("flux")
    for front in (1, 5):
        backend = enable_cache(
            model, "dbprune", Fn_compute_blocks=front, residual_diff_threshold=1.0, max_warmup_steps=1
        )
        backend.refresh(model, steps)
        run(model)
        backend.disable(model)
        assert [*backend.summary().pruned_blocks().values()] == [0, 12 - front, 12 - front]


# P8. Blocks to spare that are not there


def test_a_block_to_spare_that_is_not_there_is_refused_or_told() -> None:
    dbprune_run("flux", {"non_prune_block_ids": [-1, 40]}, 2)

    with pytest.raises(ConfigError, match="non_prune_block_ids"):
        get_cache_backend("dbprune", {"non_prune_block_ids": [-1]})
    _, summary = pruned("flux", 6, non_prune_block_ids=[3, 40], residual_diff_threshold=1.0)

    assert [event.kind for event in summary.events] == ["no_such_block"]
    assert [*summary.pruned_blocks().values()] == [0] * 4 + [10] * 2


# P9. Every block spared


def test_settings_that_spare_every_block_are_refused() -> None:
    (theirs,) = dbprune_run("flux", {"Fn_compute_blocks": 7, "Bn_compute_blocks": 5}, 6).places.values()
    assert theirs.ratio == 0

    with pytest.raises(ConfigError, match="leave no block"):
        pruned("flux", Fn_compute_blocks=7, Bn_compute_blocks=5)


# P10. Defaults


def test_the_defaults_are_those_of_cache_dit_but_for_the_first_blocks_and_the_warm_up() -> None:
    from cache_dit import DBPruneConfig

    theirs = DBPruneConfig()
    backend: Any = get_cache_backend("dbprune")
    other = {key for key in DEFAULTS if getattr(backend.config, key) != getattr(theirs, key)}

    assert {key: getattr(backend.config, key) for key in DEFAULTS} == DEFAULTS
    assert other == {"Fn_compute_blocks", "max_warmup_steps"}


# P11. Smaller kept inputs


def test_the_kept_inputs_shrink_by_an_option_of_their_own_and_without_a_calibrator() -> None:
    with pytest.raises(ConfigError, match="force_reduce_calibrator_vram"):
        get_cache_backend("dbprune", {"force_reduce_calibrator_vram": True})
    sizes = []
    for factor in (1, 4):
        model = build_transformer("wan")
        backend: Any = enable_cache(model, "dbprune", downsample_factor=factor)
        with torch.no_grad(), backend.step(0, 9):
            model(**transformer_inputs("wan"))
        sizes.append(sum(tensor.nbytes for tensor in backend.held_tensors()))
    assert sizes[1] == sizes[0] // 2 + sizes[0] // 8


# P12. The sum of the differences


def test_the_sum_of_the_differences_is_no_limit_of_this_strategy() -> None:
    from cache_dit import DBPruneConfig

    assert hasattr(DBPruneConfig(), "max_accumulated_residual_diff_threshold")
    with pytest.raises(ConfigError, match="max_accumulated_residual_diff_threshold"):
        get_cache_backend("dbprune", {"max_accumulated_residual_diff_threshold": 1.0})
