"""A trial draws the same picture as the pipeline, counts what ran, and leaves the pipeline as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dit_cache_backends import ConfigError
from dit_cache_backends.demo import load_demo, paint
from dit_cache_backends.trials import DENSE, Prompt, Setting, Trial
from tests.engine.counting import executed

PROMPT = "a large red circle on a blue background"
STEPS = 6
CACHED = Setting("cached", {"steps_computation_mask": "110101", "steps_computation_policy": "static"})


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_demo()


@pytest.fixture(scope="module")
def trial(pipeline: Any) -> Iterator[Trial]:
    with Trial(pipeline) as trial:
        yield trial


def test_a_dense_drawing_is_the_pipelines_own_picture(trial: Trial, pipeline: Any) -> None:
    drawing = trial.draw(PROMPT, seed=3, steps=STEPS)
    expected = paint(pipeline, [PROMPT], seed=3, num_inference_steps=STEPS)[0]
    assert np.array_equal(np.asarray(drawing.images[0]), np.asarray(expected))
    assert (drawing.steps, drawing.calls, drawing.blocks_run, drawing.blocks) == (STEPS, STEPS, 72, 72)
    assert drawing.summary is None
    assert 0 < drawing.transformer_seconds <= drawing.seconds


def test_the_blocks_of_a_cached_drawing_are_those_that_ran(trial: Trial, pipeline: Any) -> None:
    with executed(pipeline.transformer) as ran:
        drawing = trial.draw(PROMPT, CACHED, steps=STEPS, measure_held=True)
    assert drawing.blocks_run == len(ran.blocks) == 4 * 12 + 2
    assert drawing.blocks == STEPS * 12
    assert drawing.held > 0


def test_the_latents_are_those_that_the_picture_is_decoded_from(trial: Trial) -> None:
    seen: list[torch.Tensor] = []
    drawing = trial.draw(
        PROMPT, CACHED, seed=1, steps=STEPS, listener=lambda _, tensors: seen.append(tensors["latents"])
    )
    assert len(seen) == STEPS
    assert drawing.latents is not None
    assert torch.equal(drawing.latents, seen[-1])
    plain = trial.draw(PROMPT, CACHED, seed=1, steps=STEPS, call={"output_type": "latent"})
    assert torch.equal(torch.as_tensor(plain.images[0]), drawing.latents[0])


def test_nothing_of_one_setting_is_left_in_the_next_drawing(trial: Trial) -> None:
    before = trial.draw(PROMPT, steps=STEPS).latents
    cached = trial.draw(PROMPT, CACHED, steps=STEPS).latents
    after = trial.draw(PROMPT, DENSE, steps=STEPS).latents
    again = trial.draw(PROMPT, CACHED, steps=STEPS).latents
    assert before is not None
    assert cached is not None
    assert torch.equal(before, after)  # type: ignore[arg-type]
    assert torch.equal(cached, again)  # type: ignore[arg-type]
    assert not torch.equal(before, cached)


def test_a_setting_has_its_own_number_of_steps_and_a_prompt_its_own_seed(trial: Trial) -> None:
    fewer = trial.draw(PROMPT, Setting("fewer", steps=3), steps=STEPS)
    assert (fewer.steps, fewer.calls) == (3, 3)
    own = trial.draw(Prompt(PROMPT, 5), steps=3).latents
    said = trial.draw(Prompt(PROMPT, 1), seed=5, steps=3).latents
    assert torch.equal(own, said)  # type: ignore[arg-type]
    assert trial.steps == 28


def test_what_does_not_fit_is_refused_before_anything_is_drawn(trial: Trial, pipeline: Any) -> None:
    with executed(pipeline.transformer) as ran:
        with pytest.raises(ConfigError, match=r"prest.*preset"):
            trial.draw(PROMPT, Setting("typing error", {"prest": "fast"}))
        with pytest.raises(ConfigError, match="hight"):
            trial.draw(PROMPT, call={"hight": 64})
        with pytest.raises(ConfigError, match="guidanc"):
            Trial(pipeline, call={"guidanc": 1.0})
    assert not ran.blocks


def test_a_pipeline_that_tells_nobody_its_steps_is_named(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Trial(pipeline) as trial:
        monkeypatch.setattr(trial, "_known", {})
        with pytest.raises(ConfigError, match="FluxPipeline tells nobody its steps"):
            trial.draw(PROMPT, listener=lambda *_: None)


def test_the_pipeline_is_left_as_it_was(pipeline: Any) -> None:
    kind, hooks = type(pipeline.transformer), dict(pipeline.transformer._forward_pre_hooks)
    with Trial(pipeline) as trial:
        trial.draw(PROMPT, CACHED, steps=STEPS)
    assert type(pipeline.transformer) is kind
    assert dict(pipeline.transformer._forward_pre_hooks) == hooks
    assert all(
        type(block).__call__ is torch.nn.Module.__call__ for block in pipeline.transformer.transformer_blocks
    )
