"""`Omni` with several prompts at once, and with settings of a prompt's own."""

from __future__ import annotations

import pytest
import torch

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams
from dit_cache_conformance.tiny import build

from .engine_runs import EAGER, Case, alone, latents, request

CASES = [Case(6, 1, "cache_dit", EAGER), Case(4, 2), Case(7, 3, "cache_dit", EAGER), Case(5, 4)]


def inputs(cases: list[Case]) -> tuple[list[object], list[OmniDiffusionSamplingParams]]:
    prompts, several = [], []
    for case in cases:
        prompt, params = request("flux", case)
        params.cache_backend = case.backend
        params.cache_config = case.config
        prompts.append(prompt)
        several.append(params)
    return prompts, several


@pytest.mark.parametrize("concurrent", [1, 3])
def test_each_prompt_may_have_its_own_cache_and_the_outputs_come_in_order(concurrent: int) -> None:
    prompts, params = inputs(CASES)
    with Omni(build("flux").pipe, "dbprune", max_concurrent=concurrent) as omni:
        outputs = omni.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    for case, output in zip(CASES, outputs, strict=True):
        assert torch.equal(latents(output), alone("flux", case))


def test_prompts_run_at_once_only_where_that_was_asked_for() -> None:
    most = {}
    for concurrent in (1, 3):
        prompts, params = inputs(CASES)
        with Omni(build("flux").pipe, max_concurrent=concurrent) as omni:
            seen: list[int] = []
            for one in params:

                def look(pipe, step, time, tensors, seen=seen, engine=omni.engine):  # type: ignore[no-untyped-def]
                    seen.append(engine.stats().running)
                    return tensors

                one.extra_args = one.extra_args | {"callback_on_step_end": look}
            omni.generate(prompts, params, use_tqdm=False)
        most[concurrent] = max(seen)
    assert most[1] == 1
    assert most[3] > 1


def test_prompts_that_are_not_asked_for_any_more_are_cancelled() -> None:
    prompts, params = inputs(CASES)
    with Omni(build("flux").pipe, max_concurrent=4) as omni:
        outputs = omni.generate(prompts, params, py_generator=True, use_tqdm=False)
        assert torch.equal(latents(next(outputs)), alone("flux", CASES[0]))
        outputs.close()
        assert omni.engine.stats().waiting == 0
        again = omni.generate(prompts[1], params[1], use_tqdm=False)
        assert torch.equal(latents(again[0]), alone("flux", CASES[1]))
        assert omni.engine.stats().tensors == 0


def test_a_prompt_that_does_not_fit_is_refused_before_any_is_drawn() -> None:
    prompts, params = inputs(CASES)
    params[2].cache_config = {"residual_dif_threshold": 1}
    with Omni(build("flux").pipe) as omni:
        with pytest.raises(ConfigError, match="residual_diff_threshold"):
            omni.generate(prompts, params, py_generator=True)
        assert omni.engine.stats().finished == 0


def test_many_prompts_in_batches_come_out_one_by_one() -> None:
    cases = [Case(3, seed) for seed in range(7)]
    prompts, params = inputs(cases)
    with Omni(build("flux").pipe, max_batch=3) as omni:
        outputs = omni.generate(prompts, params, use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        expected = alone("flux", case)
        assert (latents(output) - expected).abs().max() <= 1e-5 * expected.abs().max()
