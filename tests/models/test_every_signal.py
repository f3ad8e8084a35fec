"""The signal of every card that has one is what the first block itself attends to, and reading it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends.models import card_for
from dit_cache_backends.models.signals import BlockArguments, Signal

from ..engine.counting import inside
from ..engine.runs import output
from ..tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs

pytestmark = pytest.mark.usefixtures("as_in_a_run")

FIRST = "modulated_input"
NAMES = [
    name
    for name in TINY_TRANSFORMERS
    if FIRST in {each.name for each in card_for(build_transformer(name)).signals}
]
ONE_AT_A_TIME = ("anyflow_far", "cosmos3", "wan_animate_2")
"""Models that take no batch."""
TURNED = {"ernie_image": (1, 0, 2)}
"""Models that change the order of the dimensions before they attend."""


@pytest.mark.parametrize("name", NAMES)
def test_the_modulated_input_is_what_the_first_block_attends_to(name: str) -> None:
    model = build_transformer(name)
    card = card_for(model)
    signal = next(each for each in card.signals if each.name == FIRST)
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

    batch = 1 if name in ONE_AT_A_TIME else 2
    plain = [output(model, transformer_inputs(name, step=step, batch=batch)) for step in range(2)]
    hooks = [
        block.register_forward_pre_hook(ask, with_kwargs=True),
        child.register_forward_pre_hook(note, with_kwargs=True),
    ]
    found = [output(model, transformer_inputs(name, step=step, batch=batch)) for step in range(2)]
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    assert len(read) == len(attended) == 2
    for one, others in zip(read, attended, strict=True):
        same_size = [each for each in others if each.numel() == one.numel()]
        expected = [each.permute(TURNED[name]) if name in TURNED else each for each in same_size]
        assert any(torch.equal(one.reshape(each.shape), each) for each in expected)
    assert not torch.equal(read[0], read[1])
