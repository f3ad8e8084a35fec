"""Every card, on a tiny model of its class: a new card and its tiny model are tested without a line of test code.

What a model is given moves while its time stands still (`inputs`), so that a skipped step can follow it closely. How
closely tells a wrong layout or a wrong order of streams, which a still input cannot.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import Card, CardError, ConfigError, SpanBackend, enable_cache, list_cards
from dit_cache_backends.models import card_for, find_card
from dit_cache_backends.models.card import BlockList, Stack
from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs

from ..engine.counting import executed
from ..engine.runs import STILL, output, relative
from ..engine.strategies import LAYOUTS, always, never

pytestmark = pytest.mark.usefixtures("as_in_a_run")

NAMES = tuple(TINY_TRANSFORMERS)
WITHOUT_TINY_MODEL: dict[str, str] = {}
"""Cards that nothing here runs, with the reason."""

LEFT_OUT = {
    "MiniMaxMusic3RVQDepthDecoder": "it writes one token after the other and denoises nothing",
    "RFD4ProteinaTransformer": "between its blocks the pairs are made from what each of them gives",
}
"""Transformers of diffusers that have no card."""

CONTROL = "what a control net gives is added between the blocks"
REWRAPPED = {
    "bria_controlled": CONTROL,
    "bria_fibo": "half of each text token is replaced, and text and image are joined and parted",
    "flux_controlled": CONTROL,
    "hidream": "tokens of a language model are appended and cut off again",
    "latte": "frames and patches change places",
    "latte_square": "frames and patches change places",
    "sana_controlled": CONTROL,
    "sana_video": CONTROL,
    "wan_animate": "the face is added between the blocks",
    "wan_vace": "what the other list of blocks gives is added between the blocks",
}
"""Those that hand on something else than the very tensors that a block returned."""

FOLLOWED = 0.9
"""Error of a skipped step, of what the output changed by: 1 is as bad as not following at all."""
LOOSELY = {
    "PriorTransformer": (
        1.01,
        "what it gives is one token, into which the others come through skipped blocks only",
    ),
    "HunyuanDiT2DModel": (1.7, "its long skips are mixed in by random weights: what is added to is not kept"),
}


@dataclass(frozen=True)
class Known:
    """A tiny model and what it gives without any backend."""

    model: nn.Module
    card: Card
    still: Tensor
    moved: Tensor
    called: Counter[tuple[str, int]]
    """Blocks that a call runs, by the path of their list and their number, counted in a child of each."""


@functools.cache
def known(name: str) -> Known:
    """Built once: no test leaves anything behind on it."""
    model = build_transformer(name)
    with executed(model) as ran:
        still = output(model, inputs(name))
        called = Counter(ran.take())
        moved = output(model, inputs(name, moved=True))
    return Known(model, card_for(model), still, moved, called)


def inputs(name: str, moved: bool = False) -> dict[str, Any]:
    """Made anew for each call: a model may take things out of what it is given."""
    return transformer_inputs(name, step=10 if moved else 0, total=10**9)


@contextmanager
def enabled(backend: SpanBackend, model: nn.Module, card: Card | None = None) -> Iterator[SpanBackend]:
    try:
        backend.enable(model, card=card)
        yield backend
    finally:
        if backend.is_enabled():
            backend.disable()


def depths(name: str) -> dict[str, int]:
    """The blocks of each stack that a call of the model runs; a list that it does not call is no loss."""
    each = known(name)
    return {stack.name: sum(each.called[place] for place in places(each, stack)) for stack in stacks_of(each)}


def places(each: Known, stack: Stack) -> list[tuple[str, int]]:
    return [
        (blocks.path, number)
        for blocks in stack.lists
        for number in range(len(each.model.get_submodule(blocks.path)))[slice(*blocks.part)]  # type: ignore[arg-type]
    ]


def stacks_of(each: Known) -> tuple[Stack, ...]:
    return each.card.stacks if each.card.arrange is None else each.card.arrange(each.model)


def lists_of(each: Known) -> list[BlockList]:
    return [blocks for stack in stacks_of(each) for blocks in stack.lists]


def off(found: Tensor, each: Known) -> float:
    """How far a skipped step is from where the output went, relative to how far that is."""
    error, way = (found - each.moved).float().norm(), (each.still - each.moved).float().norm()
    return float(error / way)


def test_every_transformer_of_diffusers_has_a_card() -> None:
    import diffusers
    from diffusers.models import transformers

    modules = [
        importlib.import_module(f"{transformers.__name__}.{found.name}")
        for found in iter_modules(transformers.__path__)
    ]
    models = {
        cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, diffusers.ModelMixin)
        and cls.__module__ == module.__name__
    }
    assert len(models) > 70
    assert {cls.__name__ for cls in models | {diffusers.UVit2DModel} if find_card(cls) is None} == set(
        LEFT_OUT
    )


def test_every_card_has_a_tiny_model() -> None:
    tiny = {type(build_transformer(name)).__name__ for name in NAMES}
    cards = {card.transformer for card in list_cards() if card.library == "diffusers"}
    assert cards - tiny == set(WITHOUT_TINY_MODEL)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_that_of_the_class_and_its_stacks_are_all_there(name: str) -> None:
    each = known(name)
    assert each.card.transformer == type(each.model).__name__
    assert each.card.library == type(each.model).__module__.partition(".")[0]
    expected = TINY_TRANSFORMERS[name].stacks
    assert {stack.name: len(places(each, stack)) for stack in stacks_of(each)} == expected
    called = {stack: depth for stack, depth in depths(name).items() if depth}
    assert called
    assert called.items() <= expected.items()
    assert sum(called.values()) == sum(each.called.values())
    assert bool(each.still.isfinite().all())
    assert relative(each.moved, each.still) > 1e-3


def members(each: Known, stack: Stack) -> list[tuple[nn.Module, BlockList]]:
    lists = [
        [(block, blocks) for block in each.model.get_submodule(blocks.path).children()][slice(*blocks.part)]
        for blocks in stack.lists
    ]
    rows = zip(*lists, strict=True) if stack.alternate else lists
    return [member for row in rows for member in row]


def calls_of(each: Known, name: str, stack: Stack) -> list[tuple[nn.Module, list[Any], list[Any]]]:
    """Each block that a call of the model runs, with the streams that it is given and those that it gives."""
    calls: list[tuple[nn.Module, list[Any], list[Any]]] = []
    hooks = []
    for block, blocks in members(each, stack):

        def note(block: nn.Module, args: Any, kwargs: Any, out: Any, blocks: BlockList = blocks) -> None:
            given = inspect.signature(block.forward).bind(*args, **kwargs).arguments
            bare = isinstance(blocks.gives, str)
            assert isinstance(out, Tensor) if bare else len(out) == len(blocks.gives)
            named = dict(zip([blocks.gives] if bare else blocks.gives, [out] if bare else out, strict=True))
            streams = [given.get(stream) for stream in blocks.takes]
            after = [named.get(stream, before) for stream, before in zip(blocks.takes, streams, strict=True)]
            calls.append((block, streams, after))

        hooks.append(block.register_forward_hook(note, with_kwargs=True))
    output(each.model, inputs(name))
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_take_and_give_the_streams_that_the_card_names_in_its_order(name: str) -> None:
    each = known(name)
    same = []
    for stack in stacks_of(each):
        calls = calls_of(each, name, stack)
        order = [block for block, _ in members(each, stack)]
        assert [block for block, _, _ in calls] == (order if calls else [])
        for (_, _, given), (_, taken, _) in pairwise(calls):
            for number, (one, other) in enumerate(zip(given, taken, strict=True)):
                assert one is None or not any(
                    one is another for another in taken[:number] + taken[number + 1 :]
                )
                assert stack.alternate or one is None or one.shape == other.shape
                same.append(one is other)
    assert all(same) == (name not in REWRAPPED)


@pytest.mark.parametrize("name", NAMES)
def test_running_every_block_changes_no_bit_in_any_layout(name: str) -> None:
    each = known(name)
    for layout in LAYOUTS:
        with enabled(never(layout), each.model) as backend, executed(each.model) as ran:
            for step, (moved, expected) in enumerate([(False, each.still), (True, each.moved)]):
                with backend.step(step, 9):
                    assert torch.equal(output(each.model, inputs(name, moved)), expected), layout
                assert Counter(ran.take()) == each.called, layout
            assert backend.summary().blocks_skipped == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_still_input_is_reproduced_and_a_moved_one_followed(name: str, layout: str) -> None:
    each = known(name)
    spans = {stack: LAYOUTS[layout](depth) for stack, depth in depths(name).items() if depth}
    left = sum(
        depths(name)[stack] - sum(span.stop - span.start for span in of) for stack, of in spans.items()
    )
    with enabled(always(layout), each.model) as backend, executed(each.model) as ran:
        with backend.step(0, 9):
            assert torch.equal(output(each.model, inputs(name)), each.still)
        assert len(ran.take()) == sum(each.called.values())
        with backend.step(1, 9):
            assert relative(output(each.model, inputs(name)), each.still) <= STILL
        assert len(ran.take()) == left
        with backend.step(2, 9):
            followed = output(each.model, inputs(name, moved=True))
    bound, _ = LOOSELY.get(each.card.transformer, (FOLLOWED, ""))
    assert off(followed, each) < bound


def swapped(card: Card) -> Card:
    """The streams given in another order, everywhere."""

    def turned(stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
        return tuple(
            replace(
                stack,
                lists=tuple(
                    replace(each, gives=each.gives[::-1]) if set(each.gives) <= set(each.takes) else each
                    for each in stack.lists
                ),
            )
            for stack in stacks
        )

    arrange = card.arrange
    other = None if arrange is None else lambda model: turned(arrange(model))
    return replace(card, stacks=turned(card.stacks), arrange=other)


@pytest.mark.parametrize("name", NAMES)
def test_streams_in_the_wrong_order_are_refused_or_not_followed(name: str) -> None:
    each = known(name)
    wrong = swapped(each.card)
    if wrong.stacks == each.card.stacks:
        assert all(isinstance(blocks.gives, str) or len(blocks.takes) == 1 for blocks in lists_of(each))
        return
    with enabled(always("whole"), each.model, wrong) as backend:
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
    kept = 0 if strategy == "tea_cache" else sum(depth > 0 for depth in depths(name).values())
    backend: Any = enable_cache(each.model, strategy, **EAGER[strategy])
    with backend, executed(each.model) as ran:
        total = 0
        for step, moment in enumerate([0, 0, 1, 2]):
            arguments = transformer_inputs(name, step=moment)
            with backend.step(step, 4):
                found = output(each.model, arguments)
            assert found.shape == each.still.shape
            assert bool(found.isfinite().all())
            count = len(ran.take())
            total += count
            if step < 2:
                assert relative(found, each.still) <= STILL
                assert count == (kept if step else sum(each.called.values()))
        assert backend.summary().blocks_run == total
        assert backend.summary().blocks_run + backend.summary().blocks_skipped == 4 * sum(
            each.called.values()
        )
