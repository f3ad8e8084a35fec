"""Cards: how a transformer is found, what is said where none fits, and how one is added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from dit_cache_backends import (
    BlockList,
    Card,
    CardError,
    UnknownTransformerError,
    enable_cache,
    list_cards,
    register_card,
    stack,
)
from dit_cache_backends import models as known
from dit_cache_backends.models import find_card
from dit_cache_conformance.tiny import build

from .engine.runs import STILL, relative
from .engine.strategies import LAYOUTS, always
from .engine.toys import BOTH, ONE, E, H, Toy, adds, adds_to_both, card, image, lengthens, text, wraps

pytestmark = pytest.mark.usefixtures("as_in_a_run")


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(known._cards)
    yield
    known._cards.clear()
    known._cards.update(before)


class FluxTransformer2DModel(nn.Module):
    """A name that diffusers has too, from elsewhere."""


class FluxTransformr3DModel(nn.Module):
    """A name near to a known one."""


def test_an_unknown_class_is_an_error_with_the_names_near_to_it_and_the_way_to_add_a_card() -> None:
    with pytest.raises(UnknownTransformerError) as caught:
        always().enable(FluxTransformr3DModel())
    message = str(caught.value)
    assert "FluxTransformr3DModel" in message
    assert "Did you mean" in message
    assert "FluxTransformer2DModel" in message
    assert "register_card(Card(" in message
    assert "takes=" in message
    assert "gives=" in message


def test_the_line_that_the_error_offers_works_when_it_is_followed(registry: None) -> None:
    with pytest.raises(UnknownTransformerError) as caught:
        always().enable(Toy(adds))
    offered = str(caught.value).split("dit_cache_backends.")[-1].rstrip(".")
    names = {"register_card": register_card, "Card": Card, "stack": stack, "BlockList": BlockList}
    eval(offered.replace("transformer_blocks", "blocks"), names)
    model = Toy(adds, adds, adds)
    plain = model(image())[0]
    backend = always()
    backend.enable(model)
    for step in range(3):
        with backend.step(step, 9):
            assert relative(model(image())[0], plain) <= STILL
    assert backend.summary().cached_steps() == [1, 2]


def test_a_class_of_the_same_name_from_another_library_is_not_taken_for_the_known_one() -> None:
    assert find_card(FluxTransformer2DModel) is None
    with pytest.raises(UnknownTransformerError, match="Did you mean 'FluxTransformer2DModel'"):
        always().enable(FluxTransformer2DModel())


def test_a_subclass_is_found_through_its_bases_and_its_own_card_comes_first(registry: None) -> None:
    from diffusers import FluxTransformer2DModel as Known

    class Mine(Known):  # type: ignore[misc]
        pass

    inherited = find_card(Known)
    assert inherited is not None
    assert find_card(Mine) is inherited
    own = Card("Mine", inherited.stacks, library=None)
    register_card(own)
    assert find_card(Mine) is own
    assert find_card(Known) is inherited


def test_a_card_is_registered_once_unless_it_is_to_be_replaced(registry: None) -> None:
    register_card(ONE)
    register_card(ONE)
    with pytest.raises(CardError, match="replace=True"):
        register_card(BOTH)
    register_card(BOTH, replace=True)
    assert find_card(Toy) is BOTH
    assert BOTH in list_cards()


@pytest.mark.parametrize("gives", ["x", (H, "x"), ("x",)])
def test_a_card_that_contradicts_itself_is_refused_when_it_is_written(gives: Any) -> None:
    with pytest.raises(ValueError, match="'x'"):
        card((H,), gives)
    with pytest.raises(ValueError, match="takes"):
        card((), ())


def refused(model: Toy, wrong: Card, layout: str, *arguments: Any) -> str:
    cls = type(model)
    backend = always(layout)
    with pytest.raises(CardError) as caught:
        enabled_run(backend, model, wrong, *arguments)
    backend.disable()
    assert type(model) is cls
    return str(caught.value)


def enabled_run(backend: Any, model: Toy, wrong: Card, *arguments: Any) -> None:
    backend.enable(model, card=wrong)
    for step in range(2):
        with backend.step(step, 9):
            model(*arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_path_names_the_lists_there_are(layout: str) -> None:
    message = refused(Toy(*[adds] * 4), card(path="layers"), layout, image())
    assert "'layers'" in message
    assert "blocks" in message
    assert "Toy" in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_that_is_no_parameter_names_the_class_the_stream_and_the_parameters(layout: str) -> None:
    message = refused(Toy(*[adds] * 4), card((H, "image_hidden_states"), (H,)), layout, image())
    assert "Toy.blocks.0 (ToyBlock)" in message
    assert "'image_hidden_states'" in message
    assert f"{H}, {E}" in message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("move", "wrong", "got", "expected"),
    [
        (adds_to_both, card((H, E), H), "a tuple of 2", "a tensor"),
        (adds, BOTH, "Tensor", "a tuple of 2"),
        (adds, card((H,), (H,)), "Tensor", "a tuple of 1"),
        (adds_to_both, card((H, E), (H,)), "a tuple of 2", "a tuple of 1"),
    ],
)
def test_blocks_that_return_another_form_are_refused_at_their_first_call(
    move: Any, wrong: Card, got: str, expected: str, layout: str
) -> None:
    message = refused(Toy(*[move] * 4), wrong, layout, image(), text())
    assert "ToyBlock" in message
    assert f"returned {got}" in message
    assert f"the card says {expected}" in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_in_the_middle_of_another_form_is_refused_too(layout: str) -> None:
    last = Toy(adds, adds, adds, wraps)
    message = refused(last, ONE, layout, image())
    assert "Toy.blocks.3 (ToyBlock) returned dict" in message


@pytest.mark.parametrize("layout", ["whole", "all but the first", "one block each"])
def test_streams_in_the_wrong_order_are_refused_where_their_shapes_tell(layout: str) -> None:
    message = refused(Toy(*[adds_to_both] * 4), card((H, E), (E, H)), layout, image(), text())
    assert "ToyBlock" in message
    assert f"'{H}'" in message or f"'{E}'" in message


def test_a_span_that_changes_the_shape_of_its_stream_is_refused() -> None:
    message = refused(Toy(adds, adds, lengthens, adds), ONE, "whole", image())
    assert f"'{H}' enters the span as (2, 4, 8) and leaves it as (2, 8, 8)" in message


def test_a_stream_that_is_no_tensor_is_refused() -> None:
    class Listed(Toy):
        def forward(self, hidden_states: Any, encoder_hidden_states: Any = None) -> Any:
            return [block(E, hidden_states) for block in self.blocks]

    message = refused(Listed(lambda block, h, e: e), ONE, "whole", image())
    assert "called with str" in message
    assert f"{H!r}" in message


def test_a_list_without_blocks_and_one_block_at_two_places_are_refused() -> None:
    assert "holds a block" in refused(Toy(), ONE, "whole", image())
    twice = Card("Toy", (stack(BlockList("blocks", (H,), H), BlockList("blocks", (H,), H)),), library=None)
    assert "several places" in refused(Toy(adds, adds), twice, "whole", image())


def test_a_pipeline_without_a_transformer_says_what_it_has() -> None:
    class Bare:
        def __init__(self) -> None:
            self.net = nn.Linear(1, 1)

    with pytest.raises(UnknownTransformerError, match=r"Bare has no transformer.*net \(Linear\)"):
        enable_cache(Bare(), "cache_dit")


def test_a_pipeline_whose_second_model_is_unknown_is_refused_and_its_first_left_alone() -> None:
    tiny = build("wan22")
    cls = type(tiny.pipe.transformer)
    tiny.pipe.transformer_2 = FluxTransformr3DModel()
    with pytest.raises(UnknownTransformerError):
        always().enable(tiny.pipe)
    assert type(tiny.pipe.transformer) is cls
