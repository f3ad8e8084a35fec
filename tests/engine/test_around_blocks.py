"""What else hangs on a block lies inside: hooks, replaced forwards, casts, offloading, adapters, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_conformance.tiny import build_transformer, transformer_inputs

from .counting import executed
from .runs import STILL, output, relative, run_told
from .strategies import LAYOUTS, always

NAME = "sd3"


def replace_forwards(model: Any) -> None:
    """As accelerate's and diffusers' offloading do: the instance gets a forward of its own."""
    for block in model.transformer_blocks:

        def forward(*args: Any, block: Any = block, before: Any = block.forward, **kwargs: Any) -> Any:
            return before(*args, **kwargs)

        block.forward = forward


def doubled(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
    text, image = out
    return text, image * 1.5


def hook_the_blocks(model: Any) -> None:
    for block in model.transformer_blocks:
        block.register_forward_hook(doubled, with_kwargs=True)


def parametrize_a_layer(model: Any) -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 0.5

    for block in model.transformer_blocks:
        nn.utils.parametrize.register_parametrization(block.ff.net[2], "weight", Half())


def add_a_low_rank_adapter(model: Any) -> None:
    """As LoRA does: a layer is exchanged for one that has it inside."""

    class Adapted(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner
            self.low = nn.Parameter(torch.full((inner.in_features, 2), 0.1), requires_grad=False)
            self.high = nn.Parameter(torch.full((2, inner.out_features), 0.2), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out + x @ self.low @ self.high

    for block in model.transformer_blocks:
        block.attn.to_q = Adapted(block.attn.to_q)


def cast_the_layers(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


CHANGES = [replace_forwards, hook_the_blocks, parametrize_a_layer, add_a_low_rank_adapter, cast_the_layers]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("layout", ["whole", "all but the first", "one block each"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_still_input_is_right_whatever_hangs_on_the_blocks(
    change: Callable[[Any], None], layout: str, order: str
) -> None:
    arguments = transformer_inputs(NAME)
    reference = build_transformer(NAME)
    unchanged = output(reference, arguments)
    change(reference)
    plain = output(reference, arguments)
    assert torch.equal(plain, unchanged) == (change is replace_forwards)

    model = build_transformer(NAME)
    backend = always(layout)
    if order == "before":
        change(model)
        backend.enable(model)
    else:
        backend.enable(model)
        change(model)
    found = run_told(backend, model, [arguments] * 3)
    assert torch.equal(found[0], plain)
    assert max(relative(one, plain) for one in found) <= STILL
    assert backend.summary().cached_steps() == [1, 2]
    backend.disable()
    assert torch.equal(output(model, arguments), plain)


def test_an_adapter_that_is_loaded_between_two_runs_is_used_at_once() -> None:
    model = build_transformer(NAME)
    arguments = transformer_inputs(NAME)
    backend = always()
    backend.enable(model)
    run_told(backend, model, [arguments] * 3)
    add_a_low_rank_adapter(model)
    found = run_told(backend, model, [arguments] * 3)
    backend.disable()
    assert relative(found[1], output(model, arguments)) <= STILL


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
def test_under_autocast_the_dtype_stays_and_a_still_input_is_near(name: str, layout: str) -> None:
    model = build_transformer(name)
    arguments = transformer_inputs(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = output(model, arguments)
        backend = always(layout)
        backend.enable(model)
        found = run_told(backend, model, [arguments] * 3)
    assert torch.equal(found[0], plain)
    assert {one.dtype for one in found} == {plain.dtype}
    assert max(relative(one, plain) for one in found) <= 6 * torch.finfo(torch.bfloat16).eps


def test_hooks_on_a_block_are_called_when_it_runs_and_not_when_it_is_skipped() -> None:
    model: Any = build_transformer(NAME)
    calls: list[int] = []
    for number, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    arguments = transformer_inputs(NAME)
    backend = always()
    backend.enable(model)
    with executed(model) as ran:
        run_told(backend, model, [arguments] * 3)
    assert calls == [number for _, number in ran.blocks] == [*range(7), 0, 0]


def test_hooks_on_the_transformer_are_called_once_a_forward() -> None:
    model: Any = build_transformer(NAME)
    calls: list[str] = []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    backend = always()
    backend.enable(model)
    run_told(backend, model, [transformer_inputs(NAME)] * 3)
    assert calls == ["before", "after"] * 3


def test_a_hook_that_calls_the_transformer_within_itself_does_not_end_the_run() -> None:
    """The call within a call is plain to the engine: it has no step of its own."""
    model: Any = build_transformer(NAME)
    run = [transformer_inputs(NAME, step=step, total=4) for step in range(4)]
    backend = always()
    backend.enable(model)
    expected = run_told(backend, model, run)
    other = build_transformer(NAME)
    model.register_forward_hook(lambda *_: output(other, run[0]) is None or None)
    assert all(torch.equal(*pair) for pair in zip(run_told(backend, model, run), expected, strict=True))
