"""A card that does not fit its model is refused in the first forward, on real models and in every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dit_cache_backends import BlockList, Card, CardError, stack
from dit_cache_backends.models import card_for
from dit_cache_conformance.tiny import build_transformer, transformer_inputs
from dit_cache_conformance.tiny.weights import noise

from ..engine.runs import STILL, output, relative
from ..engine.strategies import LAYOUTS, always
from ..engine.toys import BOTH, E, H, Toy, adds, adds_to_both, card, image, text

pytestmark = pytest.mark.usefixtures("as_in_a_run")

layouts = pytest.mark.parametrize("layout", LAYOUTS)
FLUX, SINGLE = "transformer_blocks", "single_transformer_blocks"


def equal_tokens(name: str) -> dict[str, Any]:
    """Inputs with as many text tokens as image tokens, so that no shape tells the streams apart."""
    arguments = transformer_inputs(name)
    tokens = 16
    arguments["encoder_hidden_states"] = noise(1, tokens, 32, seed=9)
    if "txt_ids" in arguments:
        arguments["txt_ids"] = torch.zeros(tokens, 3)
    return arguments


def changed(name: str, **changes: Any) -> Card:
    """The card of a tiny model with every list of its first stack changed."""
    found = card_for(build_transformer(name))
    lists = tuple(replace(each, **changes) for each in found.stacks[0].lists)
    return replace(found, stacks=(replace(found.stacks[0], lists=lists), *found.stacks[1:]))


def one_step(backend: Any, model: nn.Module, wrong: Card, arguments: dict[str, Any]) -> None:
    backend.enable(model, card=wrong)
    with backend.step(0, 9):
        output(model, arguments)


def refused(model: nn.Module, wrong: Card, arguments: dict[str, Any], layout: str) -> str:
    """What is said when a single forward is made with the wrong card; the model is as before after it."""
    plain = output(model, arguments)
    backend = always(layout)
    with pytest.raises(CardError) as caught:
        one_step(backend, model, wrong, arguments)
    backend.disable()
    assert torch.equal(output(model, arguments), plain)
    return str(caught.value)


@layouts
@pytest.mark.parametrize("name", ["flux", "qwen_image", "sd3"])
def test_swapped_streams_of_equal_shape_are_told_by_where_they_go(name: str, layout: str) -> None:
    message = refused(build_transformer(name), changed(name, gives=(H, E)), equal_tokens(name), layout)
    assert f"{FLUX}.0" in message
    assert f"{FLUX}.1" in message
    assert f"returned as its stream '{H}' came in" in message or f"its stream '{E}' came in" in message
    assert "`gives`" in message


@layouts
@pytest.mark.parametrize("name", ["flux", "qwen_image", "sd3", "hunyuan_video", "cogvideox"])
def test_swapped_streams_of_different_shapes_are_refused(name: str, layout: str) -> None:
    given = card_for(build_transformer(name)).stacks[0].lists[0].gives
    wrong = changed(name, gives=tuple(given)[::-1])
    message = refused(build_transformer(name), wrong, transformer_inputs(name), layout)
    assert "`gives`" in message or "in the wrong order" in message


@layouts
@pytest.mark.parametrize("name", ["wan", "pixart", "ltx_video"])
def test_an_argument_that_is_no_stream_is_refused(name: str, layout: str) -> None:
    message = refused(
        build_transformer(name), changed(name, takes=(E,), gives=E), transformer_inputs(name), layout
    )
    assert "do not hand that stream on" in message or "leaves it as" in message


@layouts
def test_an_argument_that_is_no_stream_and_of_the_same_shape_is_refused(layout: str) -> None:
    class Conditioned(Toy):
        def forward(self, hidden_states: Any, encoder_hidden_states: Any = None) -> Any:
            for block in self.blocks:
                hidden_states = block(hidden_states, encoder_hidden_states) + 0
            return (hidden_states,)

    arguments = {H: image(), E: text(tokens=4)}
    message = refused(Conditioned(*[adds] * 4), card((E,), E), arguments, layout)
    assert f"with the very '{E}'" in message


@layouts
@pytest.mark.parametrize("name", ["flux", "wan", "z_image"])
def test_a_bare_tensor_and_a_tuple_are_told_apart(name: str, layout: str) -> None:
    (blocks, *_) = card_for(build_transformer(name)).stacks[0].lists
    wrong = blocks.takes[0] if isinstance(blocks.gives, tuple) else (blocks.gives,)
    message = refused(build_transformer(name), changed(name, gives=wrong), transformer_inputs(name), layout)
    assert f"{blocks.path}.0" in message
    assert "the card says" in message


@layouts
@pytest.mark.parametrize("name", ["flux", "wan", "lumina2"])
def test_a_parameter_and_a_path_that_are_not_there_are_named(name: str, layout: str) -> None:
    model, arguments = build_transformer(name), transformer_inputs(name)
    path = card_for(model).stacks[0].lists[0].path
    assert "'image_states'" in refused(
        model, changed(name, takes=("image_states",), gives="image_states"), arguments, layout
    )
    message = refused(model, changed(name, path="blocks_of_it"), arguments, layout)
    assert "'blocks_of_it'" in message
    assert path in message


@layouts
def test_lists_in_another_order_than_they_are_called_are_refused(layout: str) -> None:
    found = card_for(build_transformer("flux"))
    wrong = replace(found, stacks=(stack(*found.stacks[0].lists[::-1]),))
    message = refused(build_transformer("flux"), wrong, transformer_inputs("flux"), layout)
    assert f"{SINGLE}.0" in message
    assert "in the order in which the model calls them" in message


@layouts
def test_lists_whose_blocks_are_called_in_turns_are_refused_as_lists_that_follow_each_other(
    layout: str,
) -> None:
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Toy(*[adds] * 3).blocks, Toy(*[adds] * 3).blocks

        def forward(self, hidden_states: Any) -> Any:
            for first, second in zip(self.one, self.two, strict=True):
                hidden_states = second(first(hidden_states))
            return (hidden_states,)

    one, two = (BlockList(path, (H,), H) for path in ("one", "two"))
    message = refused(Turns(), Card("Turns", (stack(one, two),), library=None), {H: image()}, layout)
    assert "`alternate`" in message
    assert "one.1" in message
    assert "two.0" in message


@pytest.mark.parametrize(
    ("name", "side", "takes"),
    [("z_image", "noise_refiner", "x"), ("lumina2", "noise_refiner", H), ("lumina2", "context_refiner", H)],
)
def test_a_refiner_joined_to_the_main_blocks_is_refused(name: str, side: str, takes: str) -> None:
    found = card_for(build_transformer(name))
    wrong = replace(found, stacks=(stack(BlockList(side, (takes,), takes), *found.stacks[0].lists),))
    message = refused(build_transformer(name), wrong, transformer_inputs(name), "whole")
    assert "leaves it as" in message or "in the order" in message


@pytest.mark.parametrize("name", ["flux2", "chroma"])
def test_lists_with_different_streams_cannot_be_written_as_one_stack(name: str) -> None:
    lists = [each.lists[0] for each in card_for(build_transformer(name)).stacks]
    with pytest.raises(ValueError, match="make a stack of each list"):
        stack(*lists)


class Between(Toy):
    """Works on the streams between its blocks, as models do; never hands on what a block returned."""

    def __init__(self, how: str) -> None:
        super().__init__(*[adds_to_both] * 4)
        self.how = how

    def forward(self, hidden_states: Any, encoder_hidden_states: Any = None) -> Any:
        h, e = hidden_states.clone(), encoder_hidden_states.clone()
        for number, block in enumerate(self.blocks):
            if self.how == "drops the text":
                h, _ = block(h, e)
                continue
            h, e = block(h, e)
            if self.how == "adds":
                h, e = h + 0.1, e * 0.9
            elif self.how == "parts":
                h, e = h[:, :4], torch.cat([e[:, :2], e[:, 2:]], 1)
            elif self.how == "shares" and number == 0:
                h = e = h + e
        return (h + e,)


@layouts
@pytest.mark.parametrize("how", ["adds", "parts", "shares", "drops the text"])
def test_a_model_that_works_on_its_streams_between_the_blocks_is_not_refused(how: str, layout: str) -> None:
    model = Between(how)
    arguments = {H: image(), E: text(tokens=4)}
    plain = output(model, arguments)
    backend = always(layout)
    backend.enable(model, card=BOTH)
    for step in range(3):
        with backend.step(step, 9):
            assert relative(output(model, arguments), plain) <= STILL


@layouts
def test_blocks_that_the_model_calls_again_or_leaves_out_are_no_reason_to_refuse(layout: str) -> None:
    class Odd(Toy):
        order = (0, 1, 2, 1, 2, 3)

        def forward(self, hidden_states: Any, encoder_hidden_states: Any = None) -> Any:
            h = hidden_states.clone()
            for number in self.order:
                h = self.blocks[number](h)
            return (h,)

    model = Odd(*[adds] * 4)
    backend = always(layout)
    backend.enable(model, card=card())
    for step, order in enumerate([(0, 2, 3), (0, 1, 2, 3), (0, 1, 2, 1, 2, 3), (1, 2, 3)]):
        model.order = order
        with backend.step(step, 9):
            assert torch.isfinite(output(model, {H: image()})).all()
