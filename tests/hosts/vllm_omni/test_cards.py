"""Every card of a class of vLLM-Omni, on a tiny model of it: the checks that `tests/models` makes of diffusers'.

What a model is given moves while its time stands still, so that a skipped step can follow it closely.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import Card, CardError, ConfigError, SpanBackend, enable_cache, list_cards
from dit_cache_backends.models import card_for, find_card
from dit_cache_backends.models.card import BlockList

from ...engine.strategies import LAYOUTS, always, never
from .counting import executed
from .tiny import Moment, output
from .tiny_more import TINY

pytestmark = pytest.mark.usefixtures("in_a_worker")

NAMES = tuple(TINY)
STILL: dict[str, float] = {"hidream": 0.02, "minimax_h3": 0.02}
"""How far a still input may be off after a skip: in bfloat16 a sum is rounded to three digits."""
FOLLOWED = 0.9
"""Error of a skipped step, of what the output changed by: 1 is as bad as not following at all."""
FAR = 10.0
ASIDE = {"sd3": 1}
"""Blocks of the lists that are in no stack."""


@dataclass(frozen=True)
class Known:
    """A tiny model and what it gives without any backend."""

    model: nn.Module
    card: Card
    still: Tensor
    moved: Tensor
    called: Counter[tuple[str, int]]


@functools.cache
def known(name: str) -> Known:
    """Built once: no test leaves anything behind on it."""
    model = TINY[name].build()
    with executed(model, TINY[name].lists) as ran:
        still = output(model, inputs(name))
        called = Counter(ran.take())
        moved = output(model, inputs(name, moved=True))
    return Known(model, card_for(model), still, moved, called)


def inputs(name: str, moved: bool = False) -> dict[str, Any]:
    return TINY[name].inputs(Moment(moved=FAR if moved else 0.0))


@contextmanager
def enabled(backend: SpanBackend, model: nn.Module, card: Card | None = None) -> Iterator[SpanBackend]:
    try:
        backend.enable(model, card=card)
        yield backend
    finally:
        if backend.is_enabled():
            backend.disable()


def off(found: Tensor, each: Known) -> float:
    """How far a skipped step is from where the output went, relative to how far that is."""
    return float((found - each.moved).norm() / (each.still - each.moved).norm())


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_card_of_vllm_omni_has_a_tiny_model() -> None:
    tried = {card_for(known(name).model).transformer for name in NAMES}
    assert tried == {card.transformer for card in list_cards() if card.library == "vllm_omni"}


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_that_of_the_class_and_its_stacks_are_all_called(name: str) -> None:
    each = known(name)
    assert each.card.library == "vllm_omni"
    assert find_card(type(each.model)) is each.card
    depths = {
        stack.name: sum(
            len(list(each.model.get_submodule(blocks.path).children())[slice(*blocks.part)])
            for blocks in stack.lists
        )
        for stack in each.card.stacks
    }
    assert depths == TINY[name].stacks
    assert sum(each.called.values()) == sum(depths.values()) + ASIDE.get(name, 0)
    assert set(each.called.values()) == {1}
    assert bool(each.still.isfinite().all())
    assert relative(each.moved, each.still) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_running_every_block_changes_no_bit_in_any_layout(name: str) -> None:
    each = known(name)
    for layout in LAYOUTS:
        with enabled(never(layout), each.model) as backend, executed(each.model, TINY[name].lists) as ran:
            for step, (moved, expected) in enumerate([(False, each.still), (True, each.moved)]):
                with backend.step(step, 9):
                    assert torch.equal(output(each.model, inputs(name, moved)), expected), layout
                assert Counter(ran.take()) == each.called, layout
            assert backend.summary().blocks_skipped == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_still_input_is_reproduced_and_a_moved_one_followed(name: str, layout: str) -> None:
    each = known(name)
    spans = {stack: LAYOUTS[layout](depth) for stack, depth in TINY[name].stacks.items()}
    left = sum(each.called.values()) - sum(span.stop - span.start for of in spans.values() for span in of)
    with enabled(always(layout), each.model) as backend, executed(each.model, TINY[name].lists) as ran:
        with backend.step(0, 9):
            assert torch.equal(output(each.model, inputs(name)), each.still)
        assert len(ran.take()) == sum(each.called.values())
        with backend.step(1, 9):
            assert relative(output(each.model, inputs(name)), each.still) <= STILL.get(name, 1e-5)
        assert len(ran.take()) == left
        with backend.step(2, 9):
            followed = output(each.model, inputs(name, moved=True))
    assert off(followed, each) < FOLLOWED


def swapped(card: Card) -> Card:
    """The streams given in another order, everywhere."""

    def turned(blocks: BlockList) -> BlockList:
        return replace(blocks, gives=blocks.gives[::-1]) if set(blocks.gives) <= set(blocks.takes) else blocks

    stacks = tuple(
        replace(stack, lists=tuple(turned(blocks) for blocks in stack.lists)) for stack in card.stacks
    )
    return replace(card, stacks=stacks)


TWO_STREAMS = [
    name
    for name in NAMES
    if any(
        len(blocks.takes) > 1
        for stack in find_card(TINY[name].cls).stacks
        for blocks in stack.lists  # type: ignore[union-attr]
    )
]


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_streams_in_the_wrong_order_are_refused_or_not_followed(name: str) -> None:
    each = known(name)
    with enabled(always("whole"), each.model, swapped(each.card)) as backend:
        try:
            for step in range(2):
                with backend.step(step, 9):
                    found = output(each.model, inputs(name, moved=step > 0))
        except CardError:
            return
        assert off(found, each) > FOLLOWED


EAGER: dict[str, dict[str, Any]] = {
    "cache_dit": {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.5},
    "dbprune": {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.5},
    "tea_cache": {"coefficients": "identity", "rel_l1_thresh": 0.5},
}


@pytest.mark.parametrize("strategy", EAGER)
@pytest.mark.parametrize("name", NAMES)
def test_each_strategy_skips_what_stands_still_and_goes_on(name: str, strategy: str) -> None:
    each = known(name)
    if strategy == "tea_cache" and not each.card.signals:
        with pytest.raises(ConfigError, match="does not say how"):
            enable_cache(each.model, strategy, **EAGER[strategy])
        return
    kept = ASIDE.get(name, 0) + (0 if strategy == "tea_cache" else len(TINY[name].stacks))
    backend: Any = enable_cache(each.model, strategy, **EAGER[strategy])
    with backend, executed(each.model, TINY[name].lists) as ran:
        total = 0
        for step, moved in enumerate([0.0, 0.0, 1.0, 2.0]):
            with backend.step(step, 4):
                found = output(each.model, TINY[name].inputs(Moment(moved=moved)))
            assert bool(found.isfinite().all())
            count = len(ran.take())
            total += count
            if step < 2:
                assert relative(found, each.still) <= STILL.get(name, 1e-5)
                assert count == (kept if step else sum(each.called.values()))
        assert backend.summary().blocks_run == total - 4 * ASIDE.get(name, 0)


SIGNALS = [name for name in NAMES if find_card(TINY[name].cls).signals]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SIGNALS)
def test_what_tea_cache_compares_moves_with_the_latents_or_with_the_time_and_not_by_itself(name: str) -> None:
    each = known(name)
    backend: Any = enable_cache(each.model, "tea_cache", coefficients="identity", rel_l1_thresh=1e-9)
    with backend:
        for step, moment in enumerate([Moment(), Moment(), Moment(moved=FAR, time=0.3)]):
            with backend.step(step, 4):
                output(each.model, TINY[name].inputs(moment))
        found = backend.summary().diffs()
    assert found[1] == 0.0
    assert found[2] > 1e-3


def test_glm_image_runs_in_full_while_it_fills_the_store_of_a_picture_to_edit() -> None:
    from vllm_omni.diffusion.models.glm_image.glm_image_transformer import GlmImageKVCache

    each = known("glm_image")
    store = GlmImageKVCache(4)
    store.set_mode("write")
    with (
        enabled(always("whole"), each.model) as backend,
        executed(each.model, TINY["glm_image"].lists) as ran,
    ):
        for _ in range(2):
            output(each.model, inputs("glm_image") | {"kv_cache": store})
            assert len(ran.take()) == 4
        store.set_mode("read")
        for step in range(2):
            with backend.step(step, 9):
                output(each.model, inputs("glm_image") | {"kv_cache": store})
        assert len(ran.take()) == 4
