"""With gradients the model is plain, bit for bit, and a cached run afterwards is as if nothing had been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .runs import inputs, kinds, output, run_told, same
from .strategies import always, planned


def gradients(model: nn.Module, arguments: dict[str, Any]) -> tuple[Tensor, list[Tensor | None]]:
    model.zero_grad()
    with torch.enable_grad():
        found = output(model, arguments)
        found.square().mean().backward()
    return found.detach(), [parameter.grad for parameter in model.parameters()]


def trainable(name: str, checkpointing: bool) -> Any:
    model: Any = build_transformer(name).requires_grad_(True)
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan_video", "qwen_image", "chroma"])
def test_outputs_and_gradients_are_bit_equal_to_the_plain_ones(name: str, checkpointing: bool) -> None:
    model = trainable(name, checkpointing)
    run = inputs(name, 3)
    plain = [gradients(model, arguments) for arguments in run]
    backend = always()
    backend.enable(model)
    found = [gradients(model, arguments) for arguments in run]
    for (output_plain, grads_plain), (output_found, grads_found) in zip(plain, found, strict=True):
        assert torch.equal(output_found, output_plain)
        for one, other in zip(grads_found, grads_plain, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
    assert kinds(backend) == {"plain_call": 3}
    assert backend.summary().rows == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_between_two_steps_of_a_run_does_not_disturb_it(checkpointing: bool) -> None:
    model = trainable("flux", checkpointing).eval()
    run = inputs("flux", 4)
    backend = planned("10")
    backend.enable(model)
    alone = run_told(backend, model, run)
    found = []
    for step, arguments in enumerate(run):
        with backend.step(step, 4):
            found.append(output(model, arguments))
            gradients(model, transformer_inputs("flux", seed=7))
    assert same(found, alone)
    assert backend.summary().cached_steps() == [1, 2, 3]


def test_a_run_with_gradients_is_plain_and_the_cached_run_after_it_is_as_on_a_fresh_backend() -> None:
    tiny = build("flux")
    plain = tiny.run(4)
    backend = planned("10")
    backend.enable(tiny.pipe)
    cached = tiny.run(4)
    with torch.enable_grad():
        # The pipeline switches gradients off itself; without its decorator they stay on.
        arguments = tiny.spec.arguments(1) | {"num_inference_steps": 4, "return_dict": False}
        call = type(tiny.pipe).__call__.__wrapped__
        found = call(tiny.pipe, generator=torch.Generator().manual_seed(0), **arguments)[0]
    assert torch.equal(found, plain)
    assert kinds(backend)["plain_call"] == 4
    assert torch.equal(tiny.run(4), cached)
    assert not torch.equal(cached, plain)
