"""Other options for one transformer or one stack, and presets by the number of steps."""

from __future__ import annotations

import pytest
import torch

from dit_cache_backends import ConfigError, enable_cache, get_cache_backend
from dit_cache_conformance.tiny import build

STATIC = {"steps_computation_policy": "static", "max_warmup_steps": 1}


def test_an_override_changes_one_stack_and_leaves_the_other() -> None:
    tiny = build("hunyuan_video")
    first, second = tiny.spec.stacks
    with enable_cache(
        tiny.pipe,
        "cache_dit",
        steps_computation_mask="1000000000",
        overrides={second: {"steps_computation_mask": "1111111111"}},
        **STATIC,
    ) as backend:
        tiny.run(10)
        summary = backend.summary()
    assert summary.cached_steps(stack=first) == list(range(1, 10))
    assert summary.cached_steps(stack=second) == []


def test_an_override_of_a_stack_is_the_same_as_a_backend_of_its_own_there() -> None:
    tiny = build("hunyuan_video")
    first, second = tiny.spec.stacks
    mixed = {first: {"Fn_compute_blocks": 2, "enable_taylorseer": True}, second: {"Bn_compute_blocks": 1}}
    with enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.4, overrides=mixed) as backend:
        tiny.run()
        rows = {
            name: [row for row in backend.summary().rows if row.stack == name] for name in tiny.spec.stacks
        }
    depth = tiny.spec.stacks[first]
    assert {row.blocks_run for row in rows[first]} == {depth, 2}
    depth = tiny.spec.stacks[second]
    assert {row.blocks_run for row in rows[second]} == {depth, 2}  # Fn 1, Bn 1


@pytest.mark.parametrize("name", ["transformer_2", "transformer_2.blocks", "secondary"])
def test_the_second_expert_may_have_options_of_its_own(name: str) -> None:
    tiny = build("wan22")
    change = {"max_cached_steps": 2}
    options = {"secondary": change} if name == "secondary" else {"overrides": {name: change}}
    with enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=1.0, **options) as backend:
        tiny.run()
        summary = backend.summary()
    assert len(summary.cached_steps("transformer_2", "cond")) == 2
    assert len(summary.cached_steps("transformer", "cond")) > 2


def test_each_expert_may_have_a_mask_of_its_own_steps() -> None:
    tiny = build("wan22")
    tiny.run(12)
    with enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.0) as backend:
        tiny.run(12)
        rows = backend.summary().rows
    steps = {
        name: [row.step for row in rows if row.transformer == name and row.branch == "cond"]
        for name in ("transformer", "transformer_2")
    }
    high, low = len(steps["transformer"]), len(steps["transformer_2"])
    assert high + low == 12
    with enable_cache(
        tiny.pipe,
        "cache_dit",
        steps_computation_mask="1" + "0" * (high - 1),
        overrides={"transformer_2": {"steps_computation_mask": "1" * (low - 1) + "0"}},
        **STATIC,
    ) as backend:
        tiny.run(12)
        summary = backend.summary()
    assert summary.cached_steps("transformer", "cond") == steps["transformer"][1:]
    assert summary.cached_steps("transformer_2", "cond") == steps["transformer_2"][-1:]
    assert not [event for event in summary.events if event.kind == "mask_length"]


def test_an_override_may_take_another_strategy_for_one_stack() -> None:
    tiny = build("hunyuan_video")
    first, second = tiny.spec.stacks
    with enable_cache(
        tiny.pipe,
        "cache_dit",
        max_warmup_steps=2,
        overrides={second: {"cache_backend": "dbprune", "residual_diff_threshold": 1.0}},
        residual_diff_threshold=0.0,
    ) as backend:
        tiny.run(6)
        summary = backend.summary()
    assert summary.cached_steps(stack=first) == []
    depth = tiny.spec.stacks[second]
    # The warm-up of two steps was given for the whole and is known to both.
    assert [row.blocks_skipped for row in summary.rows if row.stack == second][:3] == [0, 0, depth - 1]


def test_what_an_override_says_takes_the_place_of_what_says_the_same_in_another_way() -> None:
    backend = get_cache_backend(
        "cache_dit",
        {
            "scm_steps_mask_policy": "fast",
            "enable_taylorseer": True,
            "overrides": {"a": {"steps_computation_mask": "10"}, "b": {"calibrator": "foca"}},
        },
    )
    assert backend.part("a").config.explicit_mask == (1, 0)
    assert backend.part("a").config.policy is None
    assert backend.part("a").config.enable_taylorseer
    assert backend.part("b").config.calibrator_of(main=True) == "foca"
    assert backend.part("b").config.policy == "fast"
    assert backend.part("c") is backend


def test_a_stack_of_one_transformer_is_named_more_closely_than_the_stack_and_that_than_the_transformer() -> (
    None
):
    overrides = {
        "transformer_2": {"max_warmup_steps": 2, "Bn_compute_blocks": 2},
        "blocks": {"max_warmup_steps": 3, "Fn_compute_blocks": 3},
        "transformer_2.blocks": {"max_warmup_steps": 5},
    }
    part = get_cache_backend("cache_dit", {"overrides": overrides}).part("transformer_2", "blocks").config
    assert (part.max_warmup_steps, part.Bn_compute_blocks, part.Fn_compute_blocks) == (5, 2, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"overrides": {"transformer_2": {"Fn_compute_block": 2}}},
            ["transformer_2", "Did you mean 'Fn_compute_blocks'"],
        ),
        ({"overrides": {"transformer_2": {"Fn_compute_blocks": "2"}}}, ["transformer_2", "a whole number"]),
        (
            {"overrides": {"transformer_2": {"overrides": {}}}},
            ["transformer_2", "cannot stand within overrides"],
        ),
        ({"overrides": {"transformer_2": {"cache_backend": "dbprunes"}}}, ["transformer_2", "dbprune"]),
        (
            {"overrides": {"transformer_2": {}}, "secondary": {}},
            ["secondary", "transformer_2", "give one of them"],
        ),
        ({"overrides": {"transformer_2": 3}}, ["overrides", "mapping"]),
        ({"preset": "fastest"}, ["preset", "Did you mean 'fast'"]),
    ],
)
def test_a_wrong_setting_of_a_part_is_refused_when_it_is_made(options: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        get_cache_backend("cache_dit", options)
    for word in words:
        assert word in str(caught.value)


def test_an_override_of_a_part_that_the_model_does_not_have_names_those_it_has() -> None:
    tiny = build("flux")
    before = type(tiny.pipe.transformer)
    with pytest.raises(
        ConfigError, match=r"no transformer and no stack 'transformers'.*Did you mean 'transformer'"
    ):
        enable_cache(tiny.pipe, "cache_dit", overrides={"transformers": {"Fn_compute_blocks": 2}})
    assert type(tiny.pipe.transformer) is before


def test_an_override_that_leaves_nothing_to_skip_is_refused_with_the_name_of_the_stack() -> None:
    tiny = build("hunyuan_video")
    second = list(tiny.spec.stacks)[1]
    with pytest.raises(ConfigError, match=second):
        enable_cache(tiny.pipe, "cache_dit", overrides={second: {"Fn_compute_blocks": 99}})


def test_the_summary_tells_the_options_of_each_part() -> None:
    tiny = build("hunyuan_video")
    first, second = tiny.spec.stacks
    with enable_cache(
        tiny.pipe, "cache_dit", max_warmup_steps=2, overrides={second: {"residual_diff_threshold": 0.5}}
    ) as backend:
        tiny.run(4)
        summary = backend.summary()
    assert summary.settings["transformer", first] == {"max_warmup_steps": 2}
    assert summary.settings["transformer", second] == {"max_warmup_steps": 2, "residual_diff_threshold": 0.5}
    assert "residual_diff_threshold=0.5" in str(summary)
    told = summary.to_dict()["settings"]
    assert {"transformer": "transformer", "stack": first, "options": {"max_warmup_steps": 2}} in told


@pytest.mark.parametrize("steps", [28, 50, 12, 8, 6, 5, 4, 3])
@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "ultra"])
def test_a_preset_skips_more_the_further_right_and_follows_the_number_of_steps(
    steps: int, preset: str
) -> None:
    presets = ["quality", "balanced", "fast", "ultra"]
    tiny = build("flux")
    run = {}
    for name in presets[max(presets.index(preset) - 1, 0) : presets.index(preset) + 1]:
        with enable_cache(tiny.pipe, "cache_dit", preset=name) as backend:
            latents = tiny.run(steps)
            summary = backend.summary()
        assert torch.isfinite(latents).all()
        run[name] = summary.blocks_run
        assert summary.blocks_skipped > 0
        assert summary.settings["transformer", "transformer_blocks"]["preset"] == name
    assert list(run.values()) == sorted(run.values(), reverse=True)


def test_a_preset_in_two_steps_skips_nothing_and_says_so() -> None:
    tiny = build("flux")
    with enable_cache(tiny.pipe, "cache_dit", preset="fast") as backend:
        tiny.run(2)
        summary = backend.summary()
    assert summary.blocks_skipped == 0
    assert any(event.kind == "nothing_skipped" for event in summary.events)


def test_what_is_given_beside_a_preset_stays() -> None:
    tiny = build("flux")
    with enable_cache(
        tiny.pipe,
        "cache_dit",
        preset="ultra",
        steps_computation_mask="11101",
        steps_computation_policy="static",
    ) as backend:
        tiny.run(5)
        assert backend.summary().cached_steps() == [3]


def test_one_backend_with_a_preset_serves_runs_of_different_lengths() -> None:
    tiny = build("flux")
    cached = {}
    with enable_cache(tiny.pipe, "cache_dit", preset="fast") as backend:
        for steps in (28, 8, 28):
            tiny.run(steps)
            cached.setdefault(steps, []).append(backend.summary().cached_steps())
    assert cached[28][0] == cached[28][1]
    assert 0 < len(cached[8][0]) < len(cached[28][0])


@pytest.mark.parametrize("name", ["dbprune", "tea_cache"])
def test_every_strategy_has_the_presets(name: str) -> None:
    from dit_cache_backends.demo import load_demo, paint

    pipe = load_demo()
    options = {"coefficients": "flux_dev"} if name == "tea_cache" else {}
    run = []
    for preset in ("quality", "balanced", "fast", "ultra"):
        with enable_cache(pipe, name, preset=preset, **options) as backend:
            paint(pipe, ["a large red circle on a white background"])
            run.append(backend.summary().blocks_run)
    assert run == sorted(run, reverse=True)
    assert len(set(run)) == 4
    assert run[0] < 28 * 12
