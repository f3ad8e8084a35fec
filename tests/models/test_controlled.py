"""What a control net gives is added between the blocks of a transformer, whether they run or not.

A control net itself is left to run in every step: it gives what each of its blocks gave, not only the last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dit_cache_backends import UnknownTransformerError, enable_cache
from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build, build_transformer, transformer_inputs
from dit_cache_conformance.tiny.controlnets import CONTROLNETS, controlled

from ..engine.counting import executed
from ..engine.runs import STILL, output, relative
from ..engine.strategies import LAYOUTS, always, never

pytestmark = pytest.mark.usefixtures("as_in_a_run")

FOLLOWED = 0.9


@functools.cache
def under_control(name: str) -> tuple[nn.Module, Callable[[int], dict[str, Any]]]:
    """A transformer and its arguments at a moment; what the net gives moves along."""
    model = build_transformer(name)
    residuals = CONTROLNETS[name](model)

    def moment(step: int = 0) -> dict[str, Any]:
        arguments = transformer_inputs(name, step=step, total=10**9)
        plainly = {key: value for key, value in arguments.items() if not key.startswith("controlnet")}
        return controlled(residuals, plainly)

    return model, moment


@pytest.mark.parametrize("name", CONTROLNETS)
def test_the_control_matters_in_these_models(name: str) -> None:
    model, moment = under_control(name)
    plainly = {key: value for key, value in moment().items() if "control" not in key}
    assert len(plainly) < len(moment())
    assert relative(output(model, moment()), output(model, plainly)) > 0.02


@pytest.mark.parametrize("name", CONTROLNETS)
def test_running_every_block_under_control_changes_no_bit(name: str) -> None:
    model, moment = under_control(name)
    plain = [output(model, moment(step)) for step in range(3)]
    for layout in LAYOUTS:
        backend = never(layout)
        backend.enable(model)
        for step, expected in enumerate(plain):
            with backend.step(step, 9):
                assert torch.equal(output(model, moment(step)), expected)
        backend.disable()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_still_control_is_reproduced_and_a_moved_one_followed(name: str, layout: str, mode: Any) -> None:
    model, moment = under_control(name)
    depths = TINY_TRANSFORMERS[name].stacks.values()
    skipped = sum(span.stop - span.start for depth in depths for span in LAYOUTS[layout](depth))
    backend = always(layout)
    with mode():
        still, moved = output(model, moment()), output(model, moment(10))
        backend.enable(model)
        with executed(model) as ran:
            for step in range(3):
                with backend.step(step, 9):
                    assert relative(output(model, moment()), still) <= (STILL if step else 0)
                assert len(ran.take()) == sum(depths) - (skipped if step else 0)
            with backend.step(3, 9):
                followed = output(model, moment(10))
        backend.disable()
    assert float((followed - moved).norm() / (still - moved).norm()) < FOLLOWED


def test_a_control_net_is_no_transformer_to_cache_and_is_left_alone_beside_one() -> None:
    tiny = build("flux_controlnet")
    with pytest.raises(UnknownTransformerError, match="FluxControlNetModel"):
        enable_cache(tiny.pipe.controlnet, "cache_dit")
    before = {path: type(module) for path, module in tiny.pipe.controlnet.named_modules()}
    with enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.9, max_warmup_steps=2) as backend:
        with executed(tiny.pipe.controlnet) as ran:
            tiny.run(6)
        assert len(ran) == 6 * 4
        assert backend.summary().cached_steps()
        assert {path: type(module) for path, module in tiny.pipe.controlnet.named_modules()} == before
