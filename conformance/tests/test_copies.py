"""Tiny models are built once and copied: a copy is the same model, and nothing done to it reaches another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dit_cache_conformance.stage import DEPTHS, Bare
from dit_cache_conformance.tiny import build_transformer, configs, transformer_inputs

MODELS = ("flux", "qwen_image", "sd3", "wan", "cogvideox", "dit", "hunyuan_video", "chroma")


def within(model: nn.Module) -> dict[int, str]:
    """What can be changed in a model, by identity."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        found[id(module)] = path
        for name, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else [value]
            found |= {
                id(each): f"{path}.{name}"
                for each in [value, *items]
                if isinstance(each, (dict, list, set, torch.Tensor))
                or type(each).__module__.startswith("diffusers")
            }
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_gives_what_a_model_built_anew_gives_and_shares_nothing_with_another(name: str) -> None:
    first, second = build_transformer(name), build_transformer(name)
    anew: Any = getattr(configs, name).__wrapped__()
    with torch.no_grad():
        outputs = [model(**transformer_inputs(name))[0] for model in (first, second, anew)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[2])
    shared = within(first).keys() & within(second).keys()
    assert not shared, [within(first)[each] for each in shared]
    assert [type(each) for each in first.modules()] == [type(each) for each in anew.modules()]


def test_what_is_done_to_a_copy_does_not_reach_the_next() -> None:
    expected = build_transformer("wan").state_dict()
    changed = build_transformer("wan")
    for parameter in changed.parameters():
        parameter.data.zero_()
    changed.register_forward_hook(lambda *_: None)
    changed.extra = 1  # type: ignore[assignment]
    after = build_transformer("wan")
    assert all(torch.equal(value, expected[key]) for key, value in after.state_dict().items())
    assert not after._forward_hooks
    assert not hasattr(after, "extra")


def test_no_stack_of_the_suite_is_deeper_than_the_least_deep_one() -> None:
    for name in DEPTHS.keys() - {"flux_controlnet"}:
        lists = [
            each for each in Bare(name).model.children() if isinstance(each, nn.ModuleList) and len(each) > 1
        ]
        assert sum(map(len, lists)) == 6, name
