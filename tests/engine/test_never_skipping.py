"""A backend that skips nothing changes no bit, whatever its spans."""

from __future__ import annotations

import pytest
import torch

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build, build_transformer

from .counting import executed
from .runs import PIPELINES, TRANSFORMERS, inputs, run_plain, run_told, same
from .strategies import LAYOUTS, never


@pytest.mark.parametrize("name", PIPELINES)
def test_threshold_0_gives_the_plain_pictures_bit_for_bit(name: str) -> None:
    tiny = build(name)
    plain = tiny.run(5)
    backend = enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.0, max_warmup_steps=1)
    with executed(*tiny.transformers.values()) as ran:
        found = tiny.run(5)
    assert torch.equal(found, plain)
    summary = backend.summary()
    assert summary.blocks_skipped == 0
    assert summary.blocks_run == len(ran)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_running_every_block_gives_the_plain_outputs_in_every_layout(name: str, layout: str) -> None:
    model = build_transformer(name)
    run = inputs(name, 3)
    plain = run_plain(model, run)
    backend = never(layout)
    backend.enable(model)
    assert same(run_told(backend, model, run), plain)
    assert backend.summary().blocks_skipped == 0


@pytest.mark.parametrize("name", ["qwen_image", "wan22", "hunyuan_video"])
def test_one_span_for_each_block_changes_no_bit_of_a_pipeline(name: str) -> None:
    tiny = build(name)
    plain = tiny.run(4)
    backend = never("one block each")
    backend.enable(tiny.pipe)
    assert torch.equal(tiny.run(4), plain)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_inference_mode_changes_no_bit_either(name: str) -> None:
    model = build_transformer(name)
    run = inputs(name, 3)
    plain = run_plain(model, run)
    backend = never()
    backend.enable(model)
    with torch.inference_mode():
        assert same(run_told(backend, model, run), plain)
