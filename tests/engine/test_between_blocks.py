"""What a model does between its blocks survives: ControlNet residuals, and writes into a block's own output."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .counting import executed
from .runs import STILL, output, relative
from .strategies import LAYOUTS, always

CONTROLLED = ("flux_controlled", "chroma")


def without_control(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if not name.startswith("controlnet")}


@pytest.mark.parametrize("name", CONTROLLED)
def test_the_control_residuals_of_the_tiny_inputs_matter(name: str) -> None:
    model = build_transformer(name)
    arguments = transformer_inputs(name)
    assert relative(output(model, without_control(arguments)), output(model, arguments)) > 0.05


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONTROLLED)
def test_a_still_input_under_control_is_reproduced_at_every_skip(name: str, layout: str) -> None:
    model = build_transformer(name)
    arguments = transformer_inputs(name)
    plain = output(model, arguments)
    backend = always(layout)
    backend.enable(model)
    for step in range(5):
        with backend.step(step, 9):
            assert relative(output(model, arguments), plain) <= STILL, step


@pytest.mark.parametrize("bn", [0, 1])
@pytest.mark.parametrize("kind", ["residual", "hidden_states"])
def test_chroma_may_write_its_control_into_the_tensor_that_a_block_returned(kind: str, bn: int) -> None:
    model = build_transformer("chroma")
    arguments = transformer_inputs("chroma")
    plain = output(model, arguments)
    backend: Any = enable_cache(
        model,
        "cache_dit",
        residual_diff_threshold=2.0,
        max_warmup_steps=1,
        max_continuous_cached_steps=-1,
        Bn_compute_blocks=bn,
        enable_taylorseer=True,
        taylorseer_cache_type=kind,
    )
    with executed(model) as ran:
        for step in range(5):
            with backend.step(step, 9):
                assert relative(output(model, arguments), plain) <= STILL, step
    assert len(ran) == 8 + 4 * (2 + 2 * bn)


def test_a_control_that_moves_on_a_skipped_step_is_seen_by_the_blocks_that_run() -> None:
    model = build_transformer("flux_controlled")
    first, second = transformer_inputs("flux_controlled"), transformer_inputs("flux_controlled")
    second["controlnet_block_samples"] = [2 * sample for sample in second["controlnet_block_samples"]]
    plain = output(model, second)
    backend = always("one block each")
    backend.enable(model)
    with backend.step(0, 9):
        before = output(model, first)
    with backend.step(1, 9):
        found = output(model, second)
    assert relative(found, plain) < 0.25 * relative(before, plain)


def test_a_controlnet_pipeline_that_skips_nothing_gives_the_plain_picture() -> None:
    tiny = build("flux_controlnet")
    plain = tiny.run(4)
    backend = enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.0)
    assert torch.equal(tiny.run(4), plain)
    assert backend.summary().blocks_skipped == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_controlnet_pipeline_whose_input_stands_still_gives_the_plain_outputs(layout: str) -> None:
    """The scheduler is made to stand still in value: every step sees the same latents and the same time."""
    tiny = build("flux_controlnet")
    seen: list[torch.Tensor] = []
    frozen: dict[str, Any] = {}
    transformer = tiny.pipe.transformer

    def freeze(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        for name in (
            "hidden_states",
            "timestep",
            "controlnet_block_samples",
            "controlnet_single_block_samples",
        ):
            frozen.setdefault(name, kwargs[name])
        return args, kwargs | frozen

    transformer.register_forward_pre_hook(freeze, with_kwargs=True)
    transformer.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    backend = always(layout)
    backend.enable(tiny.pipe)
    tiny.run(4)
    assert len(seen) == 4
    assert backend.summary().cached_steps() == [1, 2, 3]
    assert all(relative(found, seen[0]) <= STILL for found in seen[1:])
