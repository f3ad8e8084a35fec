"""The signal on each card of an image class is what the first block itself attends to; reading it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends.models import card_for
from dit_cache_backends.models.signals import BlockArguments, Signal
from dit_cache_conformance.tiny import build_transformer, transformer_inputs
from dit_cache_conformance.tiny.image import IMAGE_SPECS

from ..engine.counting import inside
from ..engine.runs import output

pytestmark = pytest.mark.usefixtures("as_in_a_run")

NAMES = [spec.name for spec in IMAGE_SPECS]
WITHOUT = ("dreamlite", "transformer_2d", "uvit2d")
"""Their blocks are BasicTransformerBlocks with a norm that no time modulates, or that a configuration chooses."""
TURNED = {"ernie_image": (1, 0, 2)}
"""Models that change the order of the dimensions before they attend."""


@pytest.mark.parametrize("name", NAMES)
def test_the_modulated_input_is_what_the_first_block_attends_to(name: str) -> None:
    model = build_transformer(name)
    card = card_for(model)
    if name in WITHOUT:
        assert card.signals == ()
        return
    (signal,) = card.signals
    assert isinstance(signal, Signal)
    block: Any = next(model.get_submodule(card.stacks[0].name).children())
    child = inside(block)
    assert child is not None
    read: list[Tensor] = []
    attended: list[list[Tensor]] = []

    def ask(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(signal.read(block, BlockArguments(block, args, kwargs)))

    def note(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        attended.append([each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)])

    plain = [output(model, transformer_inputs(name, step=step, batch=2)) for step in range(2)]
    hooks = [
        block.register_forward_pre_hook(ask, with_kwargs=True),
        child.register_forward_pre_hook(note, with_kwargs=True),
    ]
    found = [output(model, transformer_inputs(name, step=step, batch=2)) for step in range(2)]
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    assert len(read) == len(attended) == 2
    for one, others in zip(read, attended, strict=True):
        same_size = [each for each in others if each.numel() == one.numel()]
        expected = [each.permute(TURNED[name]) if name in TURNED else each for each in same_size]
        assert any(torch.equal(one.reshape(each.shape), each) for each in expected)
    assert not torch.equal(read[0], read[1])
