"""The tiny models are what other tests believe they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_conformance.tiny import TINY, TINY_TRANSFORMERS, build, build_transformer, transformer_inputs


def sample(output: Any) -> torch.Tensor:
    first = output[0]
    return first if isinstance(first, torch.Tensor) else torch.stack(list(first))


@torch.no_grad()
@pytest.mark.parametrize("name", TINY_TRANSFORMERS)
def test_a_bare_transformer_is_the_same_each_time_and_its_inputs_move(name: str) -> None:
    model, again = build_transformer(name), build_transformer(name)

    first = sample(model(**transformer_inputs(name)))

    assert torch.isfinite(first).all()
    assert torch.equal(first, sample(again(**transformer_inputs(name))))
    assert not torch.equal(first, sample(model(**transformer_inputs(name, step=1))))
    assert not torch.equal(first, sample(model(**transformer_inputs(name, seed=1))))


@torch.no_grad()
@pytest.mark.parametrize("name", TINY_TRANSFORMERS)
def test_no_parameter_of_a_block_is_zero_so_that_no_block_is_an_identity(name: str) -> None:
    model = build_transformer(name)
    blocks = [
        block for path in TINY_TRANSFORMERS[name].stacks for block in model.get_submodule(path).children()
    ]

    assert blocks
    assert all(parameter.any() for block in blocks for parameter in block.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, spec in TINY_TRANSFORMERS.items() if spec.kv_cache])
def test_a_key_value_cache_is_filled_by_a_write_and_used_by_a_read(name: str) -> None:
    model, make = build_transformer(name), TINY_TRANSFORMERS[name].kv_cache
    assert make is not None
    kv_cache = make()

    model(**transformer_inputs(name, kv_cache=kv_cache, kv_mode="write"))
    read = sample(model(**transformer_inputs(name, kv_cache=kv_cache, kv_mode="read")))

    assert torch.isfinite(read).all()
    assert read.numel()


@pytest.mark.parametrize("name", TINY)
def test_a_pipeline_draws_the_same_latents_each_time_and_others_for_another_seed(name: str) -> None:
    tiny = build(name)

    first = tiny.run(3)

    assert torch.isfinite(first).all()
    assert torch.equal(first, tiny.run(3))
    assert torch.equal(first, build(name).run(3))
    assert not torch.equal(first, tiny.run(3, seed=1))
    assert tiny.run(2, batch=2).shape == (2, *first.shape[1:])


@pytest.mark.parametrize("name", TINY)
def test_the_declared_stacks_are_where_they_are_said_to_be(name: str) -> None:
    tiny = build(name)

    for model in tiny.transformers.values():
        lists = {
            path: len(module)
            for path, module in model.named_children()
            if isinstance(module, torch.nn.ModuleList)
        }
        merged = sum(lists.values()) if len(tiny.spec.stacks) == 1 else None
        for stack, depth in tiny.spec.stacks.items():
            assert depth in (lists[stack], merged)
