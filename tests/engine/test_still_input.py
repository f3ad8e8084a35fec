"""A still input is reproduced when everything that can be skipped is, and a moved one is followed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs

from .counting import executed
from .runs import STILL, TRANSFORMERS, output, relative
from .strategies import LAYOUTS, always


def blocks_left(name: str, layout: str) -> int:
    """Blocks outside every span, worked out from the depths that the tiny models declare."""
    depths = TINY_TRANSFORMERS[name].stacks.values()
    return sum(depth - sum(span.stop - span.start for span in LAYOUTS[layout](depth)) for depth in depths)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_still_input_is_reproduced_and_a_moved_one_followed(name: str, layout: str, mode: Any) -> None:
    model = build_transformer(name)
    still, moved = transformer_inputs(name), transformer_inputs(name, step=3)
    backend = always(layout)
    with mode():
        plain, plain_moved = output(model, still), output(model, moved)
        backend.enable(model)
        with executed(model) as ran:
            with backend.step(0, 9):
                assert torch.equal(output(model, still), plain)
            assert len(ran.take()) == sum(TINY_TRANSFORMERS[name].stacks.values())
            with backend.step(1, 9):
                skipped = output(model, still)
            assert len(ran.take()) == blocks_left(name, layout)
            with backend.step(2, 9):
                followed = output(model, moved)
    assert skipped.dtype == plain.dtype
    assert relative(skipped, plain) <= STILL
    # Followed, and better than handing out what was there before.
    assert bool(followed.isfinite().all())
    assert relative(followed, plain_moved) < relative(plain, plain_moved)
    assert relative(followed, plain) > 1e-3


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_a_skipped_span_adds_does_not_depend_on_how_often_it_is_skipped(name: str) -> None:
    model = build_transformer(name)
    still = transformer_inputs(name)
    plain = output(model, still)
    backend = always()
    backend.enable(model)
    for step in range(6):
        with backend.step(step, 9):
            assert relative(output(model, still), plain) <= STILL, step
