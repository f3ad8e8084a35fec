"""Video classes whose blocks fill a store of keys and values, which calls of their own do in full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends.models import card_for
from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs
from dit_cache_conformance.tiny.spec import Moment
from dit_cache_conformance.tiny.wan_like import wan_animate_2, wan_animate_2_cache, wan_animate_2_call

from ..engine.counting import executed
from ..engine.runs import STILL, kinds, output, relative, run_told
from ..engine.strategies import LAYOUTS, always, never, planned
from .moments import enabled, moment

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STORES = ["anyflow_far", "sana_wm_refiner", "wan_animate_2"]


def stored(cache: Any) -> list[Tensor]:
    """Every tensor in a store, layer by layer."""
    layers = cache if isinstance(cache, list) else cache.layer_caches
    found = []
    for layer in layers:
        of_it = (layer if isinstance(layer, dict) else vars(layer)).values()
        found.extend(tensor.clone() for tensor in of_it if isinstance(tensor, Tensor))
    return found


def made(name: str) -> Any:
    make = TINY_TRANSFORMERS[name].kv_cache
    assert make is not None
    return make()


def fill(model: nn.Module, name: str, cache: Any) -> list[Tensor]:
    model(**moment(name, kv_cache=cache, kv_mode="write"))
    return stored(cache)


@pytest.mark.parametrize("name", STORES)
def test_a_call_that_fills_the_store_runs_in_full_between_skipped_steps(name: str) -> None:
    model = build_transformer(name)
    depth = sum(TINY_TRANSFORMERS[name].stacks.values())
    before, expected = stored(made(name)), fill(model, name, made(name))
    assert len(expected) >= 2 * depth
    assert len(before) != len(expected) or not all(map(torch.equal, before, expected))
    with enabled(always("whole"), model) as backend:
        for step in range(3):
            with backend.step(step, 9), executed(model) as ran:
                found = fill(model, name, made(name))
                assert len(ran.take()) == depth
                output(model, moment(name))
                assert len(ran) == (0 if step else depth)
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected))
        assert kinds(backend)["plain_call"] == 3
        assert [row.step for row in backend.summary().rows] == [0, 1, 2]


@pytest.mark.parametrize("name", STORES)
def test_without_that_line_in_the_card_the_store_would_not_be_filled(name: str) -> None:
    model = build_transformer(name)
    expected = fill(model, name, made(name))
    with enabled(always("whole"), model, replace(card_for(model), must_run=())) as backend:
        for step in range(2):
            with backend.step(step, 9):
                found = fill(model, name, made(name))
    assert len(found) != len(expected) or not all(map(torch.equal, found, expected))


def test_the_second_window_of_the_sana_refiner_fills_its_store_while_it_reads_the_first() -> None:
    name = "sana_wm_refiner"
    model = build_transformer(name)
    mode = "inject_and_capture_post_rope"
    plain = output(model, moment(name, kv_cache=made(name)) | {"kv_cache_mode": mode})
    with enabled(always("whole"), model) as backend:
        for step in range(3):
            cache = made(name)
            with backend.step(step, 9), executed(model) as ran:
                found = output(model, moment(name, kv_cache=cache) | {"kv_cache_mode": mode})
            assert torch.equal(found, plain)
            assert len(ran) == 6
            assert len(stored(cache)) == 12


def test_anyflow_begins_anew_with_each_chunk_of_a_video() -> None:
    """Its pipeline fills the store with a finished chunk, and starts from noise with the next."""
    name = "anyflow_far"
    model = build_transformer(name)
    with enabled(planned("10"), model) as backend:
        for chunk in range(3):
            fill(model, name, made(name))
            for step in range(4):
                output(model, transformer_inputs(name, seed=chunk, step=step, total=4))
            assert backend.summary().cached_steps() == [1, 2, 3]


DEEP = 11
LEFT_OUT = 9


def animated(conditional: bool, step: int = 0) -> dict[str, Any]:
    return wan_animate_2_call(Moment(0, step, 1.0, 1), DEEP) | {
        "kv_cache": wan_animate_2_cache(DEEP),
        "is_uncondtion": not conditional,
        "return_dict": False,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("told", [("cond", "uncond"), (None, None)])
def test_the_unconditional_call_of_wan_animate_2_leaves_out_a_block_and_is_right(
    told: tuple[str | None, str | None], layout: str
) -> None:
    model = wan_animate_2(DEEP)
    calls = [animated(True), animated(False)]
    plain = [output(model, arguments) for arguments in calls]
    assert relative(*plain) > 1e-3
    with enabled(always(layout), model) as backend:
        for step in range(3):
            for branch, arguments, expected in zip(told, calls, plain, strict=True):
                with backend.step(step, 9, branch), executed(model) as ran:
                    assert relative(output(model, arguments), expected) <= STILL
                if step == 0:
                    assert (("blocks", LEFT_OUT) in ran.blocks) == (arguments is calls[0])
        assert "forward_repeated" not in kinds(backend)


def test_calls_of_wan_animate_2_that_change_places_never_get_the_residual_of_the_other() -> None:
    model = wan_animate_2(DEEP)
    order = [True, False, False, True, False]
    run = [animated(conditional) for conditional in order]
    plain = [output(model, arguments) for arguments in run]
    with enabled(always("all but the first"), model) as backend:
        found = run_told(backend, model, run)
        assert max(map(relative, found, plain)) <= STILL
        assert kinds(backend)["forward_repeated"] == 3


def test_never_skipping_leaves_the_masks_that_wan_animate_2_keeps_alone() -> None:
    model: Any = build_transformer("wan_animate_2")
    masks = dict(model.block_masks)
    with enabled(never("whole"), model) as backend, backend.step(0, 2):
        output(model, moment("wan_animate_2"))
    assert model.block_masks == masks
