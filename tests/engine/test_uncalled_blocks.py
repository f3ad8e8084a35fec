"""A model may leave blocks out, always or in some calls, without a wrong residual being handed out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .counting import executed
from .runs import STILL, kinds, output, relative, run_plain, run_told, same
from .strategies import LAYOUTS, always, planned

FIRST, MIDDLE, LAST = 1, 3, 6
"""Places in the span of blocks 1 to 6 of the tiny SD3."""


def calls(skipped: Sequence[list[int] | None]) -> list[dict[str, object]]:
    """A still input; what changes from call to call is which layers are left out."""
    return [transformer_inputs("sd3") | ({"skip_layers": layers} if layers else {}) for layers in skipped]


@pytest.mark.parametrize("layer", [0, FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_that_is_never_called_leaves_a_still_input_right(layout: str, layer: int) -> None:
    model = build_transformer("sd3")
    run = calls([[layer]] * 4)
    plain = run_plain(model, run)
    backend = always(layout)
    backend.enable(model)
    found = run_told(backend, model, run)
    assert max(relative(one, other) for one, other in zip(found, plain, strict=True)) <= STILL


@pytest.mark.parametrize("layer", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("layout", ["whole", "all but the first"])
@pytest.mark.parametrize("order", ["all, then fewer", "fewer, then all"])
def test_a_forward_that_calls_other_blocks_than_the_stored_one_is_made_again_in_full(
    order: str, layout: str, layer: int
) -> None:
    model = build_transformer("sd3")
    run = calls([None, [layer]] if order == "all, then fewer" else [[layer], None])
    plain = run_plain(model, run)
    backend = always(layout)
    backend.enable(model)
    with executed(model) as ran:
        found = run_told(backend, model, run)
    assert same(found, plain)
    assert sorted(number for _, number in ran.blocks[-(7 - (order[0] == "a")) :]) == [
        number for number in range(7) if order[0] != "a" or number != layer
    ]


@pytest.mark.parametrize("layout", ["whole", "all but the first"])
def test_blocks_that_were_not_called_run_in_the_forward_that_is_made_again(layout: str) -> None:
    """Without the last block the engine never came to the end of the skipped span."""
    model = build_transformer("sd3")
    run = calls([None, [MIDDLE, LAST], None, [FIRST, LAST], [FIRST, LAST], None])
    plain = run_plain(model, run)
    backend = always(layout)
    backend.enable(model)
    found = run_told(backend, model, run)
    assert max(relative(one, other) for one, other in zip(found, plain, strict=True)) <= STILL
    assert same(found[1:2] + found[3:4], plain[1:2] + plain[3:4])
    assert kinds(backend)["forward_repeated"]


@pytest.mark.parametrize("layout", ["whole", "all but the first"])
def test_layers_that_change_from_step_to_step_never_get_a_residual_of_other_blocks(layout: str) -> None:
    model = build_transformer("sd3")
    run = calls(
        [None, [FIRST], None, [MIDDLE], [MIDDLE], [LAST], [FIRST, LAST], None, [LAST], [MIDDLE], None]
    )
    plain = run_plain(model, run)
    backend = always(layout)
    backend.enable(model)
    found = run_told(backend, model, run)
    errors = [relative(one, other) for one, other in zip(found, plain, strict=True)]
    assert max(errors) <= STILL
    assert 4 in backend.summary().cached_steps()


def test_a_repeated_forward_is_counted_and_its_blocks_are_counted_once() -> None:
    model = build_transformer("sd3")
    backend = always()
    backend.enable(model)
    run_told(backend, model, calls([None, [MIDDLE]]))
    assert kinds(backend).get("forward_repeated") == 1
    rows = [(row.step, row.blocks_run, row.blocks_skipped) for row in backend.summary().rows]
    assert rows == [(0, 7, 0), (1, 6, 0)]


def test_a_span_whose_last_block_is_never_called_says_that_it_cannot_be_skipped() -> None:
    model = build_transformer("sd3")
    backend = always()
    backend.enable(model)
    run_told(backend, model, calls([[LAST]] * 3))
    assert kinds(backend).get("blocks_not_called") == 3


def test_skip_layer_guidance_leaves_the_other_call_of_the_step_alone() -> None:
    """SD3's guidance call leaves out a block in the middle and comes in the first part of the run only."""
    tiny = build("sd3")
    guided = {"skip_guidance_layers": [MIDDLE], "skip_layer_guidance_stop": 0.6, "guidance_scale": 3.0}
    plain = tiny.run(8, **guided)
    backend = planned("1")
    backend.enable(tiny.pipe)
    assert torch.equal(tiny.run(8, **guided), plain)
    backend.disable()
    backend = planned("10")
    backend.enable(tiny.pipe)
    found = tiny.run(8, **guided)
    assert bool(found.isfinite().all())
    steps = {branch: backend.summary().cached_steps(branch=branch) for branch in ("0", "1")}
    assert steps["0"] == [1, 2, 3, 4, 5, 6, 7]
    assert steps["1"]
    assert set(steps["1"]) < set(steps["0"])


def test_a_block_that_was_exchanged_after_enabling_still_gives_the_right_output() -> None:
    for index in (FIRST, MIDDLE, LAST):
        model = build_transformer("sd3")
        arguments = transformer_inputs("sd3")
        backend = always()
        backend.enable(model)
        blocks: nn.ModuleList = model.transformer_blocks  # type: ignore[assignment]
        blocks[index] = build_transformer("sd3").transformer_blocks[index - 1 if index == MIDDLE else index]  # type: ignore[index]
        other = [output(model, arguments)] * 3
        found = run_told(backend, model, [arguments] * 3)
        assert max(relative(one, expected) for one, expected in zip(found, other, strict=True)) <= STILL, (
            index
        )
        backend.disable()
