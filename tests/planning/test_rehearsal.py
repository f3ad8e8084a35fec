"""A run that begins at its first skip is the run that begins at its first step, to the last bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from dit_cache_backends import ConfigError
from dit_cache_backends.planning import PREDICTORS, Candidate, Quality, Rehearsal
from dit_cache_backends.trials import Prompt, Setting, Trial
from tests.planning.rehearsals import prompts_of, tiny_trial

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 9
MODELS = ("flux", "flux_controlnet", "qwen_image", "sd3", "wan", "wan22", "cogvideox")


def some_masks(count: int, steps: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Masks of which each begins with another number of computed steps."""
    rng = random.Random(seed)
    return [
        (*[1] * lead, 0, *rng.choices((0, 1), k=steps - lead - 2), 1)
        for lead in rng.sample(range(1, steps - 2), count)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_replayed_runs_give_the_errors_of_whole_runs(name: str) -> None:
    with tiny_trial(name) as trial:
        prompts = prompts_of(name, 1)
        whole = Rehearsal(trial, prompts, STEPS, replay=False)
        replayed = Rehearsal(trial, prompts, STEPS)
        for mask in some_masks(3, whole.shape().steps):
            for predictor in ("reuse", "taylorseer 2", "newton 2"):
                candidate = Candidate(mask, predictor)
                errors = replayed.errors(candidate)
                assert errors == whole.errors(candidate)
                assert errors[0] > 0


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_is_shown_what_it_would_have_seen(predictor: str) -> None:
    with tiny_trial("flux") as trial:
        whole, replayed = (
            Rehearsal(trial, prompts_of("flux", 1), 12, front=1, replay=replay) for replay in (False, True)
        )
        candidate = Candidate((1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1), predictor)
        assert replayed.errors(candidate) == whole.errors(candidate)


def test_segments_cost_only_the_steps_from_their_first_one_on() -> None:
    with tiny_trial("flux") as trial:
        rehearsal = Rehearsal(trial, prompts_of("flux", 1), STEPS)
        rehearsal.shape()
        ran: list[int] = []
        block = trial.pipeline.transformer.transformer_blocks[0]
        hook = block.register_forward_hook(lambda *_: ran.append(1))
        rehearsal.errors(Candidate((1, 1, 1, 1, 1, 0, 0, 1, 1), "reuse"))
        hook.remove()
        assert len(ran) == 3  # the step before the gap, and the two behind it


def test_a_plan_that_computes_everything_is_the_dense_run() -> None:
    with tiny_trial("qwen_image") as trial:
        rehearsal = Rehearsal(trial, prompts_of("qwen_image", 2), STEPS)
        assert rehearsal.errors(Candidate((1,) * STEPS, "taylorseer 1")) == (0.0, 0.0)
        assert rehearsal.fewer_steps(STEPS) == (STEPS, (0.0, 0.0))


def test_several_prompts_in_a_call_are_what_they_are_one_by_one() -> None:
    with tiny_trial("flux") as trial:
        prompts = prompts_of("flux", 5)
        alone, together = (Rehearsal(trial, prompts, STEPS, batch=batch) for batch in (1, 3))
        candidate = Candidate((1, 1, 0, 1, 0, 0, 1, 0, 1), "hermite 2")
        assert together.errors(candidate) == pytest.approx(alone.errors(candidate), rel=1e-3)
        assert len(set(alone.errors(candidate))) == 5


def test_the_steps_at_which_an_expert_begins_are_known() -> None:
    with tiny_trial("wan22") as trial:
        shape = Rehearsal(trial, prompts_of("wan22", 1), STEPS).shape()
        assert shape.steps == STEPS
        assert shape.begins[0] == 0
        assert 0 < shape.begins[1] < STEPS


def test_a_scheduler_of_second_order_is_planned_by_its_evaluations() -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler

    with tiny_trial("sd3") as trial:
        trial.pipeline.scheduler = FlowMatchHeunDiscreteScheduler()
        whole, replayed = (
            Rehearsal(trial, prompts_of("sd3", 1), 6, replay=replay) for replay in (False, True)
        )
        assert whole.shape().steps == 11
        candidate = Candidate((1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1), "taylorseer 1")
        assert replayed.errors(candidate) == whole.errors(candidate)
        steps, _ = whole.fewer_steps(6)
        assert 2 * steps - 1 >= 6 > 2 * (steps - 1) - 1


def test_the_share_of_blocks_is_that_of_a_run() -> None:
    from dit_cache_backends import enable_cache

    mask = [1, 1, 0, 0, 1, 0, 1, 0, 1]
    with tiny_trial("flux") as trial:
        share = Rehearsal(trial, prompts_of("flux", 1), STEPS, front=1).blocks_run(mask)
        with enable_cache(trial.pipeline, "step_plan", mask=mask, Fn_compute_blocks=1) as backend:
            trial.pipeline(**prompts_of("flux", 1)[0].call, num_inference_steps=STEPS)
            summary = backend.summary()
        assert share == pytest.approx(summary.blocks_run / (summary.blocks_run + summary.blocks_skipped))


def test_the_model_is_left_as_it_was() -> None:
    with tiny_trial("wan22") as trial:
        # diffusers notes something on a transformer when it first runs.
        trial.pipeline(**prompts_of("wan22", 1)[0].call, num_inference_steps=STEPS)
        before = {name: (type(each), set(vars(each))) for name, each in trial.transformers.items()}
        rehearsal = Rehearsal(trial, prompts_of("wan22", 1), STEPS)
        rehearsal.errors(Candidate((1, 0, 1, 0, 1, 1, 1, 0, 1), "reuse"))
        assert before == {name: (type(each), set(vars(each))) for name, each in trial.transformers.items()}


def test_what_leaves_no_block_to_skip_is_refused_without_a_run() -> None:
    with tiny_trial("flux") as trial, pytest.raises(ConfigError, match="leave no block"):
        Rehearsal(trial, prompts_of("flux", 1), STEPS, front=50).check()


def test_the_change_of_the_output_is_measured_at_every_step() -> None:
    with tiny_trial("wan22") as trial:
        rehearsal = Rehearsal(trial, prompts_of("wan22", 1), STEPS)
        change = rehearsal.change()
        begins = rehearsal.shape().begins
        assert [step for step, each in enumerate(change) if each == 0] == list(begins)
        assert torch.tensor(change).isfinite().all()


def test_by_pictures_an_error_is_the_psnr(painter: Path) -> None:
    from diffusers import FluxPipeline

    from dit_cache_backends.compare.measures import psnr

    pipeline = FluxPipeline.from_pretrained(painter)
    call = {"height": 64, "width": 64, "max_sequence_length": 32}
    with Trial(pipeline, call) as trial:
        prompts = [Prompt("a red circle", 0), Prompt("a blue square", 1)]
        rehearsal = Rehearsal(trial, prompts, 6, batch=2, pictures=True)
        whole = Rehearsal(trial, prompts, 6, batch=2, pictures=True, replay=False)
        candidate = Candidate((1, 0, 0, 1, 0, 1), "reuse")
        errors = rehearsal.errors(candidate)
        assert errors == whole.errors(candidate)
        dense = trial.draw(prompts[0], steps=6).images[0]
        options = {"mask": list(candidate.mask)}
        drawn = trial.draw(prompts[0], Setting("plan", options, backend="step_plan"), steps=6).images[0]
    assert Quality.of(errors[:1]).mean == pytest.approx(psnr(dense, drawn), abs=0.01)
