"""The signal on each card of a video or audio class is what the model makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends.models import card_for
from dit_cache_backends.models.signals import BlockArguments, Signal, TimeSignal
from dit_cache_conformance.tiny import build_transformer, transformer_inputs
from dit_cache_conformance.tiny.video import VIDEO_SPECS

from ..engine.counting import inside
from ..engine.runs import output

pytestmark = pytest.mark.usefixtures("as_in_a_run")

NAMES = [spec.name for spec in VIDEO_SPECS]


def attended(args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> Tensor:
    """What an attention looks at: its argument of that name, or the one of that size (Cosmos 3 has two streams)."""
    given = [kwargs["hidden_states"]] if "hidden_states" in kwargs else list(args)
    return next(tensor for tensor in given if isinstance(tensor, Tensor) and tensor.shape == made.shape)


@contextmanager
def first_block(model: Any, signal: Signal) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The signal read at each call of the first block, beside what its attention is given."""
    found: list[tuple[Tensor, Tensor]] = []
    block = model.get_submodule(card_for(model).stacks[0].name)[0]
    read: list[Tensor] = []
    place = inside(block)
    assert place is not None
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(
                signal.read(module, BlockArguments(module, args, kwargs))
            ),
            with_kwargs=True,
        ),
        place.register_forward_pre_hook(
            lambda _, args, kwargs: found.append((read[-1], attended(args, kwargs, read[-1]))),
            with_kwargs=True,
        ),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_every_video_and_audio_class_has_a_signal_that_moves(name: str) -> None:
    model = build_transformer(name)
    signals = card_for(model).signals
    assert signals
    for signal in signals:
        if isinstance(signal, TimeSignal):
            times = torch.tensor([1000.0, 500.0])
            one, other = signal.embed(model, times, torch.float32, lambda _: None)
            assert not torch.equal(one, other)
            continue
        with first_block(model, signal) as found:
            for step in range(2):
                output(model, transformer_inputs(name, step=step))
        assert len(found) == 2
        assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("name", NAMES)
def test_the_signal_is_to_the_bit_what_the_model_makes_itself(name: str) -> None:
    model: Any = build_transformer(name)
    arguments = transformer_inputs(name, step=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = output(model, arguments)
    for number, signal in enumerate(card_for(model).signals):
        if isinstance(signal, TimeSignal):
            times = arguments[signal.argument]
            embedded = model.condition_embedder(times, arguments["encoder_hidden_states"])
            assert torch.equal(signal.embed(model, times, torch.float32, lambda _: None), embedded[number])
            continue
        with first_block(model, signal) as found:
            assert torch.equal(output(model, transformer_inputs(name, step=3)), plain)
        assert all(torch.equal(one, other) for one, other in found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_modulation_for_each_token_is_read_as_well() -> None:
    """SkyReels-V2 with diffusion forcing gives each frame its own time, Helios its history the time 0."""
    model: Any = build_transformer("skyreels_v2")
    arguments = transformer_inputs("skyreels_v2") | {
        "timestep": torch.tensor([[900.0, 300.0]]),
        "enable_diffusion_forcing": True,
    }
    (signal,) = card_for(model).signals
    assert isinstance(signal, Signal)
    with first_block(model, signal) as found:
        output(model, arguments)
    assert all(torch.equal(one, other) for one, other in found)
    assert len(found) == 1
